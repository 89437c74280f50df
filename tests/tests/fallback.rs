//! The kernel's own way for pod traffic: with no engine, with one on one side only, with no control either, pods go on
//! reaching each other; connections between pods live through the change to the kernel and back; and the
//! kernel takes nothing from an engine that runs.

mod common;

use common::Cluster;
use common::carrier::{BOTH, start_engine, stop_engine, traffic, wait_for_carrier};
use common::load::{self, Streams};
use fairway_control::names;
use fairway_pmd::steering::{PortClass, Steering, SteeringError};
use fairway_tests::engines;
use fairway_tests::gate;
use fairway_tests::ping::ping;
use fairway_tests::pod::client::Summary;
use fairway_tests::pod::probe::ProbeSummary;
use fairway_tests::pod::stream::StreamSummary;
use fairway_tests::process::wait_for;
use fairway_tests::report::{Figure, Report};
use fairway_tests::testbed::STREAM_PORT;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const READY: Duration = Duration::from_secs(20);
const DEADLINE: Duration = Duration::from_secs(60);
const VXLAN: &str = "fairway.vxlan";
const STREAMS: Streams =
    Streams { count: 20, records: 70, record_bytes: 1000, interval_ms: 100, timeout_ms: 40_000 };
const PROBE_PPS: u64 = 1000;
const PROBE_MS: u64 = 8000;

/// Which way a node's packets went: by its engine's uplink, or by its kernel's VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ways {
    engine: u64,
    kernel: u64,
}

fn ways(cluster: &Cluster, node: usize) -> Ways {
    let node = &cluster.testbed.nodes()[node];
    let links = node.netns().ip(["-s", "-j", "link", "show", "dev", VXLAN]).expect("the VXLAN device");
    let links: Value = serde_json::from_str(&links).expect("JSON");
    let count = |way: &str| links[0]["stats64"][way]["packets"].as_u64().expect("a counter");
    let engine = engines::received(node).expect("counters")["uplink0"];
    Ways { engine, kernel: count("rx") + count("tx") }
}

/// Pods reach pods, nodes reach pods and pods reach nodes, by ping and by TCP to the byte.
fn everybody_reaches_everybody(cluster: &Cluster, when: &str) {
    let testbed = &cluster.testbed;
    let pod = |name: &str| testbed.pod(cluster.pod(name));
    let (near, far) = (testbed.nodes()[0].netns(), testbed.nodes()[1].netns());
    for (from, netns, to) in [
        ("client", pod("client").netns(), pod("web-1").ip()),
        ("client", pod("client").netns(), pod("web-2").ip()),
        ("web-3", pod("web-3").netns(), pod("client").ip()),
        ("its node", near, pod("client").ip()),
        ("another node", far, pod("client").ip()),
        ("client", pod("client").netns(), testbed.nodes()[0].ip()),
        ("client", pod("client").netns(), Ipv4Addr::new(10, 244, 2, 1)),
    ] {
        // The largest packet of a pod, unfragmented.
        let summary = ping(netns, to, 5, 1450).unwrap_or_else(|error| panic!("{error}"));
        assert!(summary.complete(), "{when}: {from} to {to}: {}", summary.output);
    }
    for (from, netns, to) in [
        ("client", pod("client").netns(), "web-1"),
        ("client", pod("client").netns(), "web-2"),
        ("web-3", pod("web-3").netns(), "web-1"),
        ("its node", near, "web-1"),
        ("another node", near, "web-2"),
    ] {
        let url = format!("http://{}/bytes/300000", cluster.pod_address(to));
        let args = ["get", url.as_str(), "--verify-bytes", "--count", "3", "--no-keepalive"];
        let summary: Summary = testbed.client(netns, &args, DEADLINE).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((summary.failures, &summary.errors), (0, &Vec::new()), "{when}: {from} to {to}");
        assert_eq!(summary.byte_exact, Some(true), "{when}: {from} to {to}");
    }
}

/// One try to open a connection to the service: the error, and how long it took.
fn try_service(cluster: &Cluster, timeout_ms: u64) -> (String, Duration) {
    let (url, timeout, start) = (cluster.url("/"), timeout_ms.to_string(), Instant::now());
    let summary: Summary = cluster.client(&["get", &url, "--timeout-ms", &timeout], DEADLINE);
    assert_eq!((summary.requests, summary.failures), (1, 1), "a service answers without an engine");
    (summary.errors.join("; "), start.elapsed())
}

