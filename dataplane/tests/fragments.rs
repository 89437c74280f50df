//! Fragments: packets too large for their way leave in parts that make up the whole again, datagrams in fragments go
//! through services in any order, and neither costs more than its bounds. Invariants I1 and I2 at the end of every test.

mod common;

use common::{drops, look, six};
use fairway_dataplane::fragment::{Fragments, LIFETIME_SECONDS, MAX_WAITING, MAX_WAITING_PER_SOURCE};
use fairway_dataplane::testkit::{World, WorldConfig, addr, packet, packet6};
use fairway_dataplane::wire::{ETH_LEN, be16, ipip, ipv4, ipv6, proto, put16, tcp_flags, udp_tunnel, vxlan};
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, Ip, Mac, NextHopKind, Op, Port, PortId, PortKind, ServiceKey};
use proptest::prelude::*;

const VIP: [u8; 4] = [10, 96, 0, 10];
const VIP6: [u8; 16] = [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
/// The other node.
const N: u8 = 1;

/// A world whose uplink takes IP packets of at most `mtu` bytes, and which sends to node `N` so.
fn world(kind: NextHopKind, mtu: u32) -> World {
    let mut world = World::new(WorldConfig { frames: 1024, ..WorldConfig::default() });
    let uplink = Port::new("uplink0", PortKind::Uplink, mtu, addr::UPLINK_MAC, Mac::ZERO).unwrap();
    world.apply(Op::SetPort(addr::UPLINK, uplink));
    world.set_way(N, kind);
    // With this seed the pods are in different sets.
    world.worker.fragments = Fragments::new(7);
    world
}

/// Ethernet header and IP packet of what left by the uplink.
fn bare(kind: NextHopKind, frame: &[u8]) -> Vec<u8> {
    let at = match kind {
        NextHopKind::Tunnel => vxlan::HEADER_LEN,
        NextHopKind::Ipip => ipip::HEADER_LEN,
        NextHopKind::UdpTunnel => udp_tunnel::HEADER_LEN,
        _ => ETH_LEN,
    };
    let mut ethernet = frame[..ETH_LEN].to_vec();
    ethernet[12..].copy_from_slice(if frame[at] >> 4 == 6 { &[0x86, 0xdd] } else { &[8, 0] });
    [&ethernet, &frame[at..]].concat()
}

/// A fragment's offset in bytes, whether more follow, and its data.
fn piece(frame: &[u8]) -> (usize, bool, &[u8]) {
    let ip = &frame[ETH_LEN..];
    if ip[0] >> 4 == 6 {
        assert_eq!(ip[6], 44, "a fragment header");
        let word = be16(ip, ipv6::LEN + 2);
        return (usize::from(word & !7), word & 1 != 0, &ip[ipv6::LEN + 8..]);
    }
    ipv4::Header::parse(ip).expect("a right header");
    let word = be16(ip, ipv4::FRAGMENT);
    let header_len = usize::from(ip[0] & 0xf) * 4;
    (usize::from(word & ipv4::OFFSET) * 8, word & ipv4::MF != 0, &ip[header_len..])
}

/// Puts fragments together as their receiver does: the whole packet under the first one's headers.
fn reassemble(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut pieces: Vec<_> = frames.iter().map(|frame| (piece(frame), frame)).collect();
    pieces.sort_by_key(|((offset, ..), _)| *offset);
    let first = pieces[0].1;
    let is_v6 = first[ETH_LEN] >> 4 == 6;
    let header_len = if is_v6 { ipv6::LEN } else { usize::from(first[ETH_LEN] & 0xf) * 4 };
    let mut whole = first[..ETH_LEN + header_len].to_vec();
    let mut data = Vec::new();
    for (index, ((offset, more, bytes), _)) in pieces.iter().enumerate() {
        assert_eq!(*offset, data.len(), "no gap and no overlap");
        assert_eq!(*more, index + 1 < pieces.len(), "the last one, and only that, says so");
        data.extend_from_slice(bytes);
    }
    if is_v6 {
        whole[ETH_LEN + 6] = first[ETH_LEN + ipv6::LEN];
        put16(&mut whole, ETH_LEN + 4, data.len() as u16);
    } else {
        put16(&mut whole, ETH_LEN + 2, (header_len + data.len()) as u16);
        put16(&mut whole, ETH_LEN + ipv4::FRAGMENT, 0);
        packet::mend_ip_checksum(&mut whole);
    }
    whole.extend(data);
    whole
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ n >> 8) as u8).collect()
}

