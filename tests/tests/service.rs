//! Real TCP through the service address, across nodes: every byte right, no request lost, no checksum
//! error in any kernel, every frame and packet accounted for at the end.

mod common;

use common::Cluster;
use fairway_tests::gate;
use fairway_tests::manifests::ServiceSpec;
use fairway_tests::pod::client::{Summary, now_us};
use fairway_tests::pod::udp::UdpSummary;
use fairway_tests::report::{Figure, Report};
use fairway_tests::snmp::{self, Counters};
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::Duration;

const DOWNLOAD_BYTES: u64 = 200_000_000;
const REQUESTS: u64 = 2000;
const READY: Duration = Duration::from_secs(10);

fn report(case: &str, workers: u8, figures: &[(&str, f64, &str)]) {
    let params = json!({"workers": workers});
    let figures: Vec<Figure> =
        figures.iter().map(|(metric, v, unit)| Figure::new(case, params.clone(), metric, *v, unit)).collect();
    Report::of_target("test").add(&figures).expect("report");
}

/// The traffic, with so many workers (and uplink queues) per node.
fn service_traffic(workers: u8) {
    let mut cluster = Cluster::start(workers);
    // Backends on the other node only, so that every byte crosses the wire.
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);
    let before = cluster.kernel_counters();

    let url = cluster.url(&format!("/bytes/{DOWNLOAD_BYTES}"));
    let args = ["get", url.as_str(), "--verify-bytes", "--timeout-ms", "170000"];
    let download: Summary = cluster.client(&args, Duration::from_secs(180));
    assert_eq!(download.errors, Vec::<String>::new());
    assert_eq!((download.bytes, download.byte_exact), (DOWNLOAD_BYTES, Some(true)));
    let mbit_s = download.bytes as f64 * 8.0 / download.seconds / 1e6;
    let sender = |counters: &[(String, Counters)]| {
        let (_, web_2) = counters.iter().find(|(place, _)| place == "web-2").expect("web-2");
        web_2["Tcp.RetransSegs"] as f64
    };
    let resent = sender(&cluster.kernel_counters()) - sender(&before);
    report(
        "service_download",
        workers,
        &[("tcp_throughput", mbit_s, "Mbit/s"), ("tcp_retransmitted", resent, "segments")],
    );

    let (url, count) = (cluster.url("/"), REQUESTS.to_string());
    let args = ["get", url.as_str(), "--no-keepalive", "--count", &count, "--concurrency", "8"];
    let short: Summary = cluster.client(&args, Duration::from_secs(120));
    assert_eq!(short.errors, Vec::<String>::new());
    assert_eq!((short.requests, short.failures), (REQUESTS, 0));
    assert_eq!(short.backends["web-2"].requests, REQUESTS);
    report(
        "service_requests",
        workers,
        &[
            ("requests_per_second", short.requests as f64 / short.seconds, "1/s"),
            ("request_p50", short.latency.p50_us as f64, "us"),
            ("request_p99", short.latency.p99_us as f64, "us"),
            ("failures", short.failures as f64, "1"),
        ],
    );

    for (place, before, after) in cluster.kernel_counters_since(before) {
        let errors = snmp::new_errors(&before, &after);
        assert!(errors.is_empty(), "{place} counts packet errors: {errors:?}");
        let expects_traffic = place != "web-1";
        assert_eq!(after["Tcp.InSegs"] > before["Tcp.InSegs"], expects_traffic, "traffic at {place}");
    }
    cluster.stop_and_check_invariants();
}

#[test]
fn a_download_and_short_requests_through_the_service_lose_nothing() {
    if gate::may_run("service") {
        let _alone = gate::alone();
        service_traffic(1);
    }
}

#[test]
fn the_same_holds_with_two_workers_that_hand_packets_to_each_other() {
    if gate::may_run("service") {
        let _alone = gate::alone();
        service_traffic(2);
    }
}

