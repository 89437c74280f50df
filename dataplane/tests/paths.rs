//! Each way of a packet through `process`, checked by an independent parser (etherparse): addresses, ports,
//! checksums, headers; and invariants I1 and I2 at the end of every test.

mod common;

use common::{Seen, drops, look, look_inside, send_in_vain};
use fairway_dataplane::conntrack::State;
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet};
use fairway_dataplane::wire::{icmp, proto, tcp_flags};
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, Endpoint, Ip, Mac, Op, PortId};

const VIP: [u8; 4] = [10, 96, 0, 10];

#[test]
fn pod_to_pod_on_the_same_node() {
    let mut world = World::new(WorldConfig::default());
    let frame = addr::from_pod(0, addr::pod(1)).udp(1111, 2222, b"hello");
    for hits in 0..3 {
        let (port, out) = world.send(addr::pod_port(0), &frame).unwrap();
        assert_eq!(port, addr::pod_port(1));
        assert_eq!(
            look(&out),
            Seen {
                dst_mac: addr::pod_mac(1).0,
                src_mac: addr::GATEWAY_MAC.0,
                src: addr::pod(0),
                dst: addr::pod(1),
                sport: 1111,
                dport: 2222,
                ttl: 63,
                payload: b"hello".to_vec()
            }
        );
        assert_eq!(
            world.worker.counters.get(Counter::FlowHits),
            hits,
            "the first packet walks, the rest hit"
        );
    }
    world.finish();
}

#[test]
fn pod_to_remote_pod_is_encapsulated_and_back() {
    let mut world = World::new(WorldConfig::default());
    let there = addr::from_pod(0, addr::remote_pod(2, 9)).tcp(5000, 80, tcp_flags::SYN, b"");
    let (port, out) = world.send(addr::pod_port(0), &there).unwrap();
    assert_eq!(port, addr::UPLINK);
    let inner = look_inside(&out, 2);
    assert_eq!((inner.src, inner.dst, inner.ttl), (addr::pod(0), addr::remote_pod(2, 9), 63));

    let reply = addr::from_remote(addr::remote_pod(2, 9), addr::pod(0)).tcp(
        80,
        5000,
        tcp_flags::SYN | tcp_flags::ACK,
        b"x",
    );
    let wrapped = packet::encapsulate(&addr::encap_from(2), &reply, 50000);
    let (port, out) = world.send(addr::UPLINK, &wrapped).unwrap();
    assert_eq!(port, addr::pod_port(0));
    let seen = look(&out);
    assert_eq!((seen.dst_mac, seen.src_mac), (addr::pod_mac(0).0, addr::GATEWAY_MAC.0));
    assert_eq!((seen.src, seen.dst, seen.ttl), (addr::remote_pod(2, 9), addr::pod(0), 62));
    world.finish();
}

#[test]
fn a_service_is_translated_both_ways_and_keeps_its_backend() {
    for protocol in [proto::TCP, proto::UDP] {
        let mut world = World::new(WorldConfig::default());
        let backends: Vec<_> = (0..3).map(|n| (addr::remote_pod(n, 7), 8080)).collect();
        world.set_service(VIP, 80, protocol, 1, &backends);
        let make = |src: &packet::Headers, sport, dport, flags| match protocol {
            proto::TCP => src.tcp(sport, dport, flags, b"data"),
            _ => src.udp(sport, dport, b"data"),
        };
        let syn = make(&addr::from_pod(0, VIP), 40000, 80, tcp_flags::SYN);
        let (_, out) = world.send(addr::pod_port(0), &syn).unwrap();
        let outer = look(&out);
        let n = outer.dst[3] - 2;
        let inner = look_inside(&out, n);
        assert_eq!((inner.dst, inner.dport, inner.sport), (addr::remote_pod(n, 7), 8080, 40000));

        let back = addr::from_remote(addr::remote_pod(n, 7), addr::pod(0));
        let reply = make(&back, 8080, 40000, tcp_flags::SYN | tcp_flags::ACK);
        let wrapped = packet::encapsulate(&addr::encap_from(n), &reply, 50000);
        for _ in 0..2 {
            let (port, out) = world.send(addr::UPLINK, &wrapped).unwrap();
            let seen = look(&out);
            assert_eq!(port, addr::pod_port(0));
            assert_eq!((seen.src, seen.sport, seen.dst, seen.dport), (VIP, 80, addr::pod(0), 40000));
        }

        // I6: the backend leaves the service; an established TCP connection stays with it, a UDP conversation
        // and new connections do not go there.
        let rest: Vec<_> = backends.iter().copied().filter(|b| b.0 != addr::remote_pod(n, 7)).collect();
        world.set_service(VIP, 80, protocol, 1, &rest);
        let ack = make(&addr::from_pod(0, VIP), 40000, 80, tcp_flags::ACK);
        let (_, out) = world.send(addr::pod_port(0), &ack).unwrap();
        assert_eq!(look(&out).dst == addr::node(n), protocol == proto::TCP);
        for sport in 41000..41050 {
            let syn = make(&addr::from_pod(0, VIP), sport, 80, tcp_flags::SYN);
            let (_, out) = world.send(addr::pod_port(0), &syn).unwrap();
            assert_ne!(look(&out).dst, addr::node(n));
        }
        world.finish();
    }
}

