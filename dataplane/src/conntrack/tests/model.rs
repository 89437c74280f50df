//! Random operations against a plain list of connections.

use super::*;
use crate::conntrack::{ConnRef, Direction, State, room};
use crate::wire::tcp_flags::{ACK, FIN, RST, SYN};
use proptest::prelude::*;
use std::path::Path;

pub(super) const CAPACITY: u32 = 64;

#[derive(Debug, Clone)]
pub(super) enum Op {
    Insert {
        client: u16,
        server: u16,
        udp: bool,
        flags: u8,
        /// It is left to another node.
        left: bool,
    },
    /// A packet of the connection that is the n-th, counted round.
    Update {
        nth: usize,
        reply: bool,
        flags: u8,
    },
    /// A packet of a connection that was there before.
    Stale {
        reply: bool,
        flags: u8,
    },
    Remove {
        nth: usize,
    },
    Expire,
    Wait {
        seconds: u32,
    },
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let flags = || prop::sample::select(vec![SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST]);
    prop_oneof![
        6 => (0u16..12, 0u16..30, any::<bool>(), flags(), prop::bool::weighted(0.3))
            .prop_map(|(client, server, udp, flags, left)| Op::Insert { client, server, udp, flags, left }),
        6 => (any::<usize>(), any::<bool>(), flags())
            .prop_map(|(nth, reply, flags)| Op::Update { nth, reply, flags }),
        1 => (any::<bool>(), flags()).prop_map(|(reply, flags)| Op::Stale { reply, flags }),
        1 => any::<usize>().prop_map(|nth| Op::Remove { nth }),
        1 => Just(Op::Expire),
        2 => prop_oneof![1u32..12, 100u32..9000].prop_map(|seconds| Op::Wait { seconds }),
    ]
}

/// A table under test, and the second that it is told.
struct Run {
    table: Conntrack,
    now_s: u32,
    former: Option<ConnRef>,
}

impl Run {
    fn apply(&mut self, op: &Op) {
        let before = listed(&self.table);
        let nth = |n: usize| before.values().nth(n % before.len().max(1)).copied();
        match *op {
            Op::Insert { client, server, udp, flags, left } => {
                let original = tuple(client, server, if udp { proto::UDP } else { proto::TCP });
                self.insert(&original, flags, left, &before);
            }
            Op::Update { nth: n, reply, flags } => {
                let Some(connection) = nth(n) else { return };
                let direction = if reply { Direction::Reply } else { Direction::Original };
                let protocol = connection.tuples[0].proto;
                assert!(self.table.update(connection.conn, protocol, direction, flags, self.now_s));
                let after = listed(&self.table);
                assert_eq!(after[&connection.tuples[0]].last_seen_s, self.now_s);
                assert_eq!(after.len(), before.len());
            }
            Op::Stale { reply, flags } => {
                let Some(conn) = self.former else { return };
                let direction = if reply { Direction::Reply } else { Direction::Original };
                assert!(!self.table.update(conn, proto::TCP, direction, flags, self.now_s));
                assert!(!self.table.remove(conn));
                assert_eq!(listed(&self.table), before, "a former connection's packets change nothing");
            }
            Op::Remove { nth: n } => {
                let Some(connection) = nth(n) else { return };
                assert!(self.table.remove(connection.conn));
                assert!(!self.table.remove(connection.conn));
                assert_eq!(listed(&self.table).len(), before.len() - 1);
                self.former = Some(connection.conn);
            }
            Op::Expire => {
                self.table.expire(&mut 0, CAPACITY, self.now_s);
                let after = listed(&self.table);
                let lives = |c: &Connection| {
                    let lasts_s = Timeouts::default().of(c.tuples[0].proto, c.state);
                    let silent = c.tuples[0].proto == proto::TCP && !c.replied && c.via.is_none();
                    let lasts_s = if silent { lasts_s.min(300) } else { lasts_s };
                    self.now_s.wrapping_sub(c.last_seen_s) as i32 <= lasts_s as i32
                };
                let expected: BTreeMap<_, _> = before.into_iter().filter(|(_, c)| lives(c)).collect();
                assert_eq!(after, expected);
            }
            Op::Wait { seconds } => self.now_s = self.now_s.wrapping_add(seconds),
        }
    }

