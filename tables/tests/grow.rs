//! Tables that grow while they are read: nothing is lost, old readers see what they saw, the limit is an error.

#[path = "common/model.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod model;

use fairway_tables::*;
use model::Model;

const SMALL: Capacities = Capacities {
    ports: 4,
    endpoints: 4,
    routes: 16,
    next_hops: 8,
    route_groups: 2,
    lpm_nodes: 16,
    neighbours: 4,
    tunnels: 4,
    services: 2,
    backends: 8,
};

fn service(n: u8) -> Op {
    let backend = |i: u8| Backend { ip: Ip::v4([10, 0, n, i]), port: 80, flags: 0 };
    let record = Service { id: u32::from(n), flags: 0, affinity_timeout_s: 0 };
    Op::SetService(
        ServiceKey::new(Ip::v4([10, 96, 0, n]), 80, 6),
        record,
        (0..3).map(backend).collect::<Vec<_>>().into(),
    )
}

fn first_entries() -> Vec<Op> {
    let hop = NextHop::new(NextHopKind::Gateway, Ip::v4([192, 0, 2, 1]), PortId(0));
    let other = NextHop::new(NextHopKind::Gateway, Ip::v4([192, 0, 2, 2]), PortId(0));
    let paths = Group::new([(hop, 1), (other, 2)]).unwrap();
    vec![
        Op::SetEndpoint(Ip::v4([10, 0, 0, 1]), Endpoint::new(PortId(0), Mac::ZERO)),
        Op::SetRoute("0.0.0.0/0".parse().unwrap(), hop),
        Op::SetRoute("10.0.0.128/25".parse().unwrap(), hop),
        Op::SetPaths("10.8.0.0/16".parse().unwrap(), Box::new(paths)),
        service(1),
        service(2),
    ]
}

#[test]
fn grown_tables_hold_what_they_held_and_more_and_a_restart_takes_them_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), SMALL).unwrap();
    writer.apply(&first_entries()).unwrap();
    let before = Model::of(writer.view());
    let generation = writer.view().generation();
    let mut old = Reader::open(dir.path(), "old").unwrap();
    assert!(matches!(writer.apply(&[service(3)]), Err(ApplyError::Full { table: "services", .. })));

    let capacities = writer.grow("services", 9, u64::MAX).unwrap();
    assert_eq!(capacities, Capacities { services: 16, ..SMALL });
    assert_eq!(Model::of(writer.view()), before);
    assert!(writer.view().generation() > generation);
    assert!(old.is_superseded(), "readers are told");
    let mut new = Reader::open(dir.path(), "new").unwrap();
    before.check(new.view());

    // Backends are short next; the reader of the old file does not hold the new one's memory back.
    assert!(matches!(writer.apply(&[service(3)]), Err(ApplyError::Full { table: "backends", .. })));
    writer.grow("backends", 9, u64::MAX).unwrap();
    for n in 3..=5 {
        writer.apply(&[service(n)]).unwrap();
    }
    before.check(old.view());
    old.quiescent();
    new.quiescent();
    let after = Model::of(writer.view());
    assert_eq!(after.services.len(), 5);
    drop(writer);
    let writer = Writer::open(dir.path(), SMALL).unwrap();
    assert_eq!(Model::of(writer.view()), after);
    after.check(Reader::open(dir.path(), "last").unwrap().view());
}

#[test]
fn the_limit_names_the_table_and_leaves_everything_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), SMALL).unwrap();
    writer.apply(&first_entries()).unwrap();
    let before = Model::of(writer.view());
    let reader = Reader::open(dir.path(), "reader").unwrap();
    let error = writer.grow("services", 9, 1 << 20).unwrap_err();
    assert!(matches!(&error, GrowError::Limit { table, capacity: 16, .. } if table == "services"), "{error}");
    assert!(matches!(writer.grow("nonsense", 9, u64::MAX), Err(GrowError::NoTable { .. })));
    assert!(!reader.is_superseded());
    assert_eq!(Model::of(writer.view()), before);
    let (mut heap, _) = Tables::heap(SMALL);
    assert!(matches!(heap.grow("services", 9, u64::MAX), Err(GrowError::Heap)));
}

