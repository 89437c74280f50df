//! Finding again what a former process left, where there is so much of it that several threads do it.

use super::*;
use crate::conntrack::Direction;
use crate::wire::tcp_flags::{ACK, SYN};
use std::os::unix::fs::FileExt;

const CAPACITY: u32 = 160_000;

fn original(n: u32) -> Tuple {
    let src = Ip::v4([10, 1 + (n >> 16) as u8, (n >> 8) as u8, n as u8]);
    Tuple { src, dst: Ip::v4([10, 96, 0, 1]), sport: 40_000, dport: 80, proto: proto::TCP }
}

#[test]
fn a_large_table_is_found_whole_and_what_it_holds_twice_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("conntrack");
    let table = Conntrack::open(&path, CAPACITY, Timeouts::default()).unwrap();
    for n in 0..CAPACITY - 1000 {
        let conn = insert(&table, &original(n), SYN, 100).unwrap().conn;
        if n % 3 > 0 {
            table.update(conn, proto::TCP, Direction::Reply, SYN | ACK, 101);
            table.update(conn, proto::TCP, Direction::Original, ACK, 102);
        }
        if n % 50 == 7 {
            assert!(table.remove(conn));
        }
    }
    let before = listed(&table);
    drop(table);
    // Two places in different threads' stretches hold one connection.
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let (mut entry, place) = ([0; 128], |index: u64| 4096 + index * 128);
    file.read_exact_at(&mut entry, place(3)).unwrap();
    file.write_all_at(&entry, place(150_000)).unwrap();

    let table = Conntrack::open(&path, CAPACITY, Timeouts::default()).unwrap();
    let after = listed(&table);
    assert_eq!(table.iter().count(), after.len(), "no tuple twice");
    assert_eq!(table.summary().used, after.len());
    let replaced = original_at(&before, 150_000);
    for (tuple, connection) in &before {
        if Some(*tuple) == replaced {
            assert_eq!(table.lookup(tuple), None);
            continue;
        }
        let found = after[tuple];
        assert_eq!((found.tuples, found.state), (connection.tuples, connection.state));
        for tuple in connection.tuples {
            assert_eq!(table.lookup(&tuple).map(|found| found.tuples), Some(connection.tuples));
        }
    }
    check_sets(&table, &after);
}

fn original_at(connections: &BTreeMap<Tuple, Connection>, index: u32) -> Option<Tuple> {
    connections
        .values()
        .find(|connection| connection.conn.index == index)
        .map(|connection| connection.tuples[0])
}

/// As [`check`] does, but in linear time: each place is in the set that it belongs to.
fn check_sets(table: &Conntrack, connections: &BTreeMap<Tuple, Connection>) {
    let inner: &Inner = table.inner();
    let mut values = vec![Value::Free; CAPACITY as usize];
    for connection in connections.values() {
        values[connection.conn.index as usize] = worth(connection);
    }
    for (place, value) in (0..).zip(values) {
        for set in [Value::Free, Value::Over, Value::Opening, Value::Established] {
            assert_eq!(
                inner.ledger.holds(set, place),
                set == value,
                "place {place} is {value:?}, in {set:?}"
            );
        }
    }
}