    fn insert(&mut self, original: &Tuple, flags: u8, left: bool, before: &BTreeMap<Tuple, Connection>) {
        let inner = self.table.inner();
        let source = inner.source(&[*original, *original]);
        let own = |c: &Connection| worth(c) == Value::Opening && inner.source(&c.tuples) == source;
        let openings = before.values().filter(|c| own(c)).count();
        let idle_s = |c: &Connection| self.now_s.wrapping_sub(c.last_seen_s) as i32;
        let any = |value: Value| before.values().any(|c| worth(c) == value);
        let had_room = before.len() < CAPACITY as usize && openings < 16;
        let result = match left {
            true => insert_forwarded(&self.table, original, self.now_s),
            false => insert(&self.table, original, flags, self.now_s),
        };
        let after = listed(&self.table);
        let gone: Vec<&Connection> = before.values().filter(|c| !after.contains_key(&c.tuples[0])).collect();
        match result {
            Ok(Inserted { conn, evicted }) => {
                assert!(!before.contains_key(original));
                let new = &after[original];
                assert_eq!(new.conn, conn);
                let (back, way) =
                    if left { (original.reversed(), Some(via())) } else { (reply(original), None) };
                assert_eq!((new.tuples[1], new.service, new.via), (back, Some(7), way));
                assert_eq!((new.created_s, new.last_seen_s, new.replied), (self.now_s, self.now_s, false));
                assert_eq!(evicted, !had_room, "something makes room exactly where there is none");
                assert_eq!(gone.len(), usize::from(evicted));
            }
            Err(error) => {
                assert!(gone.is_empty(), "nothing makes room for what is refused");
                match error {
                    InsertError::Full => {
                        assert!(!had_room && !any(Value::Over));
                        // As far as one round of looks goes.
                        let openings_of_all = before.values().filter(|c| worth(c) == Value::Opening).count();
                        if openings_of_all <= room::LOOKS {
                            assert_eq!(before.values().filter(|c| own(c)).count(), 0, "its own give way");
                        }
                    }
                    InsertError::Share => assert!(openings >= 16),
                    InsertError::Exists(found) => assert_eq!(found.conn, before[original].conn),
                    InsertError::Clash(found) => {
                        assert!(found.is_none_or(|f| before.contains_key(&f.tuples[0])))
                    }
                }
            }
        }
        let Some(victim) = gone.first() else { return };
        self.former = Some(victim.conn);
        if openings >= 16 {
            assert!(own(victim), "who has its share takes from itself");
            return;
        }
        match worth(victim) {
            Value::Over => {}
            Value::Opening => {
                let weight = before.values().filter(|c| {
                    worth(c) == Value::Opening && inner.source(&c.tuples) == inner.source(&victim.tuples)
                });
                assert!(own(victim) || weight.count() > openings + 1 || idle_s(victim) >= 9);
            }
            Value::Conversation | Value::Closing => assert!(!any(Value::Over) && idle_s(victim) >= 9),
            Value::Established => {
                let cheaper = Value::CHEAP.into_iter().any(any);
                assert!(!cheaper, "an established connection goes last");
                assert!(idle_s(victim) >= 7440);
            }
            Value::Free => panic!("a free place is no victim"),
        }
    }
}

/// A file as an engine leaves it, with some bytes changed.
pub(super) fn dirty_file(path: &Path, ops: &[Op], noise: &[(usize, u8)]) {
    let mut run = Run {
        table: Conntrack::open(path, CAPACITY, Timeouts::default()).unwrap(),
        now_s: 1000,
        former: None,
    };
    ops.iter().for_each(|op| run.apply(op));
    drop(run);
    let mut bytes = std::fs::read(path).unwrap();
    for (at, value) in noise {
        // The header's first bytes decide whether the file is taken at all.
        bytes[64 + at] = *value;
    }
    std::fs::write(path, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_operations_keep_the_rules(fill in 0u16..80, ops in prop::collection::vec(op(), 1..150)) {
        let mut run = Run { table: heap(CAPACITY), now_s: 1000, former: None };
        for n in 0..fill {
            let original = tuple(100 + n, 0, proto::TCP);
            let Ok(inserted) = insert(&run.table, &original, SYN, 1000) else { continue };
            run.table.update(inserted.conn, proto::TCP, Direction::Reply, SYN | ACK, 1000);
            if n % 7 > 0 {
                run.table.update(inserted.conn, proto::TCP, Direction::Original, ACK, 1000);
            }
        }
        check(&run.table);
        for op in &ops {
            run.apply(op);
            check(&run.table);
        }
    }

    #[test]
    fn any_operations_keep_the_rules_over_a_dirty_file(
        before in prop::collection::vec(op(), 0..200),
        noise in prop::collection::vec((0usize..(4032 + 64 * 128), any::<u8>()), 0..60),
        after in prop::collection::vec(op(), 1..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("conntrack");
        dirty_file(&path, &before, &noise);
        let table = Conntrack::open(&path, CAPACITY, Timeouts::default()).unwrap();
        check(&table);
        let mut run = Run { table, now_s: 1000, former: None };
        for op in &after {
            run.apply(op);
            check(&run.table);
        }
        let listed_before = listed(&run.table);
        drop(run);
        let again = Conntrack::open(&path, CAPACITY, Timeouts::default()).unwrap();
        check(&again);
        let states = |all: &BTreeMap<Tuple, Connection>| -> Vec<(Tuple, State)> {
            all.values().map(|c| (c.tuples[0], c.state)).collect()
        };
        assert_eq!(states(&listed(&again)), states(&listed_before), "the next process finds the same");
    }
}