#[test]
fn a_connection_survives_a_worker_that_forgot_its_flows() {
    let mut world = World::new(WorldConfig::default());
    let backends: Vec<_> = (0..3).map(|n| (addr::remote_pod(n, 7), 8080)).collect();
    world.set_service(VIP, 80, proto::TCP, 1, &backends);
    for sport in 40000..40064 {
        let syn = addr::from_pod(0, VIP).tcp(sport, 80, tcp_flags::SYN, b"");
        let (_, out) = world.send(addr::pod_port(0), &syn).unwrap();
        let node = look(&out).dst;
        world.worker.flows.clear();
        let ack = addr::from_pod(0, VIP).tcp(sport, 80, tcp_flags::ACK, b"");
        let (_, out) = world.send(addr::pod_port(0), &ack).unwrap();
        assert_eq!(look(&out).dst, node);
    }
    world.finish();
}

#[test]
fn backends_are_chosen_evenly() {
    let mut world = World::new(WorldConfig { connections: 16384, ..WorldConfig::default() });
    let backends: Vec<_> = (0..3).map(|n| (addr::remote_pod(n, 7), 8080)).collect();
    world.set_service(VIP, 80, proto::UDP, 1, &backends);
    let mut chosen = [0; 3];
    for sport in 1000..7000 {
        let frame = addr::from_pod(0, VIP).udp(sport, 80, b"");
        let (_, out) = world.send(addr::pod_port(0), &frame).unwrap();
        chosen[usize::from(look(&out).dst[3] - 2)] += 1;
    }
    // 2000 expected, standard deviation 37.
    assert!(chosen.iter().all(|n| (1750..2250).contains(n)), "{chosen:?}");
    world.finish();
}

#[test]
fn a_service_without_backends_drops_by_that_reason() {
    let mut world = World::new(WorldConfig::default());
    world.set_service(VIP, 80, proto::TCP, 1, &[]);
    let syn = addr::from_pod(0, VIP).tcp(40000, 80, tcp_flags::SYN, b"");
    send_in_vain(&mut world, addr::pod_port(0), &syn);
    assert_eq!(drops(&world, DropReason::NoBackend), 1);
    world.finish();
}

#[test]
fn a_local_backend_answers_under_the_services_address() {
    let mut world = World::new(WorldConfig::default());
    world.set_service(VIP, 80, proto::TCP, 1, &[(addr::pod(1), 8080)]);
    let syn = addr::from_pod(0, VIP).tcp(40000, 80, tcp_flags::SYN, b"");
    let (port, out) = world.send(addr::pod_port(0), &syn).unwrap();
    assert_eq!((port, look(&out).dst, look(&out).dport), (addr::pod_port(1), addr::pod(1), 8080));
    let reply = addr::from_pod(1, addr::pod(0)).tcp(8080, 40000, tcp_flags::SYN | tcp_flags::ACK, b"");
    let (port, out) = world.send(addr::pod_port(1), &reply).unwrap();
    assert_eq!((port, look(&out).src, look(&out).sport), (addr::pod_port(0), VIP, 80));
    world.finish();
}

