//! The engine replaced in place under load: what goes over, what is refused, and what happens when the new
//! program cannot take over.

mod common;

use common::{Cluster, number_after};
use fairway_tests::gate;
use fairway_tests::pod::client::Summary;
use fairway_tests::process::Output;
use fairway_tests::programs::share_of_cores;
use fairway_tests::sys;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ROUNDS: u64 = 20;
const CLIENT_DEADLINE: Duration = Duration::from_secs(90);
/// The node whose engine is restarted.
const NODE: usize = 0;

/// What the node's engine is seen to be.
struct Engine {
    pid: u32,
    /// What its descriptors are, without the numbers in their names.
    descriptors: Vec<String>,
    packets: u64,
}

/// The descriptors of a process. Those that are open for a moment only are left out.
fn descriptors(pid: u32) -> Vec<String> {
    let look = || {
        let dir = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
        let names = dir.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        let named = names.map(|name| name.display().to_string().replace(|c: char| c.is_ascii_digit(), ""));
        let mut all: Vec<String> = named.collect();
        all.sort_unstable();
        all
    };
    let looks = (0..5).map(|_| {
        std::thread::sleep(Duration::from_millis(20));
        look()
    });
    looks.min_by_key(Vec::len).unwrap_or_default()
}

fn engine(cluster: &mut Cluster) -> Engine {
    let node = cluster.testbed.node_mut(NODE);
    let answer = node.ask(&["counters"]).unwrap_or_else(|error| panic!("{error}"));
    let counters = answer.to_string();
    let pid = node.dataplane().expect("the dataplane runs").pid();
    let packets = number_after(&counters, "rx-packets").unwrap_or_else(|| panic!("{counters}"));
    Engine { pid, descriptors: descriptors(pid), packets }
}

fn restart(cluster: &mut Cluster) -> Output {
    cluster.testbed.node_mut(NODE).restart_dataplane().unwrap_or_else(|error| panic!("{error}"))
}

/// Has the engine close descriptors that it was born with, from whoever ran the test: the next image does not get
/// them.
fn forget_what_was_inherited(cluster: &mut Cluster) {
    restart(cluster).success().unwrap_or_else(|error| panic!("{error}"));
}

/// A client that asks the service over new connections.
fn requests(cluster: &mut Cluster) -> Summary {
    let url = cluster.url("/");
    cluster.client(&["get", &url, "--count", "20", "--no-keepalive"], CLIENT_DEADLINE)
}

#[test]
fn twenty_restarts_under_load_lose_no_byte_no_frame_and_no_descriptor() {
    if !gate::may_run("restart") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(2);
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);
    let url = cluster.url("/bytes/60000000");
    let args = ["get", url.as_str(), "--verify-bytes", "--duration-ms", "9000", "--timeout-ms", "60000"];
    let client = cluster.testbed.start_client(cluster.client, &args).expect("client");
    // Connections of the former images go on where they are, although new ones would go elsewhere.
    std::thread::sleep(Duration::from_millis(300));

    forget_what_was_inherited(&mut cluster);
    let first = engine(&mut cluster);
    let mut last_packets = first.packets;
    for round in 1..=ROUNDS {
        let said = restart(&mut cluster).success().unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(said.contains("restarted in place"), "round {round}: {said}");
        let now = engine(&mut cluster);
        assert_eq!((now.pid, &now.descriptors), (first.pid, &first.descriptors), "round {round}");
        assert!(now.packets >= last_packets, "round {round}: counters went back to {}", now.packets);
        last_packets = now.packets;
        std::thread::sleep(Duration::from_millis(100));
    }
    let summary: Summary = cluster.testbed.finish_client(client, CLIENT_DEADLINE).expect("summary");
    assert_eq!((summary.failures, &summary.errors), (0, &Vec::new()), "of {} requests", summary.requests);
    assert!(summary.requests > 0);
    assert_eq!(summary.byte_exact, Some(true));
    assert!(
        last_packets > first.packets + 1000,
        "there was a load: {} packets",
        last_packets - first.packets
    );
    cluster.stop_and_check_invariants();
}

