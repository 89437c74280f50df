//! Direct server return (docs/dsr.md): packets too large for the tunnel, fragments, ICMP errors about either direction, and the
//! bytes on the wire in every tunnel. Invariants I1 and I2 at the end of every test.

mod common;

use common::dsr::{At, FLAGS, set, set_with, targets, to, vip, world};
use common::tuples::{Place, Step, frame, send, sent};
use common::{drops, look};
use fairway_dataplane::conntrack::Tuple;
use fairway_dataplane::testkit::addr;
use fairway_dataplane::testkit::packet::{self, Headers};
use fairway_dataplane::wire::{ETH_LEN, be16, icmp, ipip, ipv4, proto};
use fairway_tables::{DropReason, Ip, Mac, NextHopKind, Service, ServiceKey};

/// The IPv4 packet inside a tunnel's, as a frame.
fn inside(frame: &[u8], kind: NextHopKind) -> Vec<u8> {
    match kind {
        NextHopKind::Ipip => [&frame[..ETH_LEN], &frame[ipip::HEADER_LEN..]].concat(),
        _ => frame[ETH_LEN + ipv4::LEN + 8 + 8..].to_vec(),
    }
}

#[test]
fn a_packet_too_large_for_the_tunnel_is_cut_up_or_its_client_told_so() {
    let key = ServiceKey::new(vip(true), 80, proto::UDP);
    for (kind, mtu) in [(NextHopKind::Tunnel, 1450u16), (NextHopKind::Ipip, 1480)] {
        let mut world = world();
        set_with(&mut world, key, FLAGS, 0, targets(&[At::There(1)], true, kind));
        let headers = addr::directly_from(0, addr::outside(1), [198, 51, 100, 1]);
        let mut large = headers.udp(4000, 80, &[7; 1472]);
        let (port, error) = world.send(addr::UPLINK, &large).unwrap();
        let seen = look(&error);
        assert_eq!((port, seen.dst, be16(&error, ETH_LEN + 26)), (addr::UPLINK, addr::outside(1), mtu));
        assert_eq!(error[ETH_LEN + 20..][..2], [icmp::UNREACHABLE, icmp::unreachable::FRAGMENTATION_NEEDED]);
        let quoted = &error[ETH_LEN + 28..];
        assert_eq!(quoted[12..20], [addr::outside(1), [198, 51, 100, 1]].concat(), "as the client sent it");
        packet::allow_fragments(&mut large);
        let parts = world.burst(addr::UPLINK, &[large]);
        assert_eq!(parts.len(), 2);
        // The backend's node joins them to one flow.
        set(&mut world, ServiceKey { port: 81, ..key }, &[At::Here(1)]);
        let mut whole = headers.udp(4000, 81, &[7; 1472]);
        packet::allow_fragments(&mut whole);
        let fragments = packet::fragments(&whole, 800);
        let wrap = |inner: &Vec<u8>| match kind {
            NextHopKind::Ipip => packet::into_ipip(&addr::outer_from(1), inner),
            _ => packet::encapsulate(&addr::encap_from(1), inner, 50_000),
        };
        let delivered = world.burst(addr::UPLINK, &fragments.iter().map(wrap).collect::<Vec<_>>());
        assert_eq!(delivered.len(), 2);
        for (port, part) in &delivered {
            assert_eq!((*port, &part[ETH_LEN + 16..ETH_LEN + 20]), (addr::pod_port(1), &addr::pod(1)[..]));
        }
        for (_, part) in &parts {
            let inner = inside(part, kind);
            assert_eq!(inner[ETH_LEN + 12..ETH_LEN + 20], [addr::outside(1), [198, 51, 100, 1]].concat());
            assert!(inner.len() - ETH_LEN <= usize::from(mtu));
        }
        world.finish();
    }
}

/// "Too big" from a router outside about a packet that the service sent to a client.
fn error_about(answer: &Tuple) -> Vec<u8> {
    let quoted = &frame(Place::Wire, answer, Step::More)[ETH_LEN..];
    let mut message = vec![0; icmp::LEN];
    message.extend_from_slice(&quoted[..28]);
    icmp::write_error(&mut message, icmp::UNREACHABLE, icmp::unreachable::FRAGMENTATION_NEEDED, 1300);
    let (src, dst) = ([192, 0, 2, 99], answer.src.as_v4().unwrap());
    Headers { dst_mac: addr::UPLINK_MAC, src_mac: Mac([2; 6]), src, dst, ttl: 60 }
        .around(proto::ICMP, &message)
}