#[test]
fn the_gateway_answers_echo_and_arp_for_any_address() {
    let mut world = World::new(WorldConfig::default());
    let ping = addr::from_pod(0, addr::GATEWAY).echo(icmp::ECHO_REQUEST, 7, 1, b"odd");
    let (port, out) = world.send(addr::pod_port(0), &ping).unwrap();
    let seen = look(&out);
    assert_eq!((port, seen.src, seen.dst, seen.ttl), (addr::pod_port(0), addr::GATEWAY, addr::pod(0), 64));
    assert_eq!(
        (seen.dst_mac, seen.src_mac, &seen.payload[..]),
        (addr::pod_mac(0).0, addr::GATEWAY_MAC.0, &b"odd"[..])
    );

    for target in [addr::GATEWAY, addr::pod(1), [8, 8, 8, 8]] {
        let ask = packet::arp_request(addr::pod_mac(0), addr::pod(0), target);
        let (port, out) = world.send(addr::pod_port(0), &ask).unwrap();
        assert_eq!(port, addr::pod_port(0));
        assert_eq!(out[20..22], [0, 2]);
        assert_eq!(out[22..28], addr::GATEWAY_MAC.0);
        assert_eq!(out[28..32], target);
    }
    for probe in [([0; 4], addr::pod(0)), (addr::pod(0), addr::pod(0))] {
        let ask = packet::arp_request(addr::pod_mac(0), probe.0, probe.1);
        assert_eq!(
            world.send(addr::pod_port(0), &ask),
            None,
            "a station probing its own address hears nothing"
        );
    }
    assert_eq!(drops(&world, DropReason::ArpIgnored), 2);
    world.finish();
}

#[test]
fn echo_between_pods_is_one_connection_both_ways() {
    let mut world = World::new(WorldConfig::default());
    let ping = addr::from_pod(0, addr::pod(1)).echo(icmp::ECHO_REQUEST, 99, 1, b"abcdefgh");
    assert_eq!(world.send(addr::pod_port(0), &ping).unwrap().0, addr::pod_port(1));
    let pong = addr::from_pod(1, addr::pod(0)).echo(icmp::ECHO_REPLY, 99, 1, b"abcdefgh");
    let (port, out) = world.send(addr::pod_port(1), &pong).unwrap();
    assert_eq!((port, look(&out).payload), (addr::pod_port(0), b"abcdefgh".to_vec()));
    assert_eq!(world.worker.conntrack.summary().used, 1);
    world.finish();
}

#[test]
fn host_reaches_pods_and_pods_reach_the_host() {
    let mut world = World::new(WorldConfig::default());
    let headers = packet::Headers {
        dst_mac: addr::GATEWAY_MAC,
        src_mac: addr::HOST_MAC,
        src: addr::NODE,
        dst: addr::pod(2),
        ttl: 64,
    };
    let (port, _) = world.send(addr::HOST, &headers.udp(1, 2, b"")).unwrap();
    assert_eq!(port, addr::pod_port(2));
    let (port, out) = world.send(addr::pod_port(2), &addr::from_pod(2, addr::NODE).udp(2, 1, b"")).unwrap();
    assert_eq!((port, look(&out).dst_mac), (addr::HOST, addr::HOST_MAC.0));
    // The host's default route is the host: such a packet is not sent back.
    let outside = packet::Headers { dst: [8, 8, 8, 8], ..headers };
    send_in_vain(&mut world, addr::HOST, &outside.udp(1, 2, b""));
    assert_eq!(drops(&world, DropReason::NoRoute), 1);
    let counters = &world.worker.counters;
    let to_host = counters.get(Counter::HostPackets) - counters.get(Counter::GeneratedPackets);
    assert_eq!(to_host, 1, "beside the error that tells the host so");
    world.finish();
}

