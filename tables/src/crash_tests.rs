//! The writer killed between any two stores: readers stay right, the next writer recovers.

#[path = "../tests/common/model.rs"]
mod model;

use crate::layout::header;
use crate::sync::Ordering;
use crate::*;
use model::{Model, any_op, capacities, deletes_of, probes, used};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `action`; whether the fault hook stopped it.
fn stopped<T>(action: impl FnOnce() -> T) -> bool {
    match catch_unwind(AssertUnwindSafe(action)) {
        Ok(_) => false,
        Err(cause) => {
            assert!(cause.is::<FaultStop>(), "stopped by something else than the hook");
            true
        }
    }
}

fn journal(writer: &Writer) -> Option<Prefix> {
    let region = &writer.view().region();
    (region.load64(header::JOURNAL, Ordering::Relaxed) != 0).then(|| region.read(header::JOURNAL_PREFIX))
}

/// Every object is as before or as after the batch.
fn assert_each_old_or_new(now: &Model, old: &Model, new: &Model) {
    fn each<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
        now: &BTreeMap<K, V>,
        old: &BTreeMap<K, V>,
        new: &BTreeMap<K, V>,
    ) {
        for key in now.keys().chain(old.keys()).chain(new.keys()) {
            let value = now.get(key);
            assert!(value == old.get(key) || value == new.get(key), "{key:?}: {value:?}");
        }
    }
    assert!(now.settings == old.settings || now.settings == new.settings);
    each(&now.ports, &old.ports, &new.ports);
    each(&now.endpoints, &old.endpoints, &new.endpoints);
    each(&now.routes, &old.routes, &new.routes);
    each(&now.neighbours, &old.neighbours, &new.neighbours);
    each(&now.tunnels, &old.tunnels, &new.tunnels);
    each(&now.services, &old.services, &new.services);
}

/// What a reader sees while the writer lies dead: routes look up as in the prefix table, but for the
/// prefix being expanded, which may still be as it was.
fn check_reader_after_crash(reader: &Reader, journal: Option<Prefix>, old: &Model, new: &Model) {
    let now = Model::of(reader.view());
    assert_each_old_or_new(&now, old, new);
    let mut former = now.clone();
    if let Some(prefix) = journal {
        match old.routes.get(&prefix) {
            Some(next_hop) => former.routes.insert(prefix, *next_hop),
            None => former.routes.remove(&prefix),
        };
    }
    for ip in probes(old.routes.keys().chain(new.routes.keys())) {
        let route = reader.view().paths(ip);
        assert!(route == now.route(ip) || route == former.route(ip), "look-up of {ip}");
    }
}

/// Two batches, and how full they leave the tables if nothing goes wrong.
type Case = (Vec<Op>, Vec<Op>, BTreeMap<&'static str, u64>);

fn case(first: Vec<Op>, second: Vec<Op>) -> Case {
    let (mut writer, _) = Tables::heap(capacities());
    writer.apply(&first).unwrap();
    writer.apply(&second).unwrap();
    (first, second, used(&writer))
}

/// Applies `first`, then stops the writer in `second` after `stores` stores, and checks everything that
/// follows. Returns whether it was stopped at all.
fn crash_at((first, second, undisturbed): &Case, stores: u64, again_after: u64) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (mut old, mut writer) = (Model::default(), Writer::open(dir, capacities()).unwrap());
    old.apply(first);
    writer.apply(first).unwrap();
    let mut new = old.clone();
    new.apply(second);
    let mut reader = Reader::open(dir, "witness").unwrap();
    let changes_seen = reader.view().change_count();

    writer.stop_after_stores(stores);
    if !stopped(|| writer.apply(second)) {
        return false;
    }
    check_reader_after_crash(&reader, journal(&writer), &old, &new);
    drop(writer);

    // The next writer may be killed as well, while it recovers.
    if !stopped(|| drop(Writer::open_stopping_after(dir, capacities(), again_after))) {
        Model::of(reader.view()).check(reader.view());
    }
    let mut writer = Writer::open(dir, capacities()).unwrap();
    assert_eq!(journal(&writer), None);
    let now = Model::of(writer.view());
    assert_each_old_or_new(&now, &old, &new);
    now.check(writer.view());
    now.check(reader.view());
    let is_told = reader.view().change_count() != changes_seen;
    assert!(is_told || now == old, "a change that no reader was told of");

    reader.quiescent();
    writer.apply(second).unwrap();
    new.check(reader.view());
    reader.quiescent();
    let now = used(&writer);
    // How many nodes the same routes take depends on the order in which they came, so that the batches applied in
    // other steps may take another number. Nodes that are lost show otherwise: a writer that looks at them anew finds
    // fewer, or some are left when all routes are gone.
    let nodes = |used: &BTreeMap<&'static str, u64>| used["lpm_nodes"];
    let but_nodes = |used: &BTreeMap<&'static str, u64>| {
        used.iter()
            .filter(|(table, _)| **table != "lpm_nodes")
            .map(|(table, n)| (*table, *n))
            .collect::<Vec<_>>()
    };
    assert_eq!(but_nodes(&now), but_nodes(undisturbed), "something leaked");
    drop(writer);
    let mut writer = Writer::open(dir, capacities()).unwrap();
    assert_eq!(nodes(&used(&writer)), nodes(&now), "nodes leaked");
    let deletes: Vec<Op> = new.routes.keys().map(|prefix| Op::DelRoute(*prefix)).collect();
    writer.apply(&deletes).unwrap();
    assert_eq!(nodes(&used(&writer)), 0, "nodes that no route needs");
    true
}

