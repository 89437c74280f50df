//! Control's core, in a process of its own, dies between any two stores of what it publishes, and another one goes on,
//! under the eyes of this process.

mod common;

use common::{files, kernel, node, options, pod, service, slice};
use fairway_control::core::Core;
use fairway_control::model::Model;
use fairway_control::publisher::read;
use fairway_tables::{Capacities, FaultStop, Ip, Reader, View, Writer};
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const DIR: &str = "FAIRWAY_CONTROL_TEST_DIR";
const SIDE: &str = "FAIRWAY_CONTROL_TEST_SIDE";
const STORES: &str = "FAIRWAY_CONTROL_TEST_STORES";

fn capacities() -> Capacities {
    Capacities {
        ports: 256,
        endpoints: 256,
        routes: 256,
        next_hops: 256,
        route_groups: 8,
        lpm_nodes: 256,
        neighbours: 256,
        tunnels: 256,
        services: 256,
        backends: 1024,
    }
}

/// One of two clusters that have every kind of object, and most of them differ.
fn manifests(side: u8) -> Vec<(&'static str, String)> {
    let far = [node("b", "10.244.2.0/24", "192.0.2.2"), node("c", "10.244.4.0/22", "192.0.2.3")];
    let pods = [pod("p", "a", "10.244.1.5"), pod("q", "a", "10.244.1.6"), pod("q", "a", "10.244.1.7")];
    let services: String = (0..6)
        .filter(|n| n % 3 != side)
        .map(|n| {
            let name = format!("s{n}");
            let ips: Vec<String> = (0..=(n + 3 * side) % 5).map(|k| format!("10.{side}.{n}.{k}")).collect();
            let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
            service(&name, &format!("10.96.0.{}", n + 1), 80) + &slice(&format!("{name}-1"), &name, &ips)
        })
        .collect();
    let (node_b, node_c) = (far[0].clone(), if side == 0 { far[1].clone() } else { String::new() });
    vec![
        ("nodes.yaml", node("a", "10.244.1.0/24", "192.0.2.1") + &node_b + &node_c),
        ("pods.yaml", if side == 0 { pods[0].clone() + &pods[1] } else { pods[2].clone() }),
        ("services.yaml", services),
    ]
}

/// What the other process does: publishes a side, and is gone at the store that it is told.
#[test]
fn dying_process() {
    let (Ok(dir), Ok(side), Ok(stores)) = (std::env::var(DIR), std::env::var(SIDE), std::env::var(STORES))
    else {
        return;
    };
    let (dir, side, stores) = (Path::new(&dir), side.parse().unwrap(), stores.parse().unwrap());
    let writer = Writer::open(dir, capacities()).unwrap();
    writer.stop_after_stores(stores);
    let mut core = Core::new(options(dir), writer);
    let work = AssertUnwindSafe(|| {
        core.take(files(&manifests(side)), kernel(&["p", "q"]));
        // What readers may still look at is not written over: as control does, ask again.
        let end = Instant::now() + Duration::from_secs(20);
        while !core.errors().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
            core.retry();
        }
    });
    if let Err(cause) = catch_unwind(work) {
        if !cause.is::<FaultStop>() {
            std::panic::resume_unwind(cause);
        }
        // A process that aborts runs no destructors: the tables stay as they were at that store.
        std::process::abort();
    }
    assert_eq!(core.errors(), Vec::<String>::new());
}

/// Has another process publish a side, and moves the reader on meanwhile; whether it got to the end.
fn publish(dir: &Path, side: u8, stores: u64, mut move_on: impl FnMut()) -> bool {
    let mut child = Command::new("sh")
        // No core dumps of deaths that are meant.
        .args(["-c", "ulimit -c 0; exec \"$0\" --exact dying_process --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env(DIR, dir)
        .env(SIDE, side.to_string())
        .env(STORES, stores.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let status = loop {
        move_on();
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_micros(200)),
        }
    };
    let died = status.signal() == Some(6);
    assert!(died || status.success(), "{status}");
    !died
}

/// Every object is as on one side or as on the other.
fn assert_each_old_or_new(view: View<'_>, old: &Model, new: &Model, stores: u64) {
    let now = read(view);
    for key in now.keys().chain(old.keys()).chain(new.keys()) {
        let value = now.get(key);
        assert!(value == old.get(key) || value == new.get(key), "after {stores} stores, {key:?}: {value:?}");
    }
    for (prefix, paths) in view.routes() {
        let hop = paths.only().expect("routes of this cluster have one next hop");
        if hop.kind() == Some(fairway_tables::NextHopKind::Tunnel) {
            assert!(view.tunnel(hop.addr).is_some(), "after {stores} stores, {prefix} leads into no tunnel");
        }
    }
}

/// A route's entry and what look-ups find are stores apart, which only the journal spans.
fn assert_look_ups_agree_with_routes(view: View<'_>, stores: u64) {
    // Within each node's prefix, from one end to the other, and in none.
    for addr in [[10, 244, 2, 5], [10, 244, 4, 0], [10, 244, 5, 9], [10, 244, 7, 255], [10, 245, 0, 1]] {
        let addr = Ip::v4(addr);
        let longest = view.routes().filter(|(prefix, _)| prefix.contains(addr)).max_by_key(|(p, _)| p.len());
        assert_eq!(view.paths(addr), longest.map(|(_, paths)| paths), "after {stores} stores, {addr}");
    }
}

#[test]
fn a_control_process_killed_at_any_store_leaves_whole_objects_and_the_next_one_completes_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(publish(dir, 0, u64::MAX, || {}));
    let mut reader = Reader::open(dir, "witness").unwrap();
    let mut tables = |side| {
        assert!(publish(dir, side, u64::MAX, || reader.quiescent()));
        reader.quiescent();
        read(reader.view())
    };
    // Numbers of ports and services depend on what was there before, so each way is gone once to know them.
    tables(1);
    let models = [tables(0), tables(1)];
    let (mut stores, mut deaths, mut from, mut undisturbed) = (0, 0, 1, 0);
    // At every store of both ways, until neither has that many.
    while undisturbed < 2 {
        let to = 1 - from;
        let (old, new) = (&models[from], &models[to]);
        let died = !publish(dir, to as u8, stores, || reader.quiescent());
        assert_each_old_or_new(reader.view(), old, new, stores);
        if died {
            deaths += 1;
            assert!(publish(dir, to as u8, u64::MAX, || reader.quiescent()), "the next one goes on");
        }
        reader.quiescent();
        undisturbed = if died { 0 } else { undisturbed + 1 };
        assert_eq!(&read(reader.view()), new, "after {stores} stores");
        assert_look_ups_agree_with_routes(reader.view(), stores);
        reader.quiescent();
        from = to;
        stores += to as u64;
    }
    assert!(deaths > 100, "only {deaths} deaths in {stores} stores");
}