#[test]
fn options_and_padding_are_passed_rightly() {
    let mut world = World::new(WorldConfig::default());
    world.set_service(VIP, 53, proto::UDP, 1, &[(addr::pod(1), 5353)]);
    // Four bytes of options (no-operation ×3, end) between header and UDP, and Ethernet padding behind.
    let plain = addr::from_pod(0, VIP).udp(1, 53, b"q");
    let mut frame = plain[..34].to_vec();
    frame.extend([1, 1, 1, 0]);
    frame.extend(&plain[34..]);
    frame[14] = 0x46;
    let len = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    frame[24..26].fill(0);
    let sum = fairway_dataplane::wire::checksum::checksum(&frame[14..38]);
    frame[24..26].copy_from_slice(&sum.to_ne_bytes());
    let length = frame.len();
    frame.resize(64, 0xa5);
    let (_, out) = world.send(addr::pod_port(0), &frame).unwrap();
    assert_eq!(out.len(), length, "padding does not travel");
    let seen = look(&out);
    assert_eq!((seen.dst, seen.dport, seen.payload), (addr::pod(1), 5353, b"q".to_vec()));
    world.finish();
}

#[test]
fn udp_without_checksum_stays_without() {
    let mut world = World::new(WorldConfig::default());
    world.set_service(VIP, 53, proto::UDP, 1, &[(addr::pod(1), 5353)]);
    let mut frame = addr::from_pod(0, VIP).udp(1, 53, b"q");
    frame[40..42].fill(0);
    let (_, out) = world.send(addr::pod_port(0), &frame).unwrap();
    assert_eq!(out[40..42], [0, 0]);
    world.finish();
}

#[test]
fn each_bad_packet_has_its_reason() {
    let mut world = World::new(WorldConfig::default());
    let good = addr::from_pod(0, addr::pod(1)).udp(1, 2, b"payload");
    let wrapped = |n: u8, src, dst| {
        let inner = addr::from_remote(src, dst).udp(1, 2, b"payload");
        packet::encapsulate(&addr::encap_from(n), &inner, 50000)
    };
    let fine = wrapped(0, addr::remote_pod(0, 5), addr::pod(0));
    let change = |frame: &[u8], at: usize, value: u8| {
        let mut frame = frame.to_vec();
        frame[at] = value;
        frame
    };
    let spoofed = packet::Headers { src: addr::pod(1), ..addr::from_pod(0, addr::pod(2)) };
    let martian = packet::Headers { src: [127, 0, 0, 1], ..addr::from_pod(0, addr::pod(2)) };
    let dying = packet::Headers { ttl: 1, ..addr::from_pod(0, addr::pod(2)) };
    let with_outer = |at: usize, bytes: &[u8]| {
        let mut frame = fine.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame[24..26].fill(0);
        let sum = fairway_dataplane::wire::checksum::checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_ne_bytes());
        frame
    };
    let pod = addr::pod_port(0);
    let cases: Vec<(PortId, Vec<u8>, DropReason)> = vec![
        (pod, good[..13].to_vec(), DropReason::Truncated),
        (pod, good[..30].to_vec(), DropReason::Truncated),
        (pod, change(&good, 0, 2), DropReason::NotForUs),
        (pod, change(&good, 12, 0x88), DropReason::EtherType),
        (pod, change(&change(&good, 12, 0x86), 13, 0xdd), DropReason::Truncated),
        (pod, change(&good, 14, 0x44), DropReason::BadIpHeader),
        (pod, change(&good, 22, 9), DropReason::BadIpChecksum),
        (pod, spoofed.udp(1, 2, b""), DropReason::SpoofedSource),
        (pod, martian.udp(1, 2, b""), DropReason::Martian),
        (pod, addr::from_pod(0, [240, 0, 0, 1]).udp(1, 2, b""), DropReason::Martian),
        (addr::UPLINK, wrapped(0, [169, 254, 0, 9], addr::pod(0)), DropReason::Martian),
        (addr::UPLINK, wrapped(0, [224, 0, 0, 9], addr::pod(0)), DropReason::Martian),
        (pod, dying.udp(1, 2, b""), DropReason::TtlExceeded),
        (pod, addr::from_pod(0, addr::pod(900)).udp(1, 2, b""), DropReason::NoEndpoint),
        (pod, addr::from_pod(0, addr::pod(3)).udp(1, 2, &[0; 1460]), DropReason::TooBig),
        (pod, addr::from_pod(0, addr::remote_pod(0, 1)).udp(1, 2, &[0; 1423]), DropReason::TooBig),
        (pod, addr::from_pod(0, addr::GATEWAY).udp(1, 2, b""), DropReason::NotForUs),
        (addr::UPLINK, change(&fine, 42, 0), DropReason::BadVxlan),
        (addr::UPLINK, change(&fine, 48, 9), DropReason::WrongVni),
        (addr::UPLINK, change(&fine, 50, 9), DropReason::NotForUs),
        (addr::UPLINK, with_outer(30, &addr::node(1)), DropReason::NotForUs),
        (addr::UPLINK, fine[..60].to_vec(), DropReason::Truncated),
        (addr::UPLINK, wrapped(0, addr::remote_pod(1, 5), addr::pod(0)), DropReason::SpoofedSource),
        (addr::UPLINK, wrapped(9, addr::remote_pod(0, 5), addr::pod(0)), DropReason::UnknownVtep),
        (PortId(77), good.clone(), DropReason::PortDown),
    ];
    for (port, frame, reason) in cases {
        let before = drops(&world, reason);
        send_in_vain(&mut world, port, &frame);
        assert_eq!(drops(&world, reason), before + 1, "{reason}");
    }
    assert!(world.send(pod, &good).is_some());
    assert!(world.send(addr::UPLINK, &fine).is_some());
    // To the node, but no tunnel's: another UDP port, another protocol.
    for frame in [change(&fine, 37, 9), with_outer(23, &[6])] {
        assert_eq!(
            world.send(addr::UPLINK, &frame).unwrap().0,
            addr::HOST,
            "the node's own stack knows better"
        );
    }
    world.finish();
}