fn batches(seed: u8) -> (Vec<Op>, Vec<Op>) {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let ops = prop::collection::vec(any_op(), 80);
    let first = ops.new_tree(&mut runner).unwrap().current();
    let mut second = ops.new_tree(&mut runner).unwrap().current();
    let mut model = Model::default();
    model.apply(&first);
    second.extend(deletes_of(&model, 2));
    (first, second)
}

/// Prefixes that expand far would take nearly all stores; keep the batch's stores of all kinds.
fn without_wide_prefixes(ops: Vec<Op>) -> Vec<Op> {
    ops.into_iter()
        .filter(|op| match op {
            Op::SetRoute(p, _) | Op::SetPaths(p, _) | Op::DelRoute(p) => {
                p.is_empty() || p.len() >= if p.addr().is_v4() { 20 } else { 12 }
            }
            _ => true,
        })
        .collect()
}

#[test]
fn a_writer_killed_at_any_store_leaves_readers_right_and_is_recovered() {
    for seed in 0..3 {
        let (first, second) = batches(seed);
        let case = case(without_wide_prefixes(first), without_wide_prefixes(second));
        let mut crashes = 0;
        // Every store of the start, then ever wider apart, at odd places.
        let mut stores = u64::from(seed);
        while crash_at(&case, stores, stores % 5) {
            crashes += 1;
            stores += 1 + stores / 20;
        }
        assert!(crashes > 60, "only {crashes} crashes in {stores} stores");
    }
}

#[test]
fn a_writer_killed_while_expanding_a_wide_prefix_is_recovered() {
    let hop = |n| NextHop::new(NextHopKind::Gateway, Ip::v4([192, 0, 2, n]), PortId(0));
    let set = |p: &str, n| Op::SetRoute(p.parse().unwrap(), hop(n));
    let del = |p: &str| Op::DelRoute(p.parse().unwrap());
    let first =
        [set("10.0.0.0/12", 1), set("10.1.2.128/25", 2), set("10.1.0.0/16", 3), set("10.1.2.3/32", 4)];
    let first = [&first[..], &[set("fd00::/11", 5), set("fd01:2::/32", 6), set("fd01:2:3::/48", 7)]].concat();
    let batches = [
        vec![set("10.0.0.0/12", 9)],
        vec![set("10.0.0.0/13", 9)],
        vec![del("10.0.0.0/12")],
        vec![del("10.1.0.0/16"), del("10.1.2.3/32"), del("10.1.2.128/25")],
        vec![set("fd00::/11", 9), del("fd01:2::/32"), set("fd01:2:3:4::1/128", 9)],
        vec![del("fd00::/11"), del("fd01:2:3::/48"), del("fd01:2::/32")],
    ];
    for second in batches {
        let case = case(first.clone(), second);
        let mut stores = 0;
        while crash_at(&case, stores, 3) {
            stores += 1 + stores / 3;
        }
        assert!(stores > 12);
    }
}

#[test]
fn a_writer_killed_while_it_splits_or_joins_the_ways_to_prefixes_is_recovered() {
    let hop = |n| NextHop::new(NextHopKind::Gateway, Ip::v4([192, 0, 2, n]), PortId(0));
    let set = |p: &str, n| Op::SetRoute(p.parse().unwrap(), hop(n));
    let del = |p: &str| Op::DelRoute(p.parse().unwrap());
    let first = [set("2001:db8:1:2::7/128", 1), set("10.1.2.3/32", 2), set("2001:db9:1:2::/64", 3)];
    let first = [&first[..], &[set("2001:db9::/32", 4), set("::/0", 5)]].concat();
    let batches = [
        // The way there is left half-way, at its start and at its end.
        vec![set("2001:db8:1:3::/64", 9), set("2001:f00::/48", 9), set("2001:db8:1:2::8/128", 9)],
        // Prefixes end on the way there, between two branches and not.
        vec![set("2001:db8::/32", 9), set("2001:db8:1::/47", 9), set("10.1.2.0/28", 9)],
        vec![set("2001:db8:1:2::/64", 9), del("2001:db8:1:2::7/128"), del("2001:db9::/32")],
        vec![del("2001:db8:1:2::7/128"), del("10.1.2.3/32"), del("2001:db9:1:2::/64"), del("2001:db9::/32")],
    ];
    for second in batches {
        let case = case(first.clone(), second);
        let mut stores = 0;
        while crash_at(&case, stores, stores % 7) {
            stores += 1;
        }
        assert!(stores > 30, "only {stores} stores");
    }
}

#[test]
fn an_unfinished_route_is_undone_where_no_node_is_left_to_finish_it() {
    let dir = tempfile::tempdir().unwrap();
    let capacities = Capacities { lpm_nodes: 2, ..capacities() };
    let mut writer = Writer::open(dir.path(), capacities).unwrap();
    let reader = Reader::open(dir.path(), "holds nodes back").unwrap();
    let hop = NextHop::new(NextHopKind::Host, Ip::UNSPECIFIED, PortId::NONE);
    let route = Op::SetRoute("10.0.0.1/32".parse().unwrap(), hop);
    // One of two nodes is taken, and nothing is linked.
    writer.stop_after_stores(30);
    assert!(stopped(|| writer.apply(std::slice::from_ref(&route))));
    assert_eq!(reader.view().routes().count(), 1);
    drop(writer);
    let mut writer = Writer::open(dir.path(), capacities).unwrap();
    assert_eq!(writer.view().routes().count(), 0);
    assert!(matches!(
        writer.apply(std::slice::from_ref(&route)),
        Err(ApplyError::WaitingForReader { table: "lpm_nodes", .. })
    ));
    drop(reader);
    writer.apply(&[route]).unwrap();
    assert_eq!(writer.view().route(Ip::v4([10, 0, 0, 1])), Some(hop));
}
