//! What a router passes on as it is (RFC 1812), between pods, tunnels and the host, and the one option that it may change.

mod common;

use common::{look, look_inside, six};
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet};
use fairway_dataplane::wire::{ETH_LEN, proto, tcp_flags, vxlan};
use fairway_tables::{Op, PortId, Settings};

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

/// A SYN's options: maximum segment size 1460, after a window scale that puts it at an odd place.
const SYN_OPTIONS: [u8; 8] = [3, 3, 7, 2, 4, 0x05, 0xb4, 0];

/// Gives the TCP segment that begins at `at` of a frame, with no payload, options instead; its checksum is that of the
/// segment with as many bytes of payload.
fn as_options(mut frame: Vec<u8>, at: usize) -> Vec<u8> {
    frame[at + 12] = 7 << 4;
    // The data offset is part of the sum: 5 << 12 becomes 7 << 12.
    let sum = u16::from_be_bytes([frame[at + 16], frame[at + 17]]);
    let sum = u32::from(!sum) + (2 << 12);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn a_syn_announces_what_its_way_takes_where_that_is_asked_for() {
    let mut world = World::new(WorldConfig::default());
    world.set_service(VIP, 80, proto::TCP, 1, &[(addr::remote_pod(1, 7), 8080)]);
    let four =
        |sport, flags| as_options(addr::from_pod(0, VIP).tcp(sport, 80, flags, &SYN_OPTIONS), ETH_LEN + 20);
    let six = |sport, flags| {
        let frame = addr::from_pod6(0, addr::remote_pod6(1, 7)).tcp(sport, 80, flags, &SYN_OPTIONS);
        as_options(frame, ETH_LEN + 40)
    };
    // What the engine sends, after its checksums were found right: the announced size.
    let announced = |(port, out): (PortId, Vec<u8>)| {
        assert_eq!(port, addr::UPLINK);
        let inner = [&out[..ETH_LEN - 2], &out[vxlan::HEADER_LEN - 2..]].concat();
        let at = if inner[ETH_LEN] >> 4 == 6 {
            six::look(&inner);
            ETH_LEN + 40
        } else {
            look(&inner);
            ETH_LEN + 20
        };
        u16::from_be_bytes([inner[at + 25], inner[at + 26]])
    };
    let syn = tcp_flags::SYN;
    assert_eq!(announced(world.send(addr::pod_port(0), &four(1, syn)).unwrap()), 1460, "not asked for");
    let mut settings = world.reader.view().settings();
    settings.takes |= Settings::CLAMP_MSS;
    world.apply(Op::SetSettings(settings));
    for flags in [syn, syn | tcp_flags::ACK] {
        // The first walks; the second, if it may hit, hits.
        for _ in 0..2 {
            assert_eq!(announced(world.send(addr::pod_port(0), &four(2, flags)).unwrap()), 1450 - 40);
            assert_eq!(announced(world.send(addr::pod_port(0), &six(2, flags)).unwrap()), 1450 - 60);
        }
    }
    // The same bytes mean nothing in a segment that is no SYN.
    assert_eq!(announced(world.send(addr::pod_port(0), &four(2, tcp_flags::ACK)).unwrap()), 1460);
    world.finish();
}
