//! The connection table under several workers, across processes' lives, and over hostile files. Its rules one by
//! one, against a plain model, are tested where it is, in src/conntrack/tests/.

use fairway_dataplane::conntrack::{
    Conntrack, ConntrackError, Direction, InsertError, State, Timeouts, Tuple,
};
use fairway_dataplane::wire::{proto, tcp_flags};
use fairway_tables::{Ip, NextHop, NextHopKind, PortId};
use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

fn tuple(client: u16, server: u16, protocol: u8) -> Tuple {
    let ip = |n: u16| Ip::v4([10, 0, (n >> 8) as u8, n as u8]);
    Tuple { src: ip(client), dst: ip(1000 + server), sport: client, dport: 80, proto: protocol }
}

/// The reply of a connection to a service, from the backend that was chosen.
fn reply(original: &Tuple, backend: u16) -> Tuple {
    Tuple { dst: Ip::v4([10, 9, 0, backend as u8]), dport: 8080, ..*original }.reversed()
}

proptest! {
    #[test]
    fn hostile_files_never_harm_the_reader(
        noise in proptest::collection::vec((0usize..(4096 + 64 * 128), any::<u8>()), 0..400),
        cut in proptest::option::of(0u64..(4096 + 64 * 128)),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("conntrack");
        {
            let table = Conntrack::open(&path, 64, Timeouts::default()).unwrap();
            for client in 0..40 {
                let original = tuple(client, 0, proto::TCP);
                table.insert(&original, &original.reversed(), tcp_flags::SYN, None, 5).unwrap();
            }
        }
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, value) in noise {
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut as usize);
        }
        std::fs::write(&path, &bytes).unwrap();
        match Conntrack::open(&path, 64, Timeouts::default()) {
            Ok(table) => {
                prop_assert!(table.iter().count() <= 64);
                for client in 0..40 {
                    let original = tuple(client, 0, proto::TCP);
                    if let Some(found) = table.lookup(&original) {
                        prop_assert!(found.tuples.contains(&original));
                        table.update(found.conn, proto::TCP, Direction::Reply, tcp_flags::ACK, 6);
                        table.remove(found.conn);
                        prop_assert_eq!(table.lookup(&original), None);
                    }
                    let inserted = table.insert(&original, &original.reversed(), tcp_flags::SYN, None, 6);
                    prop_assert!(!matches!(inserted, Err(InsertError::Exists(_))));
                }
                let mut cursor = 0;
                table.expire(&mut cursor, 1000, u32::MAX / 2);
            }
            Err(ConntrackError::Foreign { .. }) => {}
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}

#[test]
fn what_is_left_to_another_node_outlives_the_process_with_its_way_and_its_place_is_anothers_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("conntrack");
    let via = NextHop::new(NextHopKind::Ipip, Ip([7; 16]), PortId(3));
    let (left, own) = (tuple(7, 1, proto::TCP), tuple(8, 1, proto::TCP));
    {
        let table = Conntrack::open(&path, 1000, Timeouts::default()).unwrap();
        let conn = table.insert_forwarded(&left, via, Some(4), 100).unwrap().conn;
        assert!(table.update(conn, proto::TCP, Direction::Original, tcp_flags::ACK, 102));
        table.insert(&own, &reply(&own, 3), tcp_flags::SYN, Some(4), 100).unwrap();
    }
    let table = Conntrack::open(&path, 1000, Timeouts::default()).unwrap();
    let found = table.lookup(&left).unwrap();
    assert_eq!((found.via, found.state, found.translated()), (Some(via), State::Established, left));
    assert_eq!(table.lookup(&own).unwrap().via, None);
    let listed = table.iter().find(|connection| connection.tuples[0] == left).unwrap();
    assert_eq!((listed.via, listed.replied, listed.service), (Some(via), false, Some(4)));
    // What takes its place is its own master.
    assert!(table.remove(found.conn));
    let next = tuple(9, 1, proto::TCP);
    let conn = table.insert(&next, &reply(&next, 3), tcp_flags::SYN, None, 110).unwrap().conn;
    assert_eq!(conn.index, found.conn.index, "the same place");
    assert_eq!(table.lookup(&next).unwrap().via, None);
}

#[test]
fn connections_outlive_the_process_that_opened_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("conntrack");
    let original = tuple(7, 1, proto::TCP);
    let back = reply(&original, 3);
    {
        let table = Conntrack::open(&path, 1000, Timeouts::default()).unwrap();
        let conn = table.insert(&original, &back, tcp_flags::SYN, Some(4), 100).unwrap().conn;
        assert!(table.update(conn, proto::TCP, Direction::Reply, tcp_flags::SYN | tcp_flags::ACK, 101));
        assert!(table.update(conn, proto::TCP, Direction::Original, tcp_flags::ACK, 102));
        let busy = Conntrack::open(&path, 1000, Timeouts::default());
        assert!(matches!(busy, Err(ConntrackError::Busy { .. })), "two engines never share the file");
    }
    let table = Conntrack::open(&path, 1000, Timeouts::default()).unwrap();
    let found = table.lookup(&back).unwrap();
    assert_eq!((found.direction, found.state), (Direction::Reply, State::Established));
    assert_eq!(found.tuples, [original, back]);
    assert_eq!(table.summary().used, 1);
    drop(table);
    let other = Conntrack::open(&path, 2000, Timeouts::default()).err().unwrap().to_string();
    assert!(other.contains("room for 1000 connections, not 2000") && other.contains("remove it"), "{other}");
}

