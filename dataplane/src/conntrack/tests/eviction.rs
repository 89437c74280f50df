//! Who makes room for whom.

use super::*;
use crate::conntrack::{Direction, State};
use crate::wire::tcp_flags::{ACK, FIN, RST, SYN};

fn established(table: &Conntrack, client: u16, now_s: u32) -> super::super::ConnRef {
    let conn = insert(table, &tuple(client, 0, proto::TCP), SYN, now_s).unwrap().conn;
    table.update(conn, proto::TCP, Direction::Reply, SYN | ACK, now_s);
    table.update(conn, proto::TCP, Direction::Original, ACK, now_s);
    conn
}

/// One of each worth, all idle alike; then new flows until none gets in.
#[test]
fn the_least_valuable_goes_first_and_established_connections_stay() {
    let table = heap(5);
    let over = established(&table, 1, 100);
    table.update(over, proto::TCP, Direction::Reply, RST, 100);
    insert(&table, &tuple(2, 0, proto::TCP), SYN, 100).unwrap();
    let answered = insert(&table, &tuple(3, 0, proto::UDP), 0, 100).unwrap().conn;
    table.update(answered, proto::UDP, Direction::Reply, 0, 100);
    let closing = established(&table, 4, 100);
    table.update(closing, proto::TCP, Direction::Original, FIN | ACK, 100);
    established(&table, 5, 100);
    for (new, gone) in (0..).zip([1, 2, 3, 4]) {
        let conn = established(&table, 10 + new, 200);
        let client = if gone == 3 { tuple(3, 0, proto::UDP) } else { tuple(gone, 0, proto::TCP) };
        assert_eq!(table.lookup(&client), None, "client {gone} is the least valuable");
        assert_eq!(table.iter().count(), 5);
        assert!(table.iter().any(|c| c.conn == conn));
        check(&table);
    }
    let full = insert(&table, &tuple(20, 0, proto::TCP), SYN, 200);
    assert_eq!(full, Err(InsertError::Full), "five established connections are left");
}

#[test]
fn established_connections_give_way_only_after_the_time_of_rfc_5382() {
    let table = heap(4);
    for client in 0..4 {
        established(&table, client, 1000 + u32::from(client));
    }
    assert_eq!(insert(&table, &tuple(9, 0, proto::TCP), SYN, 1000 + 7439), Err(InsertError::Full));
    assert!(insert(&table, &tuple(9, 0, proto::TCP), SYN, 1000 + 7440).unwrap().evicted);
    assert_eq!(table.lookup(&tuple(0, 0, proto::TCP)), None, "the one longest idle");
    // Now something less valuable is there.
    assert!(insert(&table, &tuple(9, 1, proto::TCP), SYN, 1000 + 9000).unwrap().evicted);
    assert_eq!(listed(&table).values().filter(|c| c.state == State::Established).count(), 3);
}

/// Its client alone makes it what it is, so it is worth less than what both sides took part in.
#[test]
fn what_is_left_to_another_node_gives_way_as_a_conversation_does() {
    let table = heap(2);
    established(&table, 1, 100);
    let left = tuple(2, 0, proto::TCP);
    let conn = insert_forwarded(&table, &left, 100).unwrap().conn;
    table.update(conn, proto::TCP, Direction::Original, ACK, 100);
    check(&table);
    assert_eq!(insert(&table, &tuple(9, 0, proto::TCP), SYN, 108), Err(InsertError::Full));
    assert!(insert(&table, &tuple(9, 0, proto::TCP), SYN, 109).unwrap().evicted);
    assert_eq!(table.lookup(&left), None);
    check(&table);
}

#[test]
fn a_full_table_gives_up_conversations_only_when_they_are_idle() {
    let table = heap(2);
    for client in 0..2 {
        let conn = insert(&table, &tuple(client, 0, proto::UDP), 0, 100).unwrap().conn;
        table.update(conn, proto::UDP, Direction::Reply, 0, 100);
    }
    assert_eq!(insert(&table, &tuple(9, 0, proto::UDP), 0, 108), Err(InsertError::Full));
    assert!(insert(&table, &tuple(9, 0, proto::UDP), 0, 109).is_ok());
}

#[test]
fn a_source_with_its_share_of_openings_takes_from_itself_and_from_nobody_else() {
    let table = heap(800);
    for client in 0..50 {
        insert(&table, &tuple(1000 + client, 0, proto::TCP), SYN, 100).unwrap();
    }
    let mut refused = 0;
    for server in 0..30_000 {
        match insert(&table, &tuple(7, server, proto::TCP), SYN, 100) {
            Ok(inserted) => assert_eq!(inserted.evicted, server >= 100, "the share is an eighth"),
            // A few looks may meet none but others' openings; then nobody makes room.
            Err(error) => {
                assert_eq!(error, InsertError::Share);
                refused += 1;
            }
        }
    }
    assert!(refused < 6000, "{refused} of 30000 refused");
    assert_eq!(table.summary().used, 150);
    for client in 0..50 {
        assert!(table.lookup(&tuple(1000 + client, 0, proto::TCP)).is_some());
    }
    check(&table);
}

#[test]
fn half_open_and_one_sided_connections_count_as_openings() {
    for (flags, answered) in [(SYN, true), (ACK, false), (FIN | ACK, false)] {
        let table = heap(160);
        for server in 0..100 {
            let conn = insert(&table, &tuple(7, server, proto::TCP), flags, 100).unwrap().conn;
            if answered {
                table.update(conn, proto::TCP, Direction::Reply, SYN | ACK, 100);
            }
        }
        assert_eq!(table.summary().used, 20, "an eighth of 160, with flags {flags:#x}");
        check(&table);
    }
}

/// In a table that is full, a flood takes one place of what is idle, and then turns in its own.
#[test]
fn a_flood_into_a_full_table_costs_others_next_to_nothing() {
    let table = heap(256);
    for client in 0..128 {
        established(&table, client, 5000);
        let conn = insert(&table, &tuple(client, 0, proto::UDP), 0, 5000).unwrap().conn;
        table.update(conn, proto::UDP, Direction::Reply, 0, 5000);
    }
    for server in 0..20_000 {
        insert(&table, &tuple(900, server, proto::TCP), SYN, 5100).unwrap();
    }
    let states =
        |state| listed(&table).values().filter(|c| c.state == state && c.tuples[0].proto == 17).count();
    assert_eq!(states(State::Established), 127);
    // Another's new connection gets in, and is complete before the flood can push it out.
    let other = insert(&table, &tuple(901, 0, proto::TCP), SYN, 5100).unwrap();
    for server in 0..20_000 {
        let _ = insert(&table, &tuple(900, server, proto::TCP), SYN, 5100);
    }
    assert!(table.update(other.conn, proto::TCP, Direction::Reply, SYN | ACK, 5100));
    check(&table);
}

#[test]
fn places_of_low_number_are_used_first() {
    let table = heap(10_000);
    let conns: Vec<_> =
        (0..100).map(|client| insert(&table, &tuple(client, 0, proto::UDP), 0, 1).unwrap().conn).collect();
    assert_eq!(conns.iter().map(|conn| conn.index).max(), Some(99));
    for round in 0..50 {
        for conn in table.iter().map(|c| c.conn).collect::<Vec<_>>() {
            table.remove(conn);
        }
        for client in 0..100 {
            let conn = insert(&table, &tuple(client, round, proto::UDP), 0, 1).unwrap().conn;
            assert!(conn.index < 100, "a table that holds 100 touches 100 places");
        }
    }
}
