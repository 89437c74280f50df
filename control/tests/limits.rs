//! Tables that are full: for each, what does not fit is named, what is installed stays, and room that appears is used.

mod common;

use common::{files, kernel, node, options, pod, service, slice};
use fairway_control::core::{Core, Options};
use fairway_control::index::KernelEvent;
use fairway_control::kernel::Update;
use fairway_control::model::Model;
use fairway_control::publisher::read;
use fairway_tables::{Capacities, Ip, Mac, Writer};
use std::path::Path;

/// One more object than a table has room for.
struct Case {
    table: &'static str,
    set: fn(&mut Capacities, u32),
    more: String,
    /// What is to be named.
    object: &'static str,
    /// Which file of [`base`] to delete so that there is room.
    frees: &'static str,
}

/// Manifests that fill each table by a few entries.
fn base() -> Vec<(&'static str, String)> {
    let others = node("b", "10.244.2.0/26", "192.0.2.2");
    vec![
        ("a.yaml", node("a", "10.244.1.0/24", "192.0.2.1")),
        ("b.yaml", others),
        ("pod.yaml", pod("p", "a", "10.244.1.5")),
        ("web.yaml", service("web", "10.96.0.1", 80) + &slice("web-1", "web", &["10.244.1.5"])),
    ]
}

fn cases() -> Vec<Case> {
    let third = || node("c", "10.244.3.0/26", "192.0.2.3");
    let extra = || service("extra", "10.96.0.2", 80) + &slice("extra-1", "extra", &["10.244.1.5"]);
    let second = || pod("q", "a", "10.244.1.6");
    let case = |table, set, more, object, frees| Case { table, set, more, object, frees };
    vec![
        case("ports", |c, n| c.ports = n, second(), "Pod default/q", "pod.yaml"),
        case("endpoints", |c, n| c.endpoints = n, second(), "Pod default/q", "pod.yaml"),
        case("routes", |c, n| c.routes = n, third(), "Node c", "b.yaml"),
        case("next_hops", |c, n| c.next_hops = n, third(), "Node c", "b.yaml"),
        case("lpm_nodes", |c, n| c.lpm_nodes = n, third(), "Node c", "b.yaml"),
        case("neighbours", |c, n| c.neighbours = n, third(), "neighbour 192.0.2.3", "b.yaml"),
        case("tunnels", |c, n| c.tunnels = n, third(), "Node c", "b.yaml"),
        case("services", |c, n| c.services = n, extra(), "Service default/extra", "web.yaml"),
        case("backends", |c, n| c.backends = n, extra(), "Service default/extra", "web.yaml"),
    ]
}

fn core(dir: &Path, capacities: Capacities, max_tables_bytes: u64) -> Core {
    let options = Options { max_ports: capacities.ports, max_tables_bytes, ..options(dir) };
    let mut core = Core::new(options, Writer::open(dir, capacities).unwrap());
    core.take(files(&base()), kernel(&["p", "q"]));
    let resolved = KernelEvent::Neighbour(2, Ip::v4([192, 0, 2, 3]), Some(Mac([3; 6])));
    core.take(vec![], vec![Update::Event(resolved)]);
    assert_eq!(core.errors(), Vec::<String>::new());
    core
}

/// What a table holds when only [`base`] is asked for, and what all hold.
fn base_usage(table: &str) -> u32 {
    let dir = tempfile::tempdir().unwrap();
    let core = core(dir.path(), Capacities::default(), u64::MAX);
    let usage = core.publisher().usage().into_iter().find(|usage| usage.table == table);
    usage.unwrap().used as u32
}

/// (left out now, left out since the start) of a table, as the API tells.
fn left_out(core: &Core, table: &str) -> (u64, u64) {
    let status = core.status();
    let usage = status.tables.iter().find(|usage| usage.table == table).unwrap();
    (usage.left_out, usage.left_out_total)
}

fn is_part_of(part: &Model, whole: &Model) -> bool {
    part.iter().all(|(key, value)| whole.get(key) == Some(value))
}

#[test]
fn what_a_full_table_has_no_room_for_is_named_and_goes_in_when_there_is_room() {
    for Case { table, set, more, object, frees } in cases() {
        let dir = tempfile::tempdir().unwrap();
        let mut capacities = Capacities::default();
        set(&mut capacities, base_usage(table));
        let mut core = core(dir.path(), capacities, 0);
        let before = read(core.publisher().view());
        let unrelated = service("unrelated", "10.96.0.77", 80);

        let mut all = base();
        all.push(("more.yaml", more));
        if !matches!(table, "services" | "backends") {
            all.push(("unrelated.yaml", unrelated));
        }
        core.take(files(&all), vec![]);
        let (errors, now) = (core.errors(), read(core.publisher().view()));
        assert_eq!(errors.len(), 1, "{table}: {errors:?}");
        let said = |part: &str| assert!(errors[0].contains(part), "{table}: {part} is not in: {}", errors[0]);
        said(&format!("table {table} is full"));
        said(&format!("left out: {object}"));
        said(if table == "ports" { "run fewer pods" } else { "raise --max-table-mib" });
        assert!(is_part_of(&before, &now), "{table}: what was installed stays as it was");
        if !matches!(table, "services" | "backends") {
            assert!(core.services().iter().any(|s| s.name == "unrelated"), "{table}: all else goes on");
        }
        let warnings = core.status().warnings;
        assert!(
            warnings.iter().any(|w| w.contains(&format!("table {table} holds"))),
            "{table}: {warnings:?}"
        );
        // A pod that gets no port number never comes as far as the table.
        let counted = match table {
            "ports" => (0, 0),
            // To its pods, and to its own address.
            "routes" | "next_hops" => (2, 2),
            // Its port, and all others.
            "services" => (2, 2),
            _ => (1, 1),
        };
        assert_eq!(left_out(&core, table), counted, "{table}");
        core.retry();
        assert_eq!(left_out(&core, table), counted, "{table}: tried again, it is not counted again");

        all.retain(|(name, _)| *name != frees);
        core.take(files(&all), vec![]);
        assert_eq!(core.errors(), Vec::<String>::new(), "{table}: there is room now");
        assert_eq!(&read(core.publisher().view()), core.index().model(), "{table}");
        assert_eq!(left_out(&core, table), (0, counted.1), "{table}");
    }
}

#[test]
fn a_table_that_may_grow_takes_everything_and_warns_of_nothing() {
    for Case { table, set, more, .. } in cases().into_iter().filter(|case| case.table != "ports") {
        let dir = tempfile::tempdir().unwrap();
        let mut capacities = Capacities::default();
        set(&mut capacities, base_usage(table));
        let mut core = core(dir.path(), capacities, 1 << 30);
        let mut all = base();
        all.push(("more.yaml", more));
        core.take(files(&all), vec![]);
        assert_eq!(&read(core.publisher().view()), core.index().model(), "{table}");
        let status = core.status();
        assert_eq!((status.errors, status.warnings), (vec![], vec![]), "{table}");
        let usage = status.tables.iter().find(|usage| usage.table == table).unwrap();
        assert!(usage.can_grow && usage.capacity > u64::from(base_usage(table)), "{table}");
    }
}