/// Stops both engines under connections and a probe between pods, and starts them again 2 s later.
fn change_over_and_back(cluster: &mut Cluster) -> (StreamSummary, ProbeSummary) {
    let target = format!("{}:{STREAM_PORT}", cluster.testbed.pod(cluster.pod("web-2")).ip());
    let streams = load::start_streams(cluster, &target, STREAMS);
    let probe = load::start_probe(cluster, "web-3", PROBE_PPS, PROBE_MS);
    std::thread::sleep(Duration::from_millis(500));
    BOTH.iter().for_each(|node| stop_engine(cluster, *node));
    std::thread::sleep(Duration::from_secs(2));
    BOTH.iter().for_each(|node| start_engine(cluster, *node));
    (load::answer(cluster, streams, DEADLINE), load::answer(cluster, probe, DEADLINE))
}

#[test]
fn the_kernel_carries_pod_traffic_while_the_engine_is_away_and_gives_it_back() {
    if !gate::may_run("fallback") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    wait_for_carrier(&mut cluster, &BOTH, "engine");
    wait_for_setup(&mut cluster);
    let before = BOTH.map(|node| ways(&cluster, node));
    everybody_reaches_everybody(&cluster, "both engines run");
    for node in BOTH {
        let now = ways(&cluster, node);
        assert!(now.engine > before[node].engine, "node {node}: {now:?}");
        assert_eq!(now.kernel, before[node].kernel, "node {node}: the kernel takes the engine's packets");
    }

    // Both engines end in order, and come back.
    let (streams, probe) = change_over_and_back(&mut cluster);
    println!("to the kernel and back: {}", load::told(&streams, &probe));
    let figure = |metric: &str, value: f64, unit: &str| {
        let params = json!({ "probe_pps": PROBE_PPS, "probe_ms": PROBE_MS, "engines_away_ms": 2000 });
        Figure::new("to_the_kernel_and_back", params, metric, value, unit)
    };
    let figures = [
        figure("streams_byte_exact", streams.byte_exact as f64, "1"),
        figure("packets_sent", probe.sent as f64, "1"),
        figure("packets_lost", probe.lost as f64, "1"),
        figure("packets_lost_in_a_row", probe.longest_loss as f64, "1"),
        figure("longest_gap", probe.longest_gap_ms, "ms"),
    ];
    Report::of_target("test").add(&figures).expect("report");
    assert_eq!((streams.streams, streams.byte_exact), (STREAMS.count, STREAMS.count), "{:?}", streams.errors);
    // Without the kernel, the two seconds alone would lose 2,000.
    assert!(probe.lost < PROBE_PPS, "{probe:?}");
    cluster.wait_for_gateways();

    // Both are killed, and control with them.
    for node in BOTH {
        cluster.testbed.node_mut(node).kill_control();
        cluster.testbed.node_mut(node).kill_dataplane();
    }
    everybody_reaches_everybody(&cluster, "neither engines nor control");
    for node in BOTH {
        cluster.testbed.node_mut(node).start_control().expect("control starts");
    }
    wait_for_carrier(&mut cluster, &BOTH, "kernel");
    everybody_reaches_everybody(&cluster, "no engine");

    one_engine_and_one_kernel(&mut cluster);

    // And both engines are in charge again.
    start_engine(&mut cluster, 1);
    wait_for_carrier(&mut cluster, &BOTH, "engine");
    cluster.wait_for_gateways();
    let before = BOTH.map(|node| ways(&cluster, node));
    everybody_reaches_everybody(&cluster, "both engines are back");
    for node in BOTH {
        let now = ways(&cluster, node);
        assert!(now.engine > before[node].engine, "node {node}: {now:?}");
        assert_eq!(now.kernel, before[node].kernel, "node {node}: the kernel still carries");
    }
    cluster.stop_and_check_invariants();
}

/// An engine and another node's kernel understand each other.
fn one_engine_and_one_kernel(cluster: &mut Cluster) {
    start_engine(cluster, 0);
    wait_for_carrier(cluster, &[0], "engine");
    wait_for_carrier(cluster, &[1], "kernel");
    let what = "the engine takes its pods' packets";
    let waited = cluster.testbed.wait(what, READY, |testbed| engines::carries(testbed, 0));
    waited.unwrap_or_else(|error| panic!("{error}"));
    let before = BOTH.map(|node| ways(cluster, node));
    everybody_reaches_everybody(cluster, "one engine");
    let after = BOTH.map(|node| ways(cluster, node));
    assert!(after[0].engine > before[0].engine, "{before:?} {after:?}");
    assert_eq!(after[0].kernel, before[0].kernel, "the kernel takes what is the engine's");
    assert!(after[1].kernel > before[1].kernel, "{before:?} {after:?}");
}

