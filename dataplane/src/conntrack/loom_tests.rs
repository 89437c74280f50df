//! Small cases in every interleaving, up to a number of preemptions (`LOOM_MAX_PREEMPTIONS`, 2 unless it is
//! set, and at most 3). What this does not cover is listed in docs/conntrack.md.

use super::places::Places;
use super::table::Inner;
use super::value::Value;
use super::{Conntrack, Direction, InsertError, State, Timeouts, Tuple};
use crate::wire::proto;
use crate::wire::tcp_flags::{ACK, FIN, SYN};
use fairway_tables::Ip;
use std::sync::Arc;

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // Each further preemption takes several times as long: some 20 s with two, 110 s with three.
    builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(2).min(3));
    builder.max_branches = 20_000;
    builder.check(run);
}

/// Only ports and protocol are kept under the model checker.
fn tuple(n: u16) -> Tuple {
    let any = Ip([0; 16]);
    Tuple { src: any, dst: any, sport: n, dport: 80, proto: proto::TCP }
}

fn reply(original: &Tuple) -> Tuple {
    Tuple { dport: 8080, ..*original }.reversed()
}

fn heap(capacity: u32) -> Conntrack {
    Conntrack::heap(capacity, Timeouts::default()).unwrap()
}

fn insert(table: &Conntrack, n: u16, now_s: u32) -> Result<super::Inserted, InsertError> {
    table.insert(&tuple(n), &reply(&tuple(n)), SYN, None, now_s)
}

/// What holds when nothing is under way: each connection is found by both tuples and is in its set, all others
/// are free, and the counts are right.
fn check(table: &Conntrack) {
    let inner: &Inner = table.inner();
    let all: Vec<_> = table.iter().collect();
    assert_eq!(table.summary().used, all.len());
    let mut openings = 0;
    for connection in &all {
        for tuple in connection.tuples {
            assert_eq!(table.lookup(&tuple).map(|found| found.conn), Some(connection.conn));
        }
        let value = inner.value(connection.conn.index);
        openings += i32::from(value == Value::Opening);
        assert!(inner.ledger.holds(value, connection.conn.index));
    }
    assert_eq!(inner.ledger.openings(inner.ledger.source(&Ip([0; 16]))), openings);
    for place in 0..table.summary().capacity as u32 {
        let used = all.iter().any(|connection| connection.conn.index == place);
        assert_eq!(inner.ledger.holds(Value::Free, place), !used);
    }
}

#[test]
fn a_set_loses_no_place_while_others_come_and_go() {
    model(|| {
        let places = Arc::new(Places::new(64));
        places.insert(1);
        let other = places.clone();
        let thread = loom::thread::spawn(move || {
            assert!(other.remove(1));
            other.insert(2);
            assert!(other.next(2) == Some(2));
        });
        places.insert(3);
        assert!(places.next(3) == Some(3));
        thread.join().unwrap();
        assert_eq!((places.next(0), places.next(3), places.next(4)), (Some(2), Some(3), Some(2)));
    });
}

#[test]
fn of_two_insertions_of_one_connection_one_succeeds() {
    model(|| {
        let table = heap(2);
        let other = table.clone();
        let thread = loom::thread::spawn(move || insert(&other, 1, 5));
        let results = [insert(&table, 1, 5), thread.join().unwrap()];
        let inserted: Vec<_> = results.iter().flatten().map(|inserted| inserted.conn).collect();
        assert_eq!(inserted.len(), 1);
        for error in results.iter().filter_map(|result| result.err()) {
            assert!(matches!(error, InsertError::Exists(found) if found.conn == inserted[0]));
        }
        check(&table);
    });
}

/// Where the table is full, what is in the way is looked for without locks before another makes room.
#[test]
fn a_connection_that_another_worker_inserts_is_no_stranger_in_its_own_way() {
    model(|| {
        let table = heap(2);
        let other = table.clone();
        let looks = loom::thread::spawn(move || other.inner().in_the_way(&[tuple(1), reply(&tuple(1))]));
        let conn = insert(&table, 1, 5).unwrap().conn;
        let found = looks.join().unwrap();
        assert!(
            found.is_ok()
                || matches!(found, Err(InsertError::Exists(found)) if found.conn == conn && found.direction == Direction::Original),
            "{found:?}"
        );
    });
}