#[test]
fn errors_about_replies_find_the_backend_through_both_nodes() {
    let key = ServiceKey::new(vip(true), 80, proto::TCP);
    let tuple = to(key, 1, 4000);
    let error = error_about(&tuple.reversed());
    let mut first = world();
    set(&mut first, key, &[At::There(1)]);
    assert_eq!(first.send(addr::UPLINK, &error), None, "about a connection that is not known");
    send(&mut first, Place::Wire, &tuple, Step::Open).unwrap();
    let (port, out) = first.send(addr::UPLINK, &error).unwrap();
    let inner = inside(&out, NextHopKind::Tunnel);
    assert_eq!((port, look(&out).dst), (addr::UPLINK, addr::node(1)));
    let (sent, was) = (look(&inner), look(&error));
    assert_eq!((sent.src, sent.dst, &sent.payload), (was.src, was.dst, &was.payload), "as it came");

    let mut second = world();
    set(&mut second, key, &[At::Here(2)]);
    let wrapped = packet::encapsulate(&addr::encap_from(1), &error, 50_000);
    assert_eq!(second.send(addr::UPLINK, &wrapped), None, "about a connection that is not known");
    assert_eq!(drops(&second, DropReason::SpoofedSource), 1);
    send(&mut second, Place::Node(1), &tuple, Step::Open).unwrap();
    let (port, out) = second.send(addr::UPLINK, &wrapped).unwrap();
    let seen = look(&out);
    assert_eq!((port, seen.src, seen.dst), (addr::pod_port(2), [192, 0, 2, 99], addr::pod(2)));
    let quoted = &out[ETH_LEN + 28..];
    assert_eq!((&quoted[12..16], be16(quoted, 20)), (&addr::pod(2)[..], 8080), "the pod's own packet");
    // What the pod itself says of the client's packets comes from the service.
    let at_pod = Tuple { dst: Ip::v4(addr::pod(2)), dport: 8080, ..tuple };
    let mut by_pod = error_about(&at_pod);
    by_pod[..6].copy_from_slice(&addr::GATEWAY_MAC.0);
    by_pod[ETH_LEN + 12..ETH_LEN + 20].copy_from_slice(&[addr::pod(2), addr::outside(1)].concat());
    packet::mend_ip_checksum(&mut by_pod);
    let (port, out) = second.send(addr::pod_port(2), &by_pod).unwrap();
    let seen = look(&out);
    assert_eq!((port, Ip::v4(seen.src), seen.dst), (addr::UPLINK, key.ip, addr::outside(1)));
    let quoted = &out[ETH_LEN + 28..];
    assert_eq!((&quoted[16..20], be16(quoted, 22)), (&key.ip.as_v4().unwrap()[..], 80));
    first.finish();
    second.finish();
}

#[test]
fn what_is_sent_is_read_by_the_other_node() {
    // Byte for byte: what the first node sends to node 1, with the outer header of node 1's own answer, is delivered.
    let key = ServiceKey::new(vip(true), 80, proto::UDP);
    for kind in [NextHopKind::Tunnel, NextHopKind::Ipip, NextHopKind::UdpTunnel] {
        let mut world = world();
        set_with(&mut world, key, FLAGS, 0, targets(&[At::There(1)], true, kind));
        let tuple = to(key, 1, 4000);
        let (port, out) = world.send(addr::UPLINK, &frame(Place::Wire, &tuple, Step::Open)).unwrap();
        assert_eq!((port, look(&out).dst), (addr::UPLINK, addr::node(1)));
        let headers = match kind {
            NextHopKind::Tunnel => return_checked(&out, ETH_LEN + ipv4::LEN + 8 + 8 + ETH_LEN),
            NextHopKind::Ipip => return_checked(&out, ipip::HEADER_LEN),
            _ => return_checked(&out, ETH_LEN + ipv4::LEN + 8),
        };
        assert_eq!(headers, sent(addr::UPLINK, &frame(Place::Wire, &tuple, Step::Open)).1);
        world.finish();
    }
}

/// The tuple of the packet that begins at `at`.
fn return_checked(frame: &[u8], at: usize) -> Tuple {
    sent(addr::UPLINK, &[&frame[..ETH_LEN], &frame[at..]].concat()).1
}

#[test]
fn an_error_at_a_third_node_finds_the_backends_node_by_maglev_alone() {
    let key = ServiceKey::new(vip(true), 80, proto::TCP);
    let backends = [At::There(0), At::There(1), At::There(2), At::Here(1)];
    let node_of = |frame: &[u8]| look(frame).dst[3] - 2;
    let mut nodes = std::collections::BTreeSet::new();
    for maglev in [true, false] {
        let flags = if maglev { FLAGS | Service::MAGLEV } else { FLAGS };
        let worlds = [world(), world()].map(|mut world| {
            set_with(&mut world, key, flags, 0, targets(&backends, true, NextHopKind::Tunnel));
            world
        });
        let [mut first, mut third] = worlds;
        for sport in 4000..4100 {
            let tuple = to(key, 1, sport);
            let (port, asked) = first.send(addr::UPLINK, &frame(Place::Wire, &tuple, Step::Open)).unwrap();
            let error = error_about(&tuple.reversed());
            let told = third.send(addr::UPLINK, &error);
            if port != addr::UPLINK || !maglev {
                // To the first node's own pod, of which nobody else knows; or to whomever chance chose.
                assert_eq!(told, None);
                continue;
            }
            let (port, told) = told.unwrap();
            assert_eq!((port, node_of(&told)), (addr::UPLINK, node_of(&asked)));
            nodes.insert(node_of(&told));
            let (sent, was) = (look(&inside(&told, NextHopKind::Tunnel)), look(&error));
            assert_eq!((sent.src, sent.dst, &sent.payload), (was.src, was.dst, &was.payload), "as it came");
            // It goes on to no fourth node; nor is a pod's error taken so.
            let wrapped = packet::encapsulate(&addr::encap_from(0), &error, 50_000);
            assert_eq!(third.send(addr::UPLINK, &wrapped), None);
            let mut by_pod = error;
            by_pod[..6].copy_from_slice(&addr::GATEWAY_MAC.0);
            by_pod[ETH_LEN + 12..ETH_LEN + 16].copy_from_slice(&addr::pod(0));
            packet::mend_ip_checksum(&mut by_pod);
            let gone = third.send(addr::pod_port(0), &by_pod);
            assert!(gone.is_none_or(|(port, out)| port != addr::UPLINK || be16(&out, 36) != 4789));
        }
        if !maglev {
            assert_eq!(drops(&third, DropReason::NotForUs), 100);
        }
        first.finish();
        third.finish();
    }
    assert_eq!(nodes.len(), 3, "all nodes were meant");
}