#[test]
fn a_changed_table_takes_effect_on_running_flows() {
    let mut world = World::new(WorldConfig::default());
    let frame = addr::from_pod(0, addr::pod(1)).udp(1, 2, b"");
    assert_eq!(world.send(addr::pod_port(0), &frame).unwrap().0, addr::pod_port(1));
    // The pod was moved to another port, with another Ethernet address.
    let mac = Mac([0x0a, 0x58, 9, 9, 9, 9]);
    world.apply(Op::SetEndpoint(Ip::v4(addr::pod(1)), Endpoint::new(addr::pod_port(3), mac)));
    let (port, out) = world.send(addr::pod_port(0), &frame).unwrap();
    assert_eq!((port, look(&out).dst_mac), (addr::pod_port(3), mac.0));
    let counters = &world.worker.counters;
    let [hits, misses, walks] =
        [Counter::FlowHits, Counter::FlowMisses, Counter::TableWalks].map(|counter| counters.get(counter));
    assert_eq!((hits, misses, walks), (0, 2, 1), "one first packet, one walked again");
    world.apply(Op::DelEndpoint(Ip::v4(addr::pod(1))));
    send_in_vain(&mut world, addr::pod_port(0), &frame);
    assert_eq!(drops(&world, DropReason::NoEndpoint), 1);
    world.finish();
}

#[test]
fn connections_end_when_their_time_is_over_and_a_syn_reuses_a_closed_one() {
    let mut world = World::new(WorldConfig { connections: 64, ..WorldConfig::default() });
    world.set_service(VIP, 80, proto::TCP, 1, &[(addr::pod(1), 8080)]);
    let syn = addr::from_pod(0, VIP).tcp(40000, 80, tcp_flags::SYN, b"");
    let rst = addr::from_pod(1, addr::pod(0)).tcp(8080, 40000, tcp_flags::RST, b"");
    assert!(world.send(addr::pod_port(0), &syn).is_some());
    assert!(world.send(addr::pod_port(1), &rst).is_some());
    world.set_service(VIP, 80, proto::TCP, 1, &[(addr::pod(2), 8080)]);
    let (port, _) = world.send(addr::pod_port(0), &syn).unwrap();
    assert_eq!(port, addr::pod_port(2), "a SYN on a reset connection begins a new one");
    assert_eq!(world.worker.conntrack.summary().used, 1);
    world.now.seconds += 121;
    world.worker.housekeep(world.now, 16);
    assert_eq!(world.worker.conntrack.summary().used, 0);
    assert!(world.worker.counters.get(Counter::ConntrackExpired) == 1);
    world.finish();
}