/// A script in the place of the dataplane's program.
fn script(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, format!("#!/bin/sh\n{text}\n")).expect("script");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).expect("script");
    std::fs::rename(&new, path).expect("script");
}

/// Starts the node's engine from a file of its own, which the caller may replace.
fn start_from_own_file(cluster: &mut Cluster) -> (PathBuf, PathBuf) {
    let node = cluster.testbed.node_mut(NODE);
    node.stop_dataplane().unwrap_or_else(|error| panic!("{error}"));
    let program = node.program("fairway-dataplane").unwrap_or_else(|error| panic!("{error}"));
    let own = node.run_dir().join("engine");
    std::fs::copy(&program, &own).expect("copy");
    let cores = share_of_cores(&sys::cores(), NODE, 1);
    node.start_dataplane_from(&own, &["--cores", &cores]).unwrap_or_else(|error| panic!("{error}"));
    cluster.wait_for_gateways();
    forget_what_was_inherited(cluster);
    (own, program)
}

#[test]
fn a_program_that_cannot_take_over_is_refused_and_nothing_stops() {
    if !gate::may_run("restart") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);
    let (own, program) = start_from_own_file(&mut cluster);
    let before = engine(&mut cluster);
    let refused = |cluster: &mut Cluster, expected: &str| {
        let output = restart(cluster);
        assert!(!output.status.success(), "{output:?}");
        assert!(output.stderr.contains(expected), "{output:?}");
        let now = engine(cluster);
        assert_eq!((now.pid, &now.descriptors), (before.pid, &before.descriptors));
    };
    std::fs::remove_file(&own).expect("remove");
    refused(&mut cluster, "nothing was stopped");
    script(&own, "echo no such option >&2; exit 2");
    refused(&mut cluster, "no such option");
    script(&own, r#"echo '{"version":"9.9.9","state_version":99}'"#);
    refused(&mut cluster, "takes over state of version 99");
    script(&own, &format!(r#"exec {} "$@" --connections 128"#, program.display()));
    refused(&mut cluster, "is not a connection table of this version");
    // This one says yes and is gone when it is to be executed: the workers had stopped, and go on.
    script(&own, &format!(r#"{} "$@"; code=$?; rm "$0"; exit $code"#, program.display()));
    refused(&mut cluster, "the old program goes on");
    assert_eq!(requests(&mut cluster).failures, 0);
    // And a sound program is taken.
    std::fs::copy(&program, &own).expect("copy");
    let said = restart(&mut cluster).success().unwrap_or_else(|error| panic!("{error}"));
    assert!(said.contains("restarted in place"), "{said}");
    assert_eq!(requests(&mut cluster).failures, 0);
    cluster.stop_and_check_invariants();
}

#[test]
fn a_state_that_cannot_be_read_has_the_new_image_begin_anew() {
    if !gate::may_run("restart") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);
    // Damage on the way: between the image that writes the state and the one that reads it.
    let cases = [("200", "x", "checksum is wrong"), ("8", "c", "is of version")];
    for (place, byte, reason) in cases {
        let (own, program) = start_from_own_file(&mut cluster);
        let before = engine(&mut cluster);
        let damage = format!(
            r#"[ -z "$FAIRWAY_HANDOVER_FD" ] || printf {byte} | dd of=/proc/self/fd/$FAIRWAY_HANDOVER_FD bs=1 seek={place} conv=notrunc
exec {} "$@""#,
            program.display()
        );
        script(&own, &damage);
        let said = restart(&mut cluster).success().unwrap_or_else(|error| panic!("{error}"));
        assert!(said.contains("ports opened anew") && said.contains(reason), "{said}");
        let now = engine(&mut cluster);
        assert_eq!((now.pid, &now.descriptors), (before.pid, &before.descriptors), "nothing is left open");
        assert!(now.packets >= before.packets, "counters went back");
        cluster.wait_for_gateways();
        assert_eq!(requests(&mut cluster).failures, 0);
    }
    cluster.stop_and_check_invariants();
}