#[test]
fn new_connections_spread_over_the_backends_on_both_nodes() {
    if !gate::may_run("service") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-1", "web-2"]);
    cluster.wait_for_backends(&["web-1", "web-2"]);
    let url = cluster.url("/");
    let args = ["get", url.as_str(), "--no-keepalive", "--count", "400"];
    let summary: Summary = cluster.client(&args, Duration::from_secs(60));
    assert_eq!((summary.failures, summary.errors), (0, Vec::new()));
    // 400 fair coins give fewer than 100 heads once in 10^24 runs.
    for name in ["web-1", "web-2"] {
        assert!(summary.backends[name].requests >= 100, "{:?}", summary.backends);
    }
    // A kept connection keeps its backend: all requests on it are answered by one.
    let args = ["get", url.as_str(), "--count", "50"];
    let kept: Summary = cluster.client(&args, Duration::from_secs(60));
    assert_eq!((kept.failures, kept.backends.len()), (0, 1), "{:?}", kept.backends);
    cluster.stop_and_check_invariants();
}

#[test]
fn udp_of_all_sizes_comes_back_unchanged() {
    if !gate::may_run("service") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-2"]);
    cluster.wait_for_backends(&["web-2"]);
    let before = cluster.kernel_counters();
    for backend in ["web-1", "web-2"] {
        let target = cluster.pod_address(backend);
        for size_bytes in ["0", "1", "63", "512", "1422"] {
            let args = ["udp-ping", target.as_str(), "--count", "20", "--size-bytes", size_bytes];
            let summary: UdpSummary = cluster.client(&args, Duration::from_secs(40));
            assert_eq!((summary.received, summary.damaged), (20, 0), "{size_bytes} bytes to {backend}");
        }
    }
    for (place, before, after) in cluster.kernel_counters_since(before) {
        let errors = snmp::new_errors(&before, &after);
        assert!(errors.is_empty(), "{place} counts packet errors: {errors:?}");
    }
    cluster.stop_and_check_invariants();
}

#[test]
fn edited_manifests_take_effect_within_a_second_and_fail_no_request() {
    if !gate::may_run("service") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    cluster.set_backends(&["web-1"]);
    cluster.wait_for_backends(&["web-1"]);
    let url = cluster.url("/");
    let args = ["get", url.as_str(), "--no-keepalive", "--duration-ms", "2500"];
    for (case, backends, newcomer, leaver) in [
        ("add_backend", &["web-1", "web-2"][..], Some("web-2"), None),
        ("remove_backend", &["web-2"][..], None, Some("web-1")),
    ] {
        let client = cluster.testbed.start_client(cluster.client, &args).expect("client");
        std::thread::sleep(Duration::from_millis(400));
        let edited_us = now_us();
        cluster.set_backends(backends);
        let deadline = Duration::from_secs(30);
        let summary: Summary = cluster.testbed.finish_client(client, deadline).expect("summary");
        assert_eq!((summary.failures, &summary.errors), (0, &Vec::new()));
        let seen =
            |name| summary.backends.get(name).unwrap_or_else(|| panic!("{name} is not in {summary:?}"));
        let first = newcomer.map(|name| seen(name).first_us);
        let last = leaver.map(|name| seen(name).last_us);
        let effect_us = first.or(last).expect("one of them").saturating_sub(edited_us);
        report(case, 1, &[("effect", effect_us as f64 / 1000.0, "ms")]);
        assert!(effect_us < 1_000_000, "{case} took {effect_us} us");
    }
    cluster.stop_and_check_invariants();
}

#[test]
fn a_service_made_while_the_engine_runs_is_routed_by_the_node_too() {
    if !gate::may_run("service") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = Cluster::start(1);
    let late = Ipv4Addr::new(10, 96, 0, 90);
    let service = ServiceSpec { name: "late".to_owned(), cluster_ip: late, ..cluster.service.clone() };
    cluster.testbed.manifests().service(&service).expect("service");
    let waited = cluster.testbed.wait("the kernel routes the new service to the engine", READY, |testbed| {
        let routes = testbed.nodes()[0].netns().ip(["route", "show", &late.to_string()]);
        let routes = routes.map_err(|error| error.to_string())?;
        if routes.contains("fwhost0") { Ok(()) } else { Err(format!("'{routes}'")) }
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
    cluster.stop_and_check_invariants();
}
