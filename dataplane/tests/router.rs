//! What a router passes on as it is (RFC 1812), between pods, tunnels and the host.

mod common;

use common::look_inside;
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet};
use fairway_dataplane::wire::{proto, tcp_flags};

const VIP: [u8; 4] = [10, 96, 0, 10];

#[test]
fn ip_options_go_through_translation_and_tunnel_unchanged() {
    let mut world = World::new(WorldConfig::default());
    world.set_service(VIP, 80, proto::TCP, 1, &[(addr::remote_pod(1, 7), 8080)]);
    // Record route with room for one address, and router alert: neither asks anything of who only forwards.
    let options = [7, 7, 4, 0, 0, 0, 0, 1, 0x94, 4, 0, 0];
    for (flags, payload) in [(tcp_flags::SYN, &b""[..]), (tcp_flags::ACK, b"payload")] {
        let mut sent = addr::from_pod(0, VIP).tcp(1000, 80, flags, payload);
        packet::add_options(&mut sent, &options);
        let (_, out) = world.send(addr::pod_port(0), &sent).unwrap();
        let seen = look_inside(&out, 1);
        assert_eq!((seen.dst, seen.dport, &seen.payload[..]), (addr::remote_pod(1, 7), 8080, payload));
        assert_eq!(out[64 + 20..64 + 32], options);
    }
    world.finish();
}

#[test]
fn a_pod_reaches_the_nodes_link_local_services() {
    let mut world = World::new(WorldConfig::default());
    let dns = [169, 254, 20, 10];
    let (port, _) = world.send(addr::pod_port(0), &addr::from_pod(0, dns).udp(1000, 53, b"?")).unwrap();
    assert_eq!(port, addr::HOST);
    let answer = packet::Headers {
        dst_mac: addr::GATEWAY_MAC,
        src_mac: addr::HOST_MAC,
        src: dns,
        dst: addr::pod(0),
        ttl: 64,
    };
    let (port, _) = world.send(addr::HOST, &answer.udp(53, 1000, b"!")).unwrap();
    assert_eq!(port, addr::pod_port(0));
    world.finish();
}