/// Sends frames in bursts; returns what leaves.
fn send_all(world: &mut World, port: PortId, frames: &[Vec<u8>]) -> Vec<(PortId, Vec<u8>)> {
    frames.chunks(32).flat_map(|burst| world.burst(port, burst)).collect()
}

/// What leaves by the only port by which something leaves, tunnels' headers off.
fn all_by(port: PortId, sent: Vec<(PortId, Vec<u8>)>) -> Vec<Vec<u8>> {
    let strip = |(by, frame): (PortId, Vec<u8>)| {
        assert_eq!(by, port);
        if port == addr::UPLINK { bare(NextHopKind::Tunnel, &frame) } else { frame }
    };
    sent.into_iter().map(strip).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_packet_too_large_for_its_way_leaves_in_parts_that_make_it_up_again(
        way in 0usize..4,
        mtu in 256u32..1500,
        len in 1usize..1600,
        offset in prop_oneof![Just(0u16), 3u16..4000],
        more: bool,
        options in prop_oneof![Just(vec![]), Just(vec![0x94, 4, 0, 0]), Just(vec![7, 7, 4, 0, 0, 0, 0, 1])],
    ) {
        let kind =
            [NextHopKind::Tunnel, NextHopKind::Ipip, NextHopKind::UdpTunnel, NextHopKind::Gateway][way];
        let overhead = [50, 20, 28, 0][way];
        let mut world = world(kind, mtu);
        let headers = addr::from_pod(0, addr::remote_pod(N, 9));
        // A later fragment goes its first one's way.
        if offset > 0 {
            let mut first = headers.around(99, &[0; 8]);
            put16(&mut first, ETH_LEN + ipv4::FRAGMENT, ipv4::MF);
            packet::mend_ip_checksum(&mut first);
            world.send(addr::pod_port(0), &first).unwrap();
        }
        let len = if more { len.next_multiple_of(8) } else { len };
        let mut sent = headers.around(99, &pattern(len));
        put16(&mut sent, ETH_LEN + ipv4::FRAGMENT, offset | if more { ipv4::MF } else { 0 });
        packet::add_options(&mut sent, &options);
        let generated = world.worker.counters.get(Counter::GeneratedPackets);
        let parts: Vec<Vec<u8>> = world
            .burst(addr::pod_port(0), std::slice::from_ref(&sent))
            .into_iter()
            .map(|(port, frame)| {
                assert_eq!(port, addr::UPLINK);
                assert!(frame.len() - ETH_LEN <= mtu as usize, "{} bytes on a wire of {mtu}", frame.len());
                bare(kind, &frame)
            })
            .collect();

        let largest = mtu as usize - overhead;
        let fits = sent.len() - ETH_LEN <= largest;
        prop_assert_eq!(parts.len() == 1, fits);
        let mut data = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let (at, more_after, bytes) = piece(part);
            let last = index + 1 == parts.len();
            prop_assert_eq!(at, usize::from(offset) * 8 + data.len(), "in order");
            prop_assert_eq!(more_after, !last || more);
            prop_assert!(last || part.len() - ETH_LEN + 8 > largest - 8, "as few as can be");
            let option = &part[ETH_LEN + 20..part.len() - bytes.len()];
            let copied = options.first().is_some_and(|kind| kind & 0x80 != 0);
            let expected = if index == 0 || copied { &options[..] } else { &[] };
            prop_assert_eq!(option, expected);
            // Type of service, identification, protocol, addresses; one hop less.
            prop_assert_eq!(part[ETH_LEN + 1], sent[ETH_LEN + 1]);
            prop_assert_eq!(&part[ETH_LEN + 4..ETH_LEN + 6], &sent[ETH_LEN + 4..ETH_LEN + 6]);
            prop_assert_eq!(part[ETH_LEN + 8], sent[ETH_LEN + 8] - 1);
            prop_assert_eq!(&part[ETH_LEN + 9..ETH_LEN + 10], &sent[ETH_LEN + 9..ETH_LEN + 10]);
            prop_assert_eq!(&part[ETH_LEN + 12..ETH_LEN + 20], &sent[ETH_LEN + 12..ETH_LEN + 20]);
            data.extend_from_slice(bytes);
        }
        prop_assert_eq!(data, pattern(len));
        let made = world.worker.counters.get(Counter::GeneratedPackets) - generated;
        prop_assert_eq!(made as usize, parts.len() - 1);
        prop_assert_eq!(world.worker.counters.get(Counter::FragmentedPackets), u64::from(!fits));
        world.finish();
    }
}