/// What two workers do that give one port to two senders at once: the table is the allocation (docs/nat.md).
#[test]
fn of_two_connections_that_want_the_same_reply_one_gets_it() {
    model(|| {
        let table = heap(2);
        let back = Tuple { sport: 80, dport: 61_000, ..tuple(0) };
        let other = table.clone();
        let thread = loom::thread::spawn(move || other.insert(&tuple(1), &back, SYN, None, 5));
        let results = [table.insert(&tuple(2), &back, SYN, None, 5), thread.join().unwrap()];
        let inserted: Vec<_> = results.iter().flatten().map(|inserted| inserted.conn).collect();
        assert_eq!(inserted.len(), 1);
        for error in results.iter().filter_map(|result| result.err()) {
            assert!(matches!(error, InsertError::Clash(Some(found)) if found.conn == inserted[0]));
        }
        check(&table);
    });
}

#[test]
fn a_look_up_sees_a_whole_connection_or_none() {
    model(|| {
        let table = heap(1);
        let first = insert(&table, 1, 5).unwrap().conn;
        let other = table.clone();
        let thread = loom::thread::spawn(move || {
            for n in [1, 2] {
                if let Some(found) = other.lookup(&tuple(n)) {
                    assert_eq!(found.tuples, [tuple(n), reply(&tuple(n))]);
                }
            }
        });
        assert!(table.remove(first));
        insert(&table, 2, 6).unwrap();
        thread.join().unwrap();
        check(&table);
    });
}

#[test]
fn a_late_packet_of_a_former_connection_does_not_change_the_present_one() {
    model(|| {
        let table = heap(1);
        let first = insert(&table, 1, 5).unwrap().conn;
        let other = table.clone();
        let thread = loom::thread::spawn(move || {
            other.update(first, proto::TCP, Direction::Original, FIN | ACK, 6);
        });
        table.remove(first);
        let second = insert(&table, 2, 6).unwrap().conn;
        thread.join().unwrap();
        let now = table.lookup(&tuple(2)).unwrap();
        assert_eq!((now.conn, now.state), (second, State::New));
        check(&table);
    });
}

#[test]
fn both_sides_packets_at_once_leave_the_right_state_and_counts() {
    model(|| {
        let table = heap(1);
        let conn = insert(&table, 1, 5).unwrap().conn;
        table.update(conn, proto::TCP, Direction::Reply, SYN | ACK, 5);
        let other = table.clone();
        let thread = loom::thread::spawn(move || {
            assert!(other.update(conn, proto::TCP, Direction::Reply, FIN | ACK, 6));
        });
        assert!(table.update(conn, proto::TCP, Direction::Original, ACK, 6));
        assert!(table.update(conn, proto::TCP, Direction::Original, FIN | ACK, 6));
        thread.join().unwrap();
        assert_eq!(table.lookup(&tuple(1)).unwrap().state, State::TimeWait);
        check(&table);
    });
}

#[test]
fn a_connection_that_has_become_established_is_not_evicted() {
    model(|| {
        let table = heap(1);
        let conn = insert(&table, 1, 5).unwrap().conn;
        table.update(conn, proto::TCP, Direction::Reply, SYN | ACK, 5);
        let other = table.clone();
        let thread = loom::thread::spawn(move || insert(&other, 2, 5));
        let established = table.update(conn, proto::TCP, Direction::Original, ACK, 5);
        let inserted = thread.join().unwrap();
        assert_eq!(established, inserted.is_err());
        assert_eq!(table.lookup(&tuple(1)).is_some(), established);
        assert_eq!(table.lookup(&tuple(2)).is_some(), !established);
        check(&table);
    });
}

#[test]
fn a_connection_is_expired_or_seen() {
    model(|| {
        let table = heap(1);
        let conn = insert(&table, 1, 5).unwrap().conn;
        let other = table.clone();
        let thread = loom::thread::spawn(move || other.expire(&mut 0, 1, 500));
        let seen = table.update(conn, proto::TCP, Direction::Reply, SYN | ACK, 500);
        let expired = thread.join().unwrap();
        assert!(seen || expired == 1);
        assert_eq!(table.lookup(&tuple(1)).is_none(), expired == 1);
        check(&table);
    });
}