/// A handshake and data within one tick of the clock, all hits but the first packets.
#[test]
fn an_established_connection_outlives_an_hour_of_silence() {
    let mut world = World::new(WorldConfig::default());
    world.set_service(VIP, 80, proto::TCP, 1, &[(addr::pod(1), 8080)]);
    let there = |flags| addr::from_pod(0, VIP).tcp(40000, 80, flags, b"");
    let back = |flags| addr::from_pod(1, addr::pod(0)).tcp(8080, 40000, flags, b"");
    let (client, server) = (addr::pod_port(0), addr::pod_port(1));
    let state = |world: &World| world.worker.conntrack.iter().next().map(|connection| connection.state);
    assert!(world.send(client, &there(tcp_flags::SYN)).is_some());
    assert!(world.send(server, &back(tcp_flags::SYN | tcp_flags::ACK)).is_some());
    for _ in 0..3 {
        assert!(world.send(client, &there(tcp_flags::ACK)).is_some());
        assert!(world.send(server, &back(tcp_flags::ACK)).is_some());
    }
    assert_eq!(state(&world), Some(State::Established));
    world.now.seconds += 3600;
    world.worker.housekeep(world.now, 1024);
    world.set_service(VIP, 80, proto::TCP, 1, &[(addr::pod(2), 8080)]);
    let (port, _) = world.send(client, &there(tcp_flags::ACK)).unwrap();
    assert_eq!(port, server, "the connection keeps its backend");

    // Both sides close, each by packets that hit their flow; a repeated FIN is not the other side's.
    assert!(world.send(server, &back(tcp_flags::ACK)).is_some());
    for _ in 0..2 {
        assert!(world.send(server, &back(tcp_flags::FIN | tcp_flags::ACK)).is_some());
        assert_eq!(state(&world), Some(State::FinWait));
    }
    assert!(world.send(client, &there(tcp_flags::FIN | tcp_flags::ACK)).is_some());
    assert_eq!(state(&world), Some(State::TimeWait));
    world.finish();
}

#[test]
fn a_busy_flow_outlives_its_timeout() {
    let mut world = World::new(WorldConfig::default());
    let frame = addr::from_pod(0, addr::pod(1)).udp(1, 2, b"");
    for _ in 0..20 {
        assert!(world.send(addr::pod_port(0), &frame).is_some());
        world.now.seconds += 10;
        world.worker.housekeep(world.now, 1024);
        assert_eq!(world.worker.conntrack.summary().used, 1);
    }
    world.now.seconds += 31;
    world.worker.housekeep(world.now, 1024);
    assert_eq!(world.worker.conntrack.summary().used, 0);
    world.finish();
}

#[test]
fn a_reset_that_belongs_to_nothing_leaves_nothing_behind() {
    let mut world = World::new(WorldConfig::default());
    let reset = addr::from_pod(1, addr::pod(0)).tcp(8080, 40000, tcp_flags::RST, b"");
    assert_eq!(world.send(addr::pod_port(1), &reset), None);
    assert_eq!(drops(&world, DropReason::StrayReset), 1);
    assert_eq!(world.worker.conntrack.summary().used, 0);
    world.finish();
}

/// A client's port that a finished connection through a service used is free for a direct one.
#[test]
fn a_finished_connection_does_not_stand_in_the_way_of_another() {
    let mut world = World::new(WorldConfig::default());
    world.set_service(VIP, 80, proto::TCP, 1, &[(addr::pod(1), 8080)]);
    let syn = addr::from_pod(0, VIP).tcp(40000, 80, tcp_flags::SYN, b"");
    let direct = addr::from_pod(0, addr::pod(1)).tcp(40000, 8080, tcp_flags::SYN, b"");
    let reset = addr::from_pod(1, addr::pod(0)).tcp(8080, 40000, tcp_flags::RST, b"");
    assert!(world.send(addr::pod_port(0), &syn).is_some());
    assert!(world.send(addr::pod_port(1), &reset).is_some());
    let (_, out) = world.send(addr::pod_port(0), &direct).unwrap();
    assert_eq!((look(&out).sport, look(&out).dport), (40000, 8080), "with its own port");
    world.finish();
}

