//! What the RFCs ask of translated sources (docs/nat.md, "What the RFCs ask") and what no other test shows: who is let in
//! at a translated port, how long it stays, and what does not end it. Invariants I1 and I2 at the end of every test.

mod common;

use common::tuples::{Place, Step, frame, ip, send, sent};
use fairway_dataplane::conntrack::{Timeouts, Tuple};
use fairway_dataplane::testkit::packet::Headers;
use fairway_dataplane::testkit::packet6::Headers6;
use fairway_dataplane::testkit::{World, WorldConfig, addr};
use fairway_dataplane::wire::{ETH_LEN, icmp, icmpv6, proto};
use fairway_tables::{Ip, Mac};

const FAMILIES: [bool; 2] = [true, false];

fn world() -> World {
    let mut world = World::new(WorldConfig::default());
    world.open_outside();
    world
}

fn pod(n: u16, is_v4: bool) -> Ip {
    ip(addr::pod(n), addr::pod6(n), is_v4)
}

fn outside(n: u8, is_v4: bool) -> Ip {
    ip(addr::outside(n), addr::outside6(n), is_v4)
}

fn to(n: u8, is_v4: bool, proto: u8) -> Tuple {
    Tuple { src: pod(0, is_v4), dst: outside(n, is_v4), sport: 40_000, dport: 53, proto }
}

/// A pod's connection to the outside, answered once; how it leaves.
fn open(world: &mut World, arrives: &Tuple) -> Tuple {
    let (place, leaves) = send(world, Place::Pod(0), arrives, Step::Open).expect("forwarded");
    assert_eq!(place, Place::Wire);
    let answer = send(world, Place::Wire, &leaves.reversed(), Step::Answer);
    assert_eq!(answer, Some((Place::Pod(0), arrives.reversed())));
    leaves
}

#[test]
fn only_the_peer_comes_in_at_a_translated_port() {
    // RFC 4787 REQ-8, RFC 5382 REQ-3: filtering by address and port.
    for is_v4 in FAMILIES {
        for protocol in [proto::UDP, proto::TCP, proto::SCTP] {
            let mut world = world();
            let leaves = open(&mut world, &to(1, is_v4, protocol));
            let peer = leaves.reversed();
            for stranger in [
                Tuple { sport: 54, ..peer },
                Tuple { src: outside(2, is_v4), ..peer },
                Tuple { dport: peer.dport - 1, ..peer },
            ] {
                for step in [Step::Open, Step::Answer] {
                    let left = send(&mut world, Place::Wire, &stranger, step);
                    assert_eq!(left, Some((Place::Host, stranger)), "the node's own stack's business");
                }
            }
            // Nor another pod, at the node's address (RFC 4787 REQ-9: nothing to hairpin).
            let from_pod = Tuple { src: pod(1, is_v4), sport: 53, ..peer };
            let left = send(&mut world, Place::Pod(1), &from_pod, Step::Open).map(|(place, _)| place);
            assert_eq!(left, Some(Place::Host));
            world.finish();
        }
    }
}

#[test]
fn a_mapping_lasts_as_long_as_the_rfcs_ask_and_what_the_pod_sends_renews_it() {
    // RFC 4787 REQ-5 and REQ-6, RFC 5508 REQ-2, RFC 5382 REQ-5; of SCTP, seven of the heartbeats of RFC 9260 section 16.
    let kinds = [(proto::UDP, 120), (proto::ICMP, 60), (proto::TCP, 7440), (proto::SCTP, 210)];
    for (protocol, least_s) in kinds {
        let mut world = world();
        let mut arrives = to(1, true, protocol);
        if protocol == proto::ICMP {
            arrives.dport = arrives.sport;
        }
        let leaves = open(&mut world, &arrives);
        assert_eq!(send(&mut world, Place::Pod(0), &arrives, Step::More), Some((Place::Wire, leaves)));
        for _ in 0..3 {
            world.now.seconds += least_s - 4;
            world.worker.conntrack.expire(&mut 0, 100_000, world.now.seconds);
            let answer = send(&mut world, Place::Wire, &leaves.reversed(), Step::Answer);
            assert_eq!(answer, Some((Place::Pod(0), arrives.reversed())), "after {least_s} s");
            assert_eq!(send(&mut world, Place::Pod(0), &arrives, Step::More), Some((Place::Wire, leaves)));
        }
        world.now.seconds += Timeouts::default().tcp_established_s + 60;
        world.worker.conntrack.expire(&mut 0, 100_000, world.now.seconds);
        assert_eq!(world.worker.conntrack.lookup(&arrives), None, "but not for ever");
        world.finish();
    }
}

#[test]
fn an_icmp_error_ends_no_mapping() {
    // RFC 4787 REQ-12, RFC 5382 REQ-9 and REQ-10, RFC 5508 REQ-6.
    for is_v4 in FAMILIES {
        for protocol in [proto::UDP, proto::TCP, proto::SCTP] {
            let mut world = world();
            let arrives = to(1, is_v4, protocol);
            let by_pod = frame(Place::Pod(0), &arrives, Step::Open);
            let (port, by_node) = world.send(addr::pod_port(0), &by_pod).expect("forwarded");
            let (_, leaves) = sent(port, &by_node);
            let (from, own) = (leaves.dst, leaves.src);
            let src_mac = Mac([2, 9, 9, 9, 9, 9]);
            let error = match (from.as_v4(), own.as_v4()) {
                (Some(src), Some(dst)) => {
                    let mut message = vec![0; icmp::LEN];
                    message.extend_from_slice(&by_node[ETH_LEN..][..28]);
                    icmp::write_error(&mut message, icmp::UNREACHABLE, 3, 0);
                    Headers { dst_mac: addr::UPLINK_MAC, src_mac, src, dst, ttl: 60 }
                        .around(proto::ICMP, &message)
                }
                _ => {
                    let headers = Headers6 {
                        dst_mac: addr::UPLINK_MAC,
                        src_mac,
                        src: from.0,
                        dst: own.0,
                        hop_limit: 60,
                    };
                    headers.icmp(icmpv6::UNREACHABLE, 4, [0; 4], &by_node[ETH_LEN..])
                }
            };
            let told = world.send(addr::UPLINK, &error).map(|(port, _)| port);
            assert_eq!(told, Some(addr::pod_port(0)), "the pod is told");
            let answer = send(&mut world, Place::Wire, &leaves.reversed(), Step::Answer);
            assert_eq!(answer, Some((Place::Pod(0), arrives.reversed())), "and may still be answered");
            world.finish();
        }
    }
}