#[test]
fn a_connection_half_written_when_its_writer_died_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("conntrack");
    let (one, two) = (tuple(1, 0, proto::TCP), tuple(2, 0, proto::TCP));
    {
        let table = Conntrack::open(&path, 4, Timeouts::default()).unwrap();
        for original in [one, two] {
            table.insert(&original, &original.reversed(), tcp_flags::SYN, None, 1).unwrap();
        }
    }
    // The sequence number is an entry's first word; odd says "being written".
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096] |= 1;
    std::fs::write(&path, &bytes).unwrap();
    let table = Conntrack::open(&path, 4, Timeouts::default()).unwrap();
    assert_eq!(table.lookup(&one), None);
    assert!(table.lookup(&two).is_some());
    assert_eq!(table.summary().used, 1);
    for client in 10..13 {
        let original = tuple(client, 0, proto::TCP);
        table.insert(&original, &original.reversed(), tcp_flags::SYN, None, 1).unwrap();
    }
    assert_eq!(table.summary().used, 4, "every place is to be had again");
}

#[test]
fn two_connections_never_share_a_reply() {
    let table = Conntrack::heap(16, Timeouts::default()).unwrap();
    let one = tuple(1, 0, proto::TCP);
    let other = tuple(1, 1, proto::TCP);
    let back = reply(&one, 5);
    table.insert(&one, &back, tcp_flags::SYN, None, 1).unwrap();
    let clash = table.insert(&other, &back, tcp_flags::SYN, None, 1);
    assert!(matches!(clash, Err(InsertError::Clash(Some(found))) if found.tuples == [one, back]));
    assert_eq!(table.lookup(&other), None);
    assert_eq!(table.summary().used, 1);
}

#[test]
fn a_place_given_to_another_connection_is_noticed() {
    let table = Conntrack::heap(1, Timeouts::default()).unwrap();
    let (one, two) = (tuple(1, 0, proto::UDP), tuple(2, 0, proto::UDP));
    let first = table.insert(&one, &one.reversed(), 0, None, 1).unwrap().conn;
    table.remove(first);
    let second = table.insert(&two, &two.reversed(), 0, None, 1).unwrap().conn;
    assert_eq!(first.index, second.index);
    assert!(!table.update(first, proto::UDP, Direction::Reply, 0, 2));
    table.remove(first);
    assert!(
        table.update(second, proto::UDP, Direction::Reply, 0, 2),
        "removing the old one leaves the new one"
    );
}

#[test]
fn each_state_lasts_its_own_time() {
    let table = Conntrack::heap(16, Timeouts::default()).unwrap();
    let (syn, udp) = (tuple(1, 0, proto::TCP), tuple(2, 0, proto::UDP));
    table.insert(&syn, &syn.reversed(), tcp_flags::SYN, None, 1000).unwrap();
    table.insert(&udp, &udp.reversed(), 0, None, 1000).unwrap();
    let mut cursor = 0;
    assert_eq!(table.expire(&mut cursor, 16, 1030), 0);
    assert_eq!(table.expire(&mut cursor, 16, 1031), 1);
    assert_eq!(table.lookup(&udp), None);
    assert_eq!(table.expire(&mut cursor, 16, 1120), 0);
    assert_eq!(table.expire(&mut cursor, 16, 1121), 1);
    assert_eq!(table.summary().used, 0);
}

/// Four workers insert, find, update and remove the same few connections. Whatever is found must be whole:
/// its reply tuple is the one that belongs to its original.
#[test]
fn several_workers_see_whole_connections_only() {
    let table = Conntrack::heap(24, Timeouts::default()).unwrap();
    let found = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for worker in 0..4u16 {
            let (table, found) = (table.clone(), &found);
            scope.spawn(move || {
                let mut random = u64::from(worker) * 0x9e37_79b9 + 1;
                for step in 0..60_000u32 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let client = (random >> 40) as u16 % 32;
                    let original = tuple(client, 0, proto::UDP);
                    let back = reply(&original, client);
                    match (random >> 33) % 4 {
                        0 => match table.insert(&original, &back, 0, None, step) {
                            Ok(_) | Err(InsertError::Full | InsertError::Share) => {}
                            Err(InsertError::Exists(other)) => assert_eq!(other.tuples, [original, back]),
                            Err(InsertError::Clash(_)) => panic!("no two tuples clash here"),
                        },
                        1 => {
                            if let Some(known) = table.lookup(&original) {
                                table.remove(known.conn);
                            }
                        }
                        _ => {
                            for asked in [original, back] {
                                if let Some(known) = table.lookup(&asked) {
                                    assert_eq!(known.tuples, [original, back]);
                                    table.update(known.conn, proto::UDP, known.direction, 0, step);
                                    found.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                        }
                    }
                }
            });
        }
    });
    assert!(found.load(Ordering::Relaxed) > 1000);
    let left: Vec<_> = table.iter().collect();
    assert_eq!(left.len(), table.summary().used);
    for connection in &left {
        table.remove(connection.conn);
    }
    assert_eq!(table.summary().used, 0, "every place comes back");
    for client in 0..24 {
        let original = tuple(client, 0, proto::UDP);
        table.insert(&original, &reply(&original, client), 0, None, 1).unwrap();
    }
}