#[test]
fn a_translated_packet_is_translated_before_it_is_cut() {
    let mut world = world(NextHopKind::Tunnel, 600);
    world.set_service(VIP, 80, proto::UDP, 1, &[(addr::remote_pod(N, 7), 8080)]);
    let mut sent = addr::from_pod(0, VIP).udp(1000, 80, &pattern(1400));
    packet::allow_fragments(&mut sent);
    // The first walks, the second hits.
    for _ in 0..2 {
        let parts = all_by(addr::UPLINK, world.burst(addr::pod_port(0), std::slice::from_ref(&sent)));
        assert_eq!(parts.len(), 3);
        let seen = look(&reassemble(&parts));
        assert_eq!((seen.dst, seen.dport, seen.payload), (addr::remote_pod(N, 7), 8080, pattern(1400)));
    }
    world.finish();
}

#[test]
fn a_packet_not_to_be_fragmented_is_answered_and_ipv6_always() {
    let mut world = world(NextHopKind::Tunnel, 1300);
    let four = addr::from_pod(0, addr::remote_pod(N, 9)).udp(1, 2, &[7; 1300]);
    let six = addr::from_pod6(0, addr::remote_pod6(N, 9)).udp(1, 2, &[7; 1300]);
    for sent in [four, six] {
        let (port, _) = world.send(addr::pod_port(0), &sent).unwrap();
        assert_eq!(port, addr::pod_port(0));
    }
    assert_eq!(drops(&world, DropReason::TooBig), 2);
    assert_eq!(world.worker.counters.get(Counter::FragmentedPackets), 0);
    world.finish();
}

#[test]
fn without_free_frames_a_packet_is_not_cut_and_nothing_is_lost() {
    let mut world = world(NextHopKind::Tunnel, 600);
    let mut sent = addr::from_pod(0, addr::remote_pod(N, 9)).udp(1, 2, &[7; 1400]);
    packet::allow_fragments(&mut sent);
    let mut taken: Vec<_> = std::iter::from_fn(|| world.cache.alloc()).collect();
    // One for the packet itself and one for a part, of which there are three.
    taken.drain(..2).for_each(|frame| world.cache.free(frame));
    assert_eq!(world.send(addr::pod_port(0), &sent), None);
    assert_eq!(drops(&world, DropReason::NoFrames), 1);
    taken.drain(..).for_each(|frame| world.cache.free(frame));
    assert_eq!(world.burst(addr::pod_port(0), &[sent]).len(), 3);
    world.finish();
}

#[test]
fn a_whole_burst_to_be_cut_is_sent_up_to_the_batchs_bound() {
    let mut world = world(NextHopKind::Tunnel, 300);
    let mut sent = addr::from_pod(0, addr::remote_pod(N, 9)).udp(1, 2, &[7; 1400]);
    packet::allow_fragments(&mut sent);
    let out = world.burst(addr::pod_port(0), &vec![sent; 64]);
    assert_eq!(out.len(), fairway_dataplane::tx::MAX_BATCH);
    let made = world.worker.counters.get(Counter::GeneratedPackets) + 64;
    assert_eq!(drops(&world, DropReason::TxFull) + out.len() as u64, made);
    world.finish();
}

