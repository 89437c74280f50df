//! TCP between real kernels while the engines track windows (docs/conntrack.md, "Strict tracking"): transfers in both
//! directions over a lossy link, engines killed and replaced in the middle, and resets that somebody else could have sent.

mod common;

use common::Cluster;
use common::load::{self, Streams};
use fairway_dataplane::wire::{TCP_LEN, checksum, proto, put_raw16, put16, tcp_flags};
use fairway_tests::gate;
use fairway_tests::netns::Netns;
use fairway_tests::pod::client::Summary;
use fairway_tests::pod::stream::StreamSummary;
use fairway_tests::programs::share_of_cores;
use fairway_tests::sys;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

const STRICT: [&str; 2] = ["--conntrack-tcp-liberal", "false"];
const DEADLINE: Duration = Duration::from_secs(60);
/// How long an engine that was killed is away; the kernels carry what they can meanwhile.
const DEAD: Duration = Duration::from_millis(300);
const REASON: &str = "tcp-out-of-window";

fn dataplane_args(cores: &str, liberal: bool) -> Vec<&str> {
    let mut args = vec!["--cores", cores];
    if !liberal {
        args.extend(STRICT);
    }
    args
}

fn start(liberal: bool) -> Cluster {
    let mut cluster = Cluster::build(1);
    for node in 0..cluster.testbed.nodes().len() {
        cluster.testbed.node_mut(node).start_control().expect("control");
        start_dataplane(&mut cluster, node, liberal);
    }
    cluster.wait_for_gateways();
    load::let_kernels_forward(&cluster);
    cluster
}

fn start_dataplane(cluster: &mut Cluster, node: usize, liberal: bool) {
    let cores = share_of_cores(&sys::cores(), node, 1);
    let started = cluster.testbed.node_mut(node).start_dataplane(&dataplane_args(&cores, liberal));
    started.expect("the dataplane starts");
}

/// Segments that a node's engine held to be outside.
fn outside(cluster: &Cluster, node: usize) -> u64 {
    let counters = cluster.testbed.nodes()[node].ask(&["counters"]).unwrap_or_else(|error| panic!("{error}"));
    counters["drops"][REASON].as_u64().unwrap_or_default()
}

/// One packet in so many is lost on its way into a pod, and as many on their way out.
fn lose(netns: &Netns, one_in: u32) {
    let rule = |hook: &str| {
        let drop = format!("meta l4proto tcp numgen random mod {one_in} == 0 drop");
        format!(
            "add chain inet loss {hook} {{ type filter hook {hook} priority 0; }}; add rule inet loss {hook} {drop};"
        )
    };
    let rules = format!("add table inet loss; {} {}", rule("input"), rule("output"));
    let done = netns.run("nft", &[&rules], Duration::from_secs(10)).and_then(|output| output.success());
    done.unwrap_or_else(|error| panic!("{error}"));
}

fn lose_nothing(netns: &Netns) {
    let done = netns.run("nft", &["delete table inet loss"], Duration::from_secs(10));
    done.and_then(|output| output.success()).unwrap_or_else(|error| panic!("{error}"));
}

/// The client's TCP connections through the service, as its node's engine sees them.
fn flows(cluster: &Cluster) -> Vec<Value> {
    let args = ["flows", "--pod", "shop/client", "--service", "shop/streams", "--proto", "tcp"];
    let answer = cluster.testbed.nodes()[0].ask(&args).unwrap_or_else(|error| panic!("{error}"));
    answer.as_array().expect("a list").clone()
}

/// A reset as if from the client's connection with this source port, with any number.
fn forge_reset(cluster: &Cluster, sport: u16, service: SocketAddrV4, seq: u32) {
    let pod = cluster.testbed.pod(cluster.client);
    let mut reset = [0; TCP_LEN];
    put16(&mut reset, 0, sport);
    put16(&mut reset, 2, service.port());
    reset[4..8].copy_from_slice(&seq.to_be_bytes());
    (reset[12], reset[13]) = (5 << 4, tcp_flags::RST);
    let raw = |ip: &Ipv4Addr| u32::from_ne_bytes(ip.octets());
    let pseudo = checksum::pseudo_header_v4(raw(&pod.ip()), raw(service.ip()), proto::TCP, TCP_LEN as u16);
    let sum = !checksum::fold(checksum::sum(&reset) + pseudo);
    put_raw16(&mut reset, 16, sum);
    let sent = pod.netns().inside(|| {
        let socket = Socket::new(Domain::IPV4, Type::from(libc::SOCK_RAW), Some(Protocol::TCP))?;
        socket.send_to(&reset, &SocketAddrV4::new(*service.ip(), 0).into())
    });
    assert_eq!(sent.expect("namespace").expect("the reset is sent"), TCP_LEN);
}

/// Transfers in both directions at once, through the service and to a pod of the same node.
fn transfer(cluster: &Cluster) {
    for url in
        [cluster.url("/bytes/4000000"), format!("http://{}/bytes/4000000", cluster.pod_address("web-1"))]
    {
        let args =
            ["get", &url, "--count", "6", "--concurrency", "3", "--verify-bytes", "--timeout-ms", "30000"];
        let summary: Summary = cluster.client(&args, DEADLINE);
        assert_eq!((summary.failures, summary.byte_exact), (0, Some(true)), "{:?}", summary.errors);
    }
}

