//! Whole workers over the memory driver: several of them, hand-off, both ways of polling, ports that come and
//! go; and the end of each, where every frame is home (I1) and every packet accounted for (I2).

mod common;

use common::rig::{ADAPTIVE, PODS, Rig, dropped, total};
use fairway_dataplane::crew::Tally;
use fairway_dataplane::testkit::addr;
use fairway_dataplane::wire::{proto, tcp_flags};
use fairway_dataplane::worker::PollMode;
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, Op};
use std::time::Duration;

/// Every pod sends to every other; with two workers half of the ways cross from one to the other.
fn all_to_all(workers: usize, poll: PollMode) -> Tally {
    let mut rig = Rig::new(workers, poll);
    for round in 0..50u16 {
        for from in 0..PODS {
            for to in (0..PODS).filter(|to| *to != from) {
                let frame =
                    addr::from_pod(from, addr::pod(to)).udp(1000 + round % 5, 7, &round.to_be_bytes());
                rig.send(addr::pod_port(from), &frame);
            }
        }
        for to in 0..PODS {
            for _ in 1..PODS {
                let bytes = rig.receive(addr::pod_port(to));
                assert_eq!(bytes[30..34], addr::pod(to));
                assert_eq!(bytes[42..44], round.to_be_bytes(), "packets of a flow stay in order");
            }
        }
    }
    rig.end()
}

#[test]
fn one_worker_forwards_between_all_pods() {
    let tally = all_to_all(1, ADAPTIVE);
    assert_eq!(total(&tally, Counter::TxPackets), 600);
    assert_eq!(total(&tally, Counter::HandoffOut), 0);
}

#[test]
fn several_workers_hand_packets_to_the_port_owner() {
    for (workers, crossing) in [(2, 8), (3, 10)] {
        let tally = all_to_all(workers, ADAPTIVE);
        assert_eq!(total(&tally, Counter::TxPackets), 600);
        assert_eq!(total(&tally, Counter::HandoffOut), 50 * crossing, "{workers} workers");
        assert_eq!(total(&tally, Counter::HandoffIn), 50 * crossing);
    }
}

#[test]
fn busy_workers_forward_as_well_and_never_sleep() {
    let tally = all_to_all(2, PollMode::Busy);
    assert_eq!(total(&tally, Counter::TxPackets), 600);
    assert_eq!(total(&tally, Counter::Sleeps), 0);
}

#[test]
fn an_idle_adaptive_worker_sleeps_and_a_packet_wakes_it() {
    let mut rig = Rig::new(1, ADAPTIVE);
    std::thread::sleep(Duration::from_millis(500));
    let slept = rig.stats.reader().snapshot().counter(Counter::Sleeps);
    assert!((1..100).contains(&slept), "{slept} sleeps of at most 100 ms in 500 ms");
    rig.send(addr::pod_port(0), &addr::from_pod(0, addr::pod(1)).udp(1, 2, b"x"));
    rig.wake();
    rig.receive(addr::pod_port(1));
    rig.end();
}

#[test]
fn a_port_closes_and_opens_again_while_packets_flow() {
    let mut rig = Rig::new(2, ADAPTIVE);
    let to_closed = addr::from_pod(0, addr::pod(1)).udp(1, 2, b"x");
    let to_open = addr::from_pod(0, addr::pod(2)).udp(1, 2, b"y");
    for _ in 0..3 {
        rig.send(addr::pod_port(0), &to_closed);
        rig.receive(addr::pod_port(1));
        rig.crew.close_port(addr::pod_port(1));
        for _ in 0..20 {
            rig.send(addr::pod_port(0), &to_closed);
            rig.send(addr::pod_port(0), &to_open);
            rig.receive(addr::pod_port(2));
        }
        let mut cache = rig.umem.cache();
        let port = addr::pod_port(1).index();
        let fresh = rig.open(port);
        std::mem::replace(&mut rig.peers[port], fresh).close(&mut cache);
        rig.crew.reap();
    }
    rig.send(addr::pod_port(0), &to_closed);
    rig.receive(addr::pod_port(1));
    let tally = rig.end();
    let dropped = dropped(&tally, DropReason::PortDown);
    assert!(dropped >= 3 * 19, "{dropped} packets to a closed port are counted as dropped");
}

#[test]
fn a_table_change_reaches_every_worker() {
    let mut rig = Rig::new(2, ADAPTIVE);
    let frame = addr::from_pod(0, addr::pod(1)).udp(1, 2, b"x");
    rig.send(addr::pod_port(0), &frame);
    rig.receive(addr::pod_port(1));
    rig.world.apply(Op::SetEndpoint(
        fairway_tables::Ip::v4(addr::pod(1)),
        fairway_tables::Endpoint::new(addr::pod_port(3), addr::pod_mac(1)),
    ));
    rig.send(addr::pod_port(0), &frame);
    rig.receive(addr::pod_port(3));
    rig.end();
}

#[test]
fn frames_on_the_way_when_the_end_comes_are_brought_home() {
    for _ in 0..10 {
        let mut rig = Rig::new(2, ADAPTIVE);
        for round in 0..200 {
            let (from, to) = (round % PODS, (round + 1) % PODS);
            rig.send(addr::pod_port(from), &addr::from_pod(from, addr::pod(to)).udp(round, 2, b"x"));
        }
        rig.end();
    }
}

/// A flow would use its entry for up to four seconds more, were its worker not told.
#[test]
fn the_next_packet_of_a_deleted_connection_begins_a_new_one() {
    let mut rig = Rig::new(2, ADAPTIVE);
    let vip = [10, 96, 0, 10];
    let segment = |flags| addr::from_pod(0, vip).tcp(40_000, 80, flags, b"");
    rig.world.set_service(vip, 80, proto::TCP, 1, &[(addr::pod(1), 8080)]);
    for flags in [tcp_flags::SYN, tcp_flags::ACK, tcp_flags::ACK] {
        rig.send(addr::pod_port(0), &segment(flags));
        rig.receive(addr::pod_port(1));
    }
    rig.world.set_service(vip, 80, proto::TCP, 1, &[(addr::pod(2), 8080)]);
    for _ in 0..3 {
        rig.send(addr::pod_port(0), &segment(tcp_flags::ACK));
        rig.receive(addr::pod_port(1));
    }
    let all: Vec<_> = rig.conntrack.iter().map(|connection| connection.conn).collect();
    assert_eq!(all.len(), 1);
    assert!(all.iter().all(|conn| rig.conntrack.remove(*conn)));
    rig.crew.recheck();
    rig.send(addr::pod_port(0), &segment(tcp_flags::ACK));
    rig.receive(addr::pod_port(2));
    assert_eq!(rig.conntrack.iter().count(), 1);
    rig.end();
}