/// Client pod 0's datagram to the service and the answer, in fragments of either family, in any order of each.
fn through_a_service(is_v6: bool, len: usize, backend_is_remote: bool, order: &[usize]) {
    let mut world = world(NextHopKind::Tunnel, 1500);
    let payload = pattern(len);
    let port = if backend_is_remote { addr::UPLINK } else { addr::pod_port(1) };
    let wrap = |frame: Vec<u8>| {
        if backend_is_remote { packet::encapsulate(&addr::encap_from(N), &frame, 50_000) } else { frame }
    };
    let shuffled = |mut frames: Vec<Vec<u8>>| {
        for (index, to) in order.iter().enumerate() {
            let (index, to) = (index % frames.len(), to % frames.len());
            frames.swap(index, to);
        }
        frames
    };
    let (request, answer) = if is_v6 {
        let backend = if backend_is_remote { addr::remote_pod6(N, 7) } else { addr::pod6(1) };
        world.set_service_at(ServiceKey::new(Ip(VIP6), 80, proto::UDP), 1, &[(Ip(backend), 8080)]);
        let request = addr::from_pod6(0, VIP6).udp(1000, 80, &payload);
        let headers = match backend_is_remote {
            true => addr::from_remote6(backend, addr::pod6(0)),
            false => addr::from_pod6(1, addr::pod6(0)),
        };
        let answer = headers.udp(8080, 1000, &payload);
        (packet6::fragments(&request, 1392, 0x1234_5678), packet6::fragments(&answer, 1392, 9))
    } else {
        let backend = if backend_is_remote { addr::remote_pod(N, 7) } else { addr::pod(1) };
        world.set_service(VIP, 80, proto::UDP, 1, &[(backend, 8080)]);
        let request = addr::from_pod(0, VIP).udp(1000, 80, &payload);
        let headers = match backend_is_remote {
            true => addr::from_remote(backend, addr::pod(0)),
            false => addr::from_pod(1, addr::pod(0)),
        };
        let answer = headers.udp(8080, 1000, &payload);
        (packet::fragments(&request, 1424), packet::fragments(&answer, 1424))
    };
    let count = request.len();
    let there = all_by(port, send_all(&mut world, addr::pod_port(0), &shuffled(request)));
    assert_eq!(there.len(), count);
    let answer: Vec<_> = answer.into_iter().map(wrap).collect();
    let back = all_by(addr::pod_port(0), send_all(&mut world, port, &shuffled(answer)));
    if is_v6 {
        let (there, back) = (six::look(&reassemble(&there)), six::look(&reassemble(&back)));
        assert_eq!((there.sport, there.dport, there.payload == payload), (1000, 8080, true));
        assert_eq!((back.src, back.sport, back.dport, back.payload == payload), (VIP6, 80, 1000, true));
    } else {
        let (there, back) = (look(&reassemble(&there)), look(&reassemble(&back)));
        assert_eq!((there.sport, there.dport, there.payload == payload), (1000, 8080, true));
        assert_eq!((back.src, back.sport, back.dport, back.payload == payload), (VIP, 80, 1000, true));
    }
    assert_eq!(world.worker.fragments.waiting(), 0);
    assert_eq!(world.worker.conntrack.iter().count(), 1);
    world.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn datagrams_go_through_a_service_and_back_in_whatever_order_their_fragments_come(
        is_v6: bool,
        len in 1500usize..65_000,
        backend_is_remote: bool,
        order in proptest::collection::vec(0usize..64, 0..64),
    ) {
        through_a_service(is_v6, len, backend_is_remote, &order);
    }
}

#[test]
fn the_largest_datagram_may_come_last_fragment_first() {
    for is_v6 in [false, true] {
        // Swaps each of the first half with its opposite.
        let count = 65_500_usize.div_ceil(if is_v6 { 1392 } else { 1424 });
        let order: Vec<usize> = (0..count / 2).map(|index| count - 1 - index).collect();
        through_a_service(is_v6, 65_480, true, &order);
    }
}

/// The fragments of a datagram from pod `n` to pod 3 with this identification, of 100 bytes of payload each.
fn datagram(n: u16, id: u16, parts: usize) -> Vec<Vec<u8>> {
    let mut frame = addr::from_pod(n, addr::pod(3)).udp(1000, 2000, &pattern(parts * 104 - 8));
    put16(&mut frame, ETH_LEN + ipv4::IDENTIFICATION, id);
    packet::fragments(&frame, 104)
}

#[test]
fn fragments_wait_for_their_first_within_bounds_of_number_and_time() {
    let mut world = world(NextHopKind::Tunnel, 1500);
    let parts = datagram(0, 1, 4);
    assert!(send_all(&mut world, addr::pod_port(0), &parts[1..]).is_empty());
    assert_eq!(world.worker.fragments.waiting(), 3);
    let out = all_by(addr::pod_port(3), world.burst(addr::pod_port(0), &parts[..1]));
    assert_eq!(look(&reassemble(&out)).payload, pattern(4 * 104 - 8));

    // One source may not have more than its share wait, and others still can.
    let limit = usize::from(MAX_WAITING_PER_SOURCE);
    for id in 0..100 {
        send_all(&mut world, addr::pod_port(0), &datagram(0, 100 + id, 3)[1..]);
        assert!(world.worker.fragments.waiting() <= limit);
    }
    let refused = drops(&world, DropReason::FragmentLimit);
    assert_eq!(refused as usize + world.worker.fragments.waiting(), 200);
    send_all(&mut world, addr::pod_port(1), &datagram(1, 1, 2)[1..]);
    assert_eq!(drops(&world, DropReason::FragmentLimit), refused);
    let waiting = world.worker.fragments.waiting() as u64;

    world.now.seconds += LIFETIME_SECONDS;
    world.worker.expire_fragments(world.now, &mut world.cache);
    assert_eq!(drops(&world, DropReason::FragmentTimeout), 0);
    world.now.seconds += 1;
    world.worker.expire_fragments(world.now, &mut world.cache);
    assert_eq!(drops(&world, DropReason::FragmentTimeout), waiting);
    assert_eq!((world.worker.fragments.waiting(), world.frames_out()), (0, 0));
    world.finish();
}