#[test]
fn what_a_killed_growth_left_behind_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), SMALL).unwrap();
    writer.apply(&first_entries()).unwrap();
    std::fs::write(dir.path().join("tables.new"), b"half a file").unwrap();
    writer.grow("services", 3, u64::MAX).unwrap();
    writer.apply(&[Op::DelService(ServiceKey::new(Ip::v4([10, 96, 0, 1]), 80, 6)), service(3)]).unwrap();
    assert!(!dir.path().join("tables.new").exists());
}

#[test]
fn tables_whose_trie_is_full_grow_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), SMALL).unwrap();
    writer.apply(&first_entries()).unwrap();
    let hop = NextHop::new(NextHopKind::Host, Ip::UNSPECIFIED, PortId::NONE);
    let mut routes = (1..=13).map(|n| Op::SetRoute(format!("fd00:{n:x}::1/128").parse().unwrap(), hop));
    let full = loop {
        let route = routes.next().expect("13 routes need more than 16 nodes");
        match writer.apply(std::slice::from_ref(&route)) {
            Ok(_) => {}
            Err(ApplyError::Full { table: "lpm_nodes", needed, .. }) => break (route, needed),
            Err(error) => panic!("{error}"),
        }
    };
    let before = Model::of(writer.view());
    // Another table grows while the trie is as full as it can be: refilled at once, it would seem too small.
    writer.grow("services", 9, u64::MAX).unwrap();
    assert_eq!(Model::of(writer.view()), before);
    writer.grow("lpm_nodes", full.1, u64::MAX).unwrap();
    before.check(writer.view());
    writer.apply(&[full.0]).unwrap();
}

#[test]
fn capacities_are_cut_to_what_a_limit_allows_and_what_may_grow_is_known() {
    const MIB: u64 = 1 << 20;
    let default = Capacities::default();
    assert_eq!(default.within(1 << 30), Some(default));
    assert_eq!(default.within(64 * MIB), None, "the root of the IPv4 routes alone is that large");
    let small = default.within(72 * MIB).unwrap();
    assert_eq!((small.ports, small.services), (default.ports, 2048));
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), small).unwrap();
    let len = || std::fs::metadata(dir.path().join("tables")).unwrap().len();
    assert!(len() <= 72 * MIB, "{} bytes", len());
    assert!(!writer.can_grow("lpm_nodes", 72 * MIB) && writer.can_grow("lpm_nodes", 80 * MIB));
    assert!(!writer.can_grow("nonsense", u64::MAX));
    // What is said to be possible is, and nothing else.
    for table in
        ["endpoints", "routes", "next_hops", "route_groups", "neighbours", "tunnels", "services", "backends"]
    {
        let max_bytes = len() + MIB;
        let possible = writer.can_grow(table, max_bytes);
        assert_eq!(writer.grow(table, 0, max_bytes).is_ok(), possible, "{table}");
    }
    let (heap, _) = Tables::heap(SMALL);
    assert!(!heap.can_grow("services", u64::MAX));
}

#[test]
fn tables_opened_with_more_room_than_they_have_grow_and_with_less_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), SMALL).unwrap();
    writer.apply(&first_entries()).unwrap();
    let (before, generation) = (Model::of(writer.view()), writer.view().generation());
    drop(writer);
    let reader = Reader::open(dir.path(), "reader").unwrap();
    let capacity_of = |writer: &Writer, table| {
        writer.usage().into_iter().find(|usage| usage.table == table).map(|usage| usage.capacity)
    };
    let less = Capacities { services: 1, ..SMALL };
    let writer = Writer::open(dir.path(), less).unwrap();
    assert_eq!((capacity_of(&writer, "services"), writer.view().generation()), (Some(2), generation));
    assert!(!reader.is_superseded());
    drop(writer);
    let more = Capacities { services: 1, tunnels: 9, ..SMALL };
    let writer = Writer::open(dir.path(), more).unwrap();
    assert_eq!((capacity_of(&writer, "services"), capacity_of(&writer, "tunnels")), (Some(2), Some(9)));
    assert_eq!(Model::of(writer.view()), before);
    assert!(reader.is_superseded());
}