fn echo(cluster: &mut Cluster, target: &str, streams: Streams, meanwhile: impl FnOnce(&mut Cluster)) {
    let client = load::start_streams(cluster, target, streams);
    meanwhile(cluster);
    let summary: StreamSummary = load::answer(cluster, client, DEADLINE);
    let all = (streams.count, streams.count);
    assert_eq!((summary.streams, summary.byte_exact), all, "{:?}", summary.errors);
    println!("{} streams byte-exact, longest stall {} ms", summary.streams, summary.longest_stall_ms);
}

#[test]
fn real_connections_lose_nothing_to_tracked_windows_and_forged_resets_end_none() {
    if !gate::may_run("windows") {
        return;
    }
    let mut cluster = start(false);
    let service = load::stream_service(&cluster);
    load::send_new_connections_to(&mut cluster, &service, &["web-2"]);
    let target = format!("{}:{}", service.cluster_ip, service.port);
    let near = format!("{}:{}", cluster.testbed.pod(cluster.pod("web-1")).ip(), service.target_port);

    let bulk = Streams { count: 8, records: 60, record_bytes: 30_000, interval_ms: 5, timeout_ms: 50_000 };
    transfer(&cluster);
    for target in [&target, &near] {
        echo(&mut cluster, target, bulk, |_| ());
    }
    let lossy = ["client", "web-2"].map(|name| cluster.pod(name));
    lossy.iter().for_each(|pod| lose(cluster.testbed.pod(*pod).netns(), 50));
    transfer(&cluster);
    echo(&mut cluster, &target, bulk, |_| ());
    lossy.iter().for_each(|pod| lose_nothing(cluster.testbed.pod(*pod).netns()));
    assert_eq!([outside(&cluster, 0), outside(&cluster, 1)], [0, 0], "genuine segments were dropped");

    // Engines come and go in the middle.
    let long = Streams { count: 50, records: 50, record_bytes: 5000, interval_ms: 80, timeout_ms: 40_000 };
    for node in [0, 1] {
        echo(&mut cluster, &target, long, |cluster| {
            std::thread::sleep(Duration::from_millis(700));
            cluster.testbed.node_mut(node).kill_dataplane();
            std::thread::sleep(DEAD);
            start_dataplane(cluster, node, false);
        });
    }
    echo(&mut cluster, &target, long, |cluster| {
        std::thread::sleep(Duration::from_millis(700));
        let said = cluster.testbed.nodes()[0].restart_dataplane().and_then(|output| output.success());
        let said = said.unwrap_or_else(|error| panic!("{error}"));
        assert!(said.contains("restarted in place"), "{said}");
    });
    println!("outside after kills and a restart: {:?}", [outside(&cluster, 0), outside(&cluster, 1)]);

    // A reset outside of the window: the engine drops and counts it, and remembers the connection as it was.
    let before = outside(&cluster, 0);
    let few = Streams { count: 5, records: 30, ..long };
    let service = SocketAddrV4::new(service.cluster_ip, service.port);
    echo(&mut cluster, &target, few, |cluster| {
        std::thread::sleep(Duration::from_millis(500));
        for flow in flows(cluster).iter().filter(|flow| flow["state"] == "established") {
            let sport = flow["source"]["port"].as_u64().expect("a port") as u16;
            (0..10u32).for_each(|n| forge_reset(cluster, sport, service, n.wrapping_mul(0x1999_9999)));
        }
        std::thread::sleep(Duration::from_millis(200));
        let established = flows(cluster).iter().filter(|flow| flow["state"] == "established").count();
        assert!(established >= few.count as usize, "{established} connections are left");
    });
    // Of ten numbers that lie a tenth of all apart, windows of a few hundred KiB take in one at most.
    assert!(outside(&cluster, 0) - before >= 9 * few.count, "{}", outside(&cluster, 0) - before);
    cluster.stop_and_check_invariants();
}

#[test]
fn liberal_tracking_believes_any_reset() {
    if !gate::may_run("windows") {
        return;
    }
    let mut cluster = start(true);
    let service = load::stream_service(&cluster);
    load::send_new_connections_to(&mut cluster, &service, &["web-2"]);
    let target = format!("{}:{}", service.cluster_ip, service.port);
    let few = Streams { count: 5, records: 20, record_bytes: 1000, interval_ms: 80, timeout_ms: 40_000 };
    let service = SocketAddrV4::new(service.cluster_ip, service.port);
    echo(&mut cluster, &target, few, |cluster| {
        std::thread::sleep(Duration::from_millis(300));
        let all = flows(cluster);
        for flow in all.iter().filter(|flow| flow["state"] == "established") {
            forge_reset(cluster, flow["source"]["port"].as_u64().expect("a port") as u16, service, 77);
        }
        std::thread::sleep(Duration::from_millis(200));
        let closed = flows(cluster).iter().filter(|flow| flow["state"] == "closed").count();
        assert!(closed >= few.count as usize, "{closed} of {} are closed", all.len());
    });
    assert_eq!(outside(&cluster, 0), 0);
    cluster.stop_and_check_invariants();
}