#[test]
fn a_flood_of_forged_sources_takes_no_more_than_the_bound_and_nothing_from_pods() {
    let mut world = world(NextHopKind::Tunnel, 1500);
    let own = datagram(1, 1, 2);
    send_all(&mut world, addr::pod_port(1), &own[1..]);
    // Pod 0 claims other addresses, pod 1's too; its port is known.
    for n in 0..1000u16 {
        let [a, b] = n.to_be_bytes();
        let src = if n % 2 == 0 { addr::pod(1) } else { [10, 1, a, b] };
        let headers = packet::Headers { src, ..addr::from_pod(0, addr::pod(3)) };
        let mut forged = headers.udp(1000, 2000, &[0; 200]);
        put16(&mut forged, ETH_LEN + ipv4::IDENTIFICATION, n);
        world.burst(addr::pod_port(0), &packet::fragments(&forged, 104)[1..]);
    }
    assert!(world.worker.fragments.waiting() <= usize::from(MAX_WAITING_PER_SOURCE) + 1);
    assert_eq!(world.burst(addr::pod_port(1), &own[..1]).len(), 2, "pod 1's datagram is whole");
    // From outside, where the source is all there is to go by, the whole is bounded.
    for n in 0..2000u16 {
        let [a, b] = n.to_be_bytes();
        let headers = addr::directly_from(N, [172, 16, a, b], addr::pod(3));
        world.burst(addr::UPLINK, &packet::fragments(&headers.udp(1, 2, &[0; 200]), 104)[1..]);
    }
    assert_eq!(world.worker.fragments.waiting(), usize::from(MAX_WAITING));
    world.finish();
}

#[test]
fn attacks_by_fragments_are_dropped_and_counted() {
    let headers = addr::from_pod(0, addr::pod(3));
    let fragment = |protocol: u8, offset: u16, more: bool, data: &[u8]| {
        let mut frame = headers.around(protocol, data);
        put16(&mut frame, ETH_LEN + ipv4::FRAGMENT, offset | if more { ipv4::MF } else { 0 });
        packet::mend_ip_checksum(&mut frame);
        frame
    };
    let udp = headers.udp(1000, 2000, &pattern(392))[ETH_LEN + 20..].to_vec();
    let tcp = headers.tcp(1000, 2000, tcp_flags::SYN, &pattern(392))[ETH_LEN + 20..].to_vec();
    let first = |protocol| fragment(protocol, 0, true, &[9; 64]);
    // Frames, how many of them leave, and how many are dropped as bad.
    let cases: [(&str, Vec<Vec<u8>>, usize, u64); 9] = [
        ("tiny first fragment (RFC 1858)", vec![fragment(proto::TCP, 0, true, &tcp[..16])], 0, 1),
        ("a first fragment without ports", vec![fragment(proto::UDP, 0, true, &[])], 0, 1),
        (
            "a fragment within the TCP header (RFC 3128)",
            vec![first(proto::TCP), fragment(proto::TCP, 1, false, &tcp[8..])],
            1,
            1,
        ),
        (
            "teardrop: overlap, and all that follows",
            vec![
                fragment(proto::UDP, 0, true, &udp[..80]),
                fragment(proto::UDP, 5, true, &udp[40..120]),
                fragment(proto::UDP, 15, true, &udp[120..200]),
                fragment(proto::UDP, 25, false, &udp[200..]),
            ],
            1,
            3,
        ),
        (
            "overlap before the first has come",
            vec![
                fragment(proto::UDP, 10, true, &udp[80..160]),
                fragment(proto::UDP, 12, false, &udp[96..]),
                fragment(proto::UDP, 0, true, &udp[..80]),
            ],
            0,
            3,
        ),
        (
            "the same again",
            vec![
                fragment(proto::UDP, 0, true, &udp[..80]),
                fragment(proto::UDP, 10, true, &udp[80..160]),
                fragment(proto::UDP, 10, true, &udp[80..160]),
                fragment(proto::UDP, 20, false, &udp[160..]),
            ],
            3,
            1,
        ),
        ("ping of death", vec![fragment(proto::UDP, 8190, false, &[0; 100])], 0, 1),
        ("no whole number of units, and more", vec![fragment(proto::UDP, 0, true, &udp[..81])], 0, 1),
        (
            "beyond the end",
            vec![
                fragment(proto::UDP, 0, true, &udp[..80]),
                fragment(proto::UDP, 20, false, &udp[160..240]),
                fragment(proto::UDP, 40, true, &[0; 8]),
            ],
            2,
            1,
        ),
    ];
    for (what, frames, leave, bad) in cases {
        let mut world = world(NextHopKind::Tunnel, 1500);
        let out = frames.iter().filter(|frame| world.send(addr::pod_port(0), frame).is_some()).count();
        assert_eq!((out, drops(&world, DropReason::BadFragment)), (leave, bad), "{what}");
        assert_eq!(world.frames_out(), 0, "{what}");
        world.finish();
    }
}