/// Waits until the fallback is made on both nodes.
fn wait_for_setup(cluster: &mut Cluster) {
    let pods = cluster.testbed.pods().len() / 2;
    let waited = cluster.testbed.wait("the fallback is made", READY, |testbed| {
        testbed.nodes().iter().try_for_each(|node| {
            let show = |args: [&str; 4]| node.netns().ip(args).map_err(|error| error.to_string());
            let routes = show(["route", "show", "table", "7070"])?;
            let made = routes.matches(" dev fw").count() == pods
                && routes.contains(VXLAN)
                && routes.contains("blackhole default");
            if made { Ok(()) } else { Err(routes) }
        })
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn without_an_engine_packets_to_services_vanish_at_first_and_are_refused_later() {
    if !gate::may_run("fallback") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);
    wait_for_setup(&mut cluster);
    // What leaves the cluster would go this way.
    for node in cluster.testbed.nodes() {
        node.netns().ip(["route", "add", "default", "via", "192.168.77.254"]).expect("default route");
    }
    BOTH.iter().for_each(|node| stop_engine(&mut cluster, *node));
    // A connect waits for the engine's return as it would for a lost packet.
    let (error, took) = try_service(&cluster, 1500);
    assert!(took >= Duration::from_millis(1400), "{took:?}: {error}");
    let said = traffic(&cluster, 0).expect("status");
    assert_eq!((&said["carried_by"], &said["services"]), (&json!("kernel"), &json!("dropped")), "{said}");

    let waited = wait_for("services are refused", READY, || {
        Ok(match traffic(&cluster, 0) {
            Ok(traffic) if traffic["services"] == "refused" => Ok(()),
            other => Err(format!("{other:?}")),
        })
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
    let refused = wait_for("a connect fails at once", READY, || {
        let (error, took) = try_service(&cluster, 5000);
        Ok(if took < Duration::from_millis(1500) { Ok(error) } else { Err(error) })
    });
    let error = refused.unwrap_or_else(|error| panic!("{error}"));
    assert!(error.contains("unreachable") || error.contains("No route"), "{error}");
    let run_dir = cluster.testbed.nodes()[0].run_dir().display().to_string();
    let text = cluster.testbed.nodes()[0].run("fairway", &["--run-dir", &run_dir, "status"]).expect("status");
    assert!(
        text.stdout.contains("the kernel carries pod-to-pod traffic (no Services: refused"),
        "{}",
        text.stdout
    );

    // The engine is back, and with it the service.
    BOTH.iter().for_each(|node| start_engine(&mut cluster, *node));
    cluster.wait_for_backends(&["web-2"]);
    wait_for_carrier(&mut cluster, &BOTH, "engine");
    wait_for_setup(&mut cluster);
    cluster.stop_and_check_invariants();
}

#[test]
fn the_engine_is_said_to_carry_the_traffic_once_its_ports_are_open() {
    if !gate::may_run("fallback") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    wait_for_carrier(&mut cluster, &BOTH, "engine");
    stop_engine(&mut cluster, 0);
    let carried_by = |cluster: &Cluster| traffic(cluster, 0).expect("status")["carried_by"].clone();
    // It is seen at once, whenever the last look was.
    assert_eq!(carried_by(&cluster), "kernel");
    // The client's device has a program already, as a killed engine's for a moment.
    let veth = names::host_veth("shop", "client");
    let occupy = || -> Result<Steering, SteeringError> {
        let mut steering = Steering::load()?;
        steering.attach(&veth, PortClass::Pod)?;
        Ok(steering)
    };
    let other = cluster.testbed.nodes()[0].netns().inside(occupy).expect("namespace").expect("attach");
    start_engine(&mut cluster, 0);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2500) {
        assert_eq!(carried_by(&cluster), "kernel", "after {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(other);
    wait_for_carrier(&mut cluster, &[0], "engine");
    // All ports, from then on.
    engines::carry(&cluster.testbed).expect("every pod reaches its gateway");
    cluster.stop_and_check_invariants();
}

#[test]
fn what_others_delete_comes_back_and_a_cleanup_leaves_nothing() {
    if !gate::may_run("fallback") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::build(1);
    for node in BOTH {
        cluster.testbed.node_mut(node).start_control().expect("control");
    }
    wait_for_carrier(&mut cluster, &BOTH, "kernel");
    wait_for_setup(&mut cluster);
    everybody_reaches_everybody(&cluster, "no engine yet");
    let ip = |cluster: &Cluster, args: &str| {
        let args: Vec<&str> = ["-n", cluster.testbed.nodes()[0].netns().name()]
            .into_iter()
            .chain(args.split_whitespace())
            .collect();
        let mut command = std::process::Command::new("ip");
        command.args(args);
        let output = fairway_tests::process::run(command, DEADLINE).expect("ip");
        output.success().unwrap_or_else(|error| panic!("{error}"))
    };
    for harm in [
        "link del fairway.vxlan",
        "link set fairway.vxlan down",
        "rule del pref 70",
        "route flush table 7070",
        "neigh del 192.168.77.2 dev fairway.vxlan",
        "neigh del 169.254.1.2 dev fwhost0",
    ] {
        ip(&cluster, harm);
        wait_for_setup(&mut cluster);
        let client = cluster.client;
        let target = cluster.testbed.pod(cluster.pod("web-2")).ip();
        let waited = cluster.testbed.wait(&format!("traffic flows after: {harm}"), READY, |testbed| {
            let summary = ping(testbed.pod(client).netns(), target, 1, 84).map_err(|e| e.to_string())?;
            if summary.complete() { Ok(()) } else { Err(summary.output) }
        });
        waited.unwrap_or_else(|error| panic!("{error}"));
    }

    // Without the fallback, control takes away what it made, and says what that means.
    let foreign = "route add 203.0.113.0/24 dev uplink0 table 7070";
    ip(&cluster, foreign);
    for node in BOTH {
        cluster.testbed.node_mut(node).stop_control().expect("control ends");
        cluster.testbed.node_mut(node).start_control_with(&["--no-kernel-fallback"]).expect("control");
    }
    wait_for_carrier(&mut cluster, &BOTH, "none");
    let waited = cluster.testbed.wait("the fallback is gone", READY, |testbed| {
        let node = testbed.nodes()[0].netns();
        let links = node.ip(["link", "show"]).map_err(|error| error.to_string())?;
        let rules = node.ip(["rule", "show"]).map_err(|error| error.to_string())?;
        if links.contains(VXLAN) || rules.contains("7070") { Err(format!("{links}{rules}")) } else { Ok(()) }
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(ip(&cluster, "route show table 7070").trim(), "203.0.113.0/24 dev uplink0 scope link");
    let veth = names::host_veth("shop", "client");
    let setting = format!("/proc/sys/net/ipv4/conf/{veth}/proxy_arp");
    let answers = cluster.testbed.nodes()[0].netns().run("cat", &[&setting], DEADLINE).expect("cat");
    assert_eq!(answers.success().expect("the setting").trim(), "0");
    let lost = ping(
        cluster.testbed.pod(cluster.client).netns(),
        cluster.testbed.pod(cluster.pod("web-1")).ip(),
        2,
        84,
    );
    assert_eq!(lost.expect("ping").received, 0, "the fallback is off");

    for node in BOTH {
        cluster.testbed.node_mut(node).stop_control().expect("control ends");
        cluster.testbed.node_mut(node).start_control().expect("control");
    }
    wait_for_carrier(&mut cluster, &BOTH, "kernel");
    wait_for_setup(&mut cluster);
    for node in BOTH {
        cluster.testbed.node_mut(node).stop_control().expect("control ends");
    }
    let filters = |cluster: &Cluster| {
        let args = ["filter", "show", "dev", "uplink0", "ingress"];
        let said = cluster.testbed.nodes()[0].netns().run("tc", &args, DEADLINE).expect("tc");
        said.success().unwrap_or_else(|error| panic!("{error}"))
    };
    assert!(filters(&cluster).contains("pref 70 bpf"), "{}", filters(&cluster));
    let cleaned = cluster.testbed.nodes()[0].run("fairway-control", &["--cleanup"]).expect("cleanup");
    cleaned.success().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(filters(&cluster).trim(), "");
    let left = [ip(&cluster, "link show"), ip(&cluster, "rule show"), ip(&cluster, "addr show")].concat();
    for trace in [VXLAN, "fwhost", "7070", "169.254.1."] {
        assert!(!left.contains(trace), "{trace} in:\n{left}");
    }
    assert!(!ip(&cluster, "neigh show nud permanent").contains("10.244"));
    assert_eq!(ip(&cluster, "route show table 7070").trim(), "203.0.113.0/24 dev uplink0 scope link");
}
