//! The table against a plain model, full and not, from clean and dirty files; and killed at every store.

mod crash;
mod eviction;
mod hostile;
mod model;
mod rebuild;

use super::table::{Connection, Conntrack, Inner};
use super::tuple::Tuple;
use super::value::Value;
use super::{InsertError, Inserted, Timeouts};
use crate::wire::proto;
use fairway_tables::{Ip, NextHop, NextHopKind, PortId};
use std::collections::BTreeMap;

/// A client's tuple to one of several servers.
fn tuple(client: u16, server: u16, protocol: u8) -> Tuple {
    let ip = |n: u16| Ip::v4([10, 0, (n >> 8) as u8, n as u8]);
    Tuple {
        src: ip(client),
        dst: ip(server.wrapping_add(1000)),
        sport: server.wrapping_add(40_000),
        dport: 80,
        proto: protocol,
    }
}

/// The reply of a connection to a service, from a backend of its own.
fn reply(original: &Tuple) -> Tuple {
    Tuple { dst: Ip::v4([10, 9, 0, 1]), dport: 8080, ..*original }.reversed()
}

fn insert(table: &Conntrack, original: &Tuple, flags: u8, now_s: u32) -> Result<Inserted, InsertError> {
    table.insert(original, &reply(original), flags, Some(7), now_s)
}

/// The way to the node that connections are left to.
fn via() -> NextHop {
    NextHop::new(NextHopKind::Tunnel, Ip([3; 16]), PortId(1))
}

fn insert_forwarded(table: &Conntrack, original: &Tuple, now_s: u32) -> Result<Inserted, InsertError> {
    table.insert_forwarded(original, via(), Some(7), now_s)
}

fn heap(capacity: u32) -> Conntrack {
    Conntrack::heap(capacity, Timeouts::default()).unwrap()
}

/// What a listed connection is worth, told from the outside.
fn worth(connection: &Connection) -> Value {
    use super::State;
    match connection.state {
        State::Free => Value::Free,
        State::TimeWait | State::Closed => Value::Over,
        State::New | State::SynReceived => Value::Opening,
        _ if connection.via.is_some() => Value::Conversation,
        _ if !connection.replied => Value::Opening,
        State::FinWait => Value::Closing,
        State::Established if connection.tuples[0].proto == proto::TCP => Value::Established,
        State::Established => Value::Conversation,
    }
}

fn listed(table: &Conntrack) -> BTreeMap<Tuple, Connection> {
    table.iter().map(|connection| (connection.tuples[0], connection)).collect()
}

/// Everything that the table knows twice agrees.
fn check(table: &Conntrack) {
    let inner: &Inner = table.inner();
    let capacity = table.summary().capacity as u32;
    let connections = listed(table);
    assert_eq!(connections.len(), table.iter().count(), "no tuple twice");
    assert_eq!(connections.len(), table.summary().used);
    let by_place: BTreeMap<u32, Value> =
        connections.values().map(|connection| (connection.conn.index, worth(connection))).collect();
    for place in 0..capacity {
        let value = by_place.get(&place).copied().unwrap_or(Value::Free);
        if place < inner.map.ever_used() as u32 {
            assert_eq!(inner.value(place), value);
        }
        for set in [
            Value::Free,
            Value::Over,
            Value::Opening,
            Value::Conversation,
            Value::Closing,
            Value::Established,
        ] {
            assert_eq!(
                inner.ledger.holds(set, place),
                set == value,
                "place {place} is {value:?}, in {set:?}"
            );
        }
    }
    let mut openings = BTreeMap::new();
    for connection in connections.values() {
        let source = format!("{:?}", inner.source(&connection.tuples));
        let count = openings.entry(source).or_insert((0, inner.source(&connection.tuples)));
        count.0 += i32::from(worth(connection) == Value::Opening);
    }
    for (count, source) in openings.into_values() {
        assert_eq!(inner.ledger.openings(source), count);
    }
    for connection in connections.values() {
        for tuple in connection.tuples {
            assert_eq!(table.lookup(&tuple).map(|found| found.conn), Some(connection.conn));
        }
    }
}