#[test]
fn an_identification_may_be_used_again_for_the_next_datagram() {
    let mut world = world(NextHopKind::Tunnel, 1500);
    let parts = datagram(0, 7, 3);
    // A whole one is forgotten at once.
    for _ in 0..3 {
        assert_eq!(world.burst(addr::pod_port(0), &parts).len(), 3);
    }
    // One that lost its last gives way to the next first.
    assert_eq!(world.burst(addr::pod_port(0), &parts[..2]).len(), 2);
    assert_eq!(world.burst(addr::pod_port(0), &parts).len(), 3);
    assert_eq!(drops(&world, DropReason::BadFragment), 0);
    world.finish();
}

#[test]
fn more_datagrams_at_once_than_a_source_has_places_lose_the_oldest_only() {
    let mut world = world(NextHopKind::Tunnel, 1500);
    for id in 0..1000 {
        assert_eq!(world.burst(addr::pod_port(0), &datagram(0, id, 3)[..2]).len(), 2);
    }
    assert_eq!(world.burst(addr::pod_port(0), &datagram(0, 999, 3)[2..]).len(), 1, "the latest is known");
    assert_eq!(world.burst(addr::pod_port(0), &datagram(0, 0, 3)[2..]).len(), 0, "the oldest is not");
    world.finish();
}

#[test]
fn fragments_of_a_refused_datagram_are_refused_with_its_first() {
    let mut world = world(NextHopKind::Tunnel, 1500);
    let spoofed = packet::Headers { src: addr::pod(2), ..addr::from_pod(0, addr::pod(3)) };
    let out = world.burst(addr::pod_port(0), &packet::fragments(&spoofed.udp(1, 2, &[7; 300]), 104));
    assert_eq!((out.len(), drops(&world, DropReason::SpoofedSource)), (0, 3));
    // An error is told about the first alone.
    let dying = packet::Headers { ttl: 1, ..addr::from_pod(0, addr::pod(3)) };
    let out = world.burst(addr::pod_port(0), &packet::fragments(&dying.udp(1, 2, &[7; 300]), 104));
    assert_eq!((out.len(), drops(&world, DropReason::TtlExceeded)), (1, 3));
    world.finish();
}

#[test]
fn a_long_echo_goes_through_and_long_errors_do_not() {
    let mut world = world(NextHopKind::Tunnel, 1500);
    let ping = addr::from_pod(0, addr::pod(3)).echo(8, 77, 1, &pattern(5000));
    assert_eq!(world.burst(addr::pod_port(0), &packet::fragments(&ping, 1424)).len(), 4);
    let to_gateway = addr::from_pod(0, addr::GATEWAY).echo(8, 77, 1, &pattern(2000));
    assert!(world.burst(addr::pod_port(0), &packet::fragments(&to_gateway, 1424)).is_empty());
    assert_eq!(drops(&world, DropReason::NotForUs), 2, "the engine puts nothing together");
    let error = addr::from_pod(0, addr::pod(3)).around(proto::ICMP, &[3; 2000]);
    assert!(world.burst(addr::pod_port(0), &packet::fragments(&error, 1424)[..1]).is_empty());
    assert_eq!(drops(&world, DropReason::Fragment), 1);
    world.finish();
}
