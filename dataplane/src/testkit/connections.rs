//! Many connections at once, for what depends on their number.

use crate::clock::Now;
use crate::conntrack::{Conntrack, Direction, Tuple};
use crate::wire::{proto, tcp_flags};
use fairway_tables::Ip;

/// Fills a table with established TCP connections, each of a client of its own, through a service.
pub fn fill(table: &Conntrack, connections: u32) {
    let now_s = Now::read().seconds;
    for n in 0..connections {
        let src = Ip::v4([10, 128 | (n >> 16) as u8, (n >> 8) as u8, n as u8]);
        let (dst, sport) = (Ip::v4([10, 96, 0, 1]), 1024 + (n % 50_000) as u16);
        let original = Tuple { src, dst, sport, dport: 80, proto: proto::TCP };
        let reply = Tuple { dst: Ip::v4([10, 244, 1, 2]), dport: 8080, ..original }.reversed();
        if let Ok(inserted) = table.insert(&original, &reply, tcp_flags::SYN, Some(1), now_s) {
            let answered = tcp_flags::SYN | tcp_flags::ACK;
            table.update(inserted.conn, proto::TCP, Direction::Reply, answered, now_s);
            table.update(inserted.conn, proto::TCP, Direction::Original, tcp_flags::ACK, now_s);
        }
    }
}