#[test]
fn a_host_that_sends_as_a_pod_is_refused() {
    let mut world = World::new(WorldConfig::default());
    let headers = packet::Headers { src_mac: addr::HOST_MAC, ..addr::from_pod(0, addr::pod(1)) };
    assert_eq!(world.send(addr::HOST, &headers.udp(1, 2, b"")), None);
    assert_eq!(drops(&world, DropReason::SpoofedSource), 1);
    world.finish();
}

/// RFC 7348 section 5: the source port varies by inner flow, and stays with it.
#[test]
fn the_entropy_port_stays_with_a_flow_and_differs_between_flows() {
    let mut world = World::new(WorldConfig::default());
    let mut seen = std::collections::BTreeSet::new();
    for sport in 0..64 {
        let frame = addr::from_pod(0, addr::remote_pod(0, 9)).udp(sport, 2, b"");
        let ports: Vec<u16> =
            (0..3).map(|_| look(&world.send(addr::pod_port(0), &frame).unwrap().1).sport).collect();
        assert!(ports.iter().all(|port| *port == ports[0]));
        seen.insert(ports[0]);
    }
    assert!(seen.len() > 50, "{} ports for 64 flows", seen.len());
    world.finish();
}

#[test]
fn one_burst_may_hold_every_kind_of_packet() {
    let mut world = World::new(WorldConfig::default());
    world.set_service(VIP, 80, proto::TCP, 1, &[(addr::remote_pod(0, 7), 8080)]);
    let mut burst = Vec::new();
    for n in 0..16 {
        burst.push(addr::from_pod(0, VIP).tcp(40000, 80, tcp_flags::ACK, &[n]));
        burst.push(addr::from_pod(0, addr::pod(1)).udp(7, 7, &[n]));
        burst.push(packet::arp_request(addr::pod_mac(0), addr::pod(0), addr::GATEWAY));
        burst.push(vec![n; 40]);
    }
    let sent = world.burst(addr::pod_port(0), &burst);
    assert_eq!(sent.len(), 48);
    assert_eq!(world.worker.counters.get(Counter::FlowMisses), 2, "a burst walks each new flow once");
    assert_eq!(world.worker.counters.get(Counter::FlowHits), 30);
    // Order within a flow holds.
    let order: Vec<u8> =
        sent.iter().filter(|(port, _)| *port == addr::pod_port(1)).map(|(_, f)| look(f).payload[0]).collect();
    assert_eq!(order, (0..16).collect::<Vec<u8>>());
    let inner: Vec<u8> = sent
        .iter()
        .filter(|(port, _)| *port == addr::UPLINK)
        .map(|(_, f)| look_inside(f, 0).payload[0])
        .collect();
    assert_eq!(inner, (0..16).collect::<Vec<u8>>());
    world.finish();
}

#[test]
fn a_flow_evicted_by_its_own_burst_is_not_forwarded_as_its_successor() {
    let mut world = World::new(WorldConfig { flows: 1, ..WorldConfig::default() });
    let known = addr::from_pod(0, addr::pod(1)).udp(1, 2, b"known");
    for round in 0..40 {
        assert_eq!(world.send(addr::pod_port(0), &known).unwrap().0, addr::pod_port(1));
        world.now.seconds += 2;
        // All are looked up before the first is walked, so the known one is found, and then pushed out.
        let mut burst: Vec<_> =
            (0..63).map(|n| addr::from_pod(0, addr::pod(2)).udp(1000 + 63 * round + n, 7, b"new")).collect();
        burst.push(known.clone());
        let mut out = world.burst(addr::pod_port(0), &burst);
        out.retain(|(_, frame)| look(frame).payload == b"known");
        assert_eq!(out.len(), 1);
        assert_eq!((out[0].0, look(&out[0].1).dst), (addr::pod_port(1), addr::pod(1)), "round {round}");
    }
    world.finish();
}
