//! The process killed between any two stores: the next one finds every whole connection as it was, and no half
//! one.

use super::*;
use crate::conntrack::fault::stop_after_stores;
use crate::conntrack::{Direction, State};
use crate::wire::tcp_flags::{ACK, FIN, SYN};
use std::path::Path;

const CAPACITY: u32 = 8;

fn open(path: &Path) -> Conntrack {
    Conntrack::open(path, CAPACITY, Timeouts::default()).unwrap()
}

/// Three connections in different states, that no operation below touches but the last.
fn bystanders(table: &Conntrack) {
    for client in 0..3 {
        let original = tuple(client, 0, proto::TCP);
        let conn = insert(table, &original, SYN, 100).unwrap().conn;
        if client > 0 {
            table.update(conn, proto::TCP, Direction::Reply, SYN | ACK, 101);
            table.update(conn, proto::TCP, Direction::Original, ACK, 102);
        }
    }
}

/// Kills `action` before its store number `stores`, reopens the file, and has the result checked. Whether it
/// was killed at all.
fn kill_at(stores: u64, action: impl Fn(&Conntrack), judge: impl Fn(&BTreeMap<Tuple, Connection>)) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("conntrack");
    let table = open(&path);
    bystanders(&table);
    let killed = stop_after_stores(stores, || action(&table)).is_none();
    drop(table);
    // The next one may be killed as well, while it opens the file.
    let opened = stop_after_stores(stores % 4, || drop(open(&path)));
    let table = open(&path);
    check(&table);
    let now = listed(&table);
    for client in 0..2 {
        let expected = if client == 0 { State::New } else { State::Established };
        assert_eq!(now[&tuple(client, 0, proto::TCP)].state, expected, "opened: {opened:?}");
    }
    judge(&now);
    // Every place can be had.
    for server in 1..=CAPACITY as u16 {
        let _ = insert(&table, &tuple(50 + server, server, proto::UDP), 0, 200);
    }
    assert_eq!(table.summary().used, CAPACITY as usize);
    check(&table);
    killed
}

fn kill_everywhere(action: impl Fn(&Conntrack), judge: impl Fn(&BTreeMap<Tuple, Connection>)) -> u64 {
    let mut stores = 0;
    while kill_at(stores, &action, &judge) {
        stores += 1;
    }
    stores
}

#[test]
fn killed_while_inserting() {
    let original = tuple(9, 1, proto::UDP);
    let stores = kill_everywhere(
        |table| {
            insert(table, &original, 0, 103).unwrap();
        },
        |now| {
            if let Some(found) = now.get(&original) {
                assert_eq!((found.tuples[1], found.service), (reply(&original), Some(7)));
                assert_eq!((found.created_s, found.state, found.replied), (103, State::New, false));
            }
        },
    );
    assert!(stores > 20, "{stores} stores");
}

#[test]
fn killed_while_inserting_what_is_left_to_another_node() {
    let original = tuple(9, 1, proto::TCP);
    let stores = kill_everywhere(
        |table| {
            insert_forwarded(table, &original, 103).unwrap();
        },
        |now| {
            if let Some(found) = now.get(&original) {
                assert_eq!((found.tuples[1], found.via), (original.reversed(), Some(via())));
                assert_eq!((found.created_s, found.state), (103, State::New));
            }
        },
    );
    assert!(stores > 25, "{stores} stores");
}

#[test]
fn killed_while_removing() {
    let original = tuple(2, 0, proto::TCP);
    let stores = kill_everywhere(
        |table| {
            let found = table.lookup(&original).unwrap();
            table.remove(found.conn);
        },
        |now| {
            if let Some(found) = now.get(&original) {
                assert_eq!((found.state, found.last_seen_s), (State::Established, 102));
            }
        },
    );
    assert!(stores >= 4, "{stores} stores");
}

#[test]
fn killed_while_a_state_changes() {
    let original = tuple(2, 0, proto::TCP);
    let stores = kill_everywhere(
        |table| {
            let found = table.lookup(&original).unwrap();
            table.update(found.conn, proto::TCP, Direction::Original, FIN | ACK, 110);
        },
        |now| {
            let found = &now[&original];
            assert!(matches!(found.state, State::Established | State::FinWait));
            assert!([102, 110].contains(&found.last_seen_s));
        },
    );
    assert_eq!(stores, 2);
}

#[test]
fn killed_while_one_makes_room_for_another() {
    let (old, new) = (tuple(20, 9, proto::UDP), tuple(21, 9, proto::UDP));
    let stores = kill_everywhere(
        |table| {
            for server in 1..5 {
                let _ = insert(table, &tuple(20, server, proto::UDP), 0, 90);
            }
            let _ = insert(table, &old, 0, 90);
            let _ = insert(table, &new, 0, 130);
        },
        |now| assert!(now.len() <= CAPACITY as usize),
    );
    assert!(stores > 100, "{stores} stores");
}
