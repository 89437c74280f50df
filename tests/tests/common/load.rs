//! TCP streams through a service that last while parts of a node are killed, and a probe beside them.

use super::Cluster;
use fairway_tests::manifests::{EndpointSpec, ServiceSpec};
use fairway_tests::netns::Netns;
use fairway_tests::pod::probe::ProbeSummary;
use fairway_tests::pod::stream::{ALL_OPEN, StreamSummary};
use fairway_tests::process::{Process, wait_for};
use fairway_tests::testbed::STREAM_PORT;
use serde::de::DeserializeOwned;
use std::net::Ipv4Addr;
use std::time::Duration;

const OPENING: Duration = Duration::from_secs(45);

/// What streams send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams {
    pub(crate) count: u64,
    /// Records that each sends.
    pub(crate) records: u64,
    pub(crate) record_bytes: u64,
    pub(crate) interval_ms: u64,
    pub(crate) timeout_ms: u64,
}

/// The kernel of each node forwards, as on every Kubernetes node: what the engine does not take, it gets to see
/// and to answer.
pub(crate) fn let_kernels_forward(cluster: &Cluster) {
    for node in cluster.testbed.nodes() {
        let set = node.netns().run("sysctl", &["-qw", "net.ipv4.ip_forward=1"], Duration::from_secs(10));
        set.and_then(|output| output.success()).expect("the kernel forwards");
    }
}

/// What streams and probe went through, in words.
pub(crate) fn told(streams: &StreamSummary, probe: &ProbeSummary) -> String {
    format!(
        "{} of {} streams byte-exact, longest stall {} ms; probe: {} of {} lost, {} in a row, longest gap {:.1} ms",
        streams.byte_exact,
        streams.streams,
        streams.longest_stall_ms,
        probe.lost,
        probe.sent,
        probe.longest_loss,
        probe.longest_gap_ms
    )
}

/// A service in front of the servers that send streams back.
pub(crate) fn stream_service(cluster: &Cluster) -> ServiceSpec {
    let service = ServiceSpec {
        namespace: "shop".to_owned(),
        name: "streams".to_owned(),
        cluster_ip: Ipv4Addr::new(10, 96, 0, 81),
        port: 81,
        target_port: STREAM_PORT,
    };
    cluster.testbed.manifests().service(&service).expect("service");
    service
}

/// Has new connections to both services go to these pods.
pub(crate) fn send_new_connections_to(cluster: &mut Cluster, streams: &ServiceSpec, names: &[&str]) {
    let endpoint = |name: &&str| {
        let pod = cluster.testbed.pod(cluster.pod(name));
        let node = cluster.testbed.nodes()[pod.node()].name().to_owned();
        EndpointSpec { pod: (*name).to_owned(), ip: pod.ip(), node }
    };
    let endpoints: Vec<EndpointSpec> = names.iter().map(endpoint).collect();
    cluster.testbed.manifests().endpoints(streams, &endpoints).expect("endpoints");
    // Written later, so that once this one is in force the other is too.
    cluster.set_backends(names);
    cluster.wait_for_backends(names);
}

/// Opens streams to web-2 and web-3. New connections go to web-1 from then on, which would reset one whose binding
/// is forgotten.
pub(crate) fn open_streams(cluster: &mut Cluster, service: &ServiceSpec, streams: Streams) -> Process {
    send_new_connections_to(cluster, service, &["web-2", "web-3"]);
    let client = start_streams(cluster, &format!("{}:{}", service.cluster_ip, service.port), streams);
    send_new_connections_to(cluster, service, &["web-1"]);
    client
}

/// Opens streams from the client's pod to an address and port.
pub(crate) fn start_streams(cluster: &Cluster, target: &str, streams: Streams) -> Process {
    start_streams_in(cluster, cluster.testbed.pod(cluster.client).netns(), target, streams)
}

/// The same from any namespace.
pub(crate) fn start_streams_in(cluster: &Cluster, from: &Netns, target: &str, streams: Streams) -> Process {
    let Streams { count, records, record_bytes, interval_ms, timeout_ms } = streams;
    let numbers = [count, records, record_bytes, interval_ms, timeout_ms].map(|number| number.to_string());
    let [count, records, bytes, interval, timeout] = numbers.each_ref().map(String::as_str);
    let args = ["streams", target, "--count", count, "--records", records];
    let pace = ["--record-bytes", bytes, "--interval-ms", interval, "--timeout-ms", timeout];
    let client = cluster.testbed.start_client_in(from, from.name(), &[args, pace].concat()).expect("client");
    let opened = wait_for("all streams are open", OPENING, || {
        Ok(if client.log().contains(ALL_OPEN) { Ok(()) } else { Err(client.log()) })
    });
    opened.unwrap_or_else(|error| panic!("{error}"));
    client
}

/// Starts datagrams to a pod and back, at an even rate.
pub(crate) fn start_probe(cluster: &Cluster, pod: &str, rate_pps: u64, duration_ms: u64) -> Process {
    let (probed, pps, ms) = (cluster.pod_address(pod), rate_pps.to_string(), duration_ms.to_string());
    let args = ["probe", probed.as_str(), "--rate-pps", &pps, "--duration-ms", &ms];
    cluster.testbed.start_client(cluster.client, &args).expect("client")
}

/// The last line of a client that has ended.
pub(crate) fn answer<T: DeserializeOwned>(
    cluster: &mut Cluster,
    mut client: Process,
    deadline: Duration,
) -> T {
    let waited = cluster.testbed.wait(&format!("the {} ends", client.name()), deadline, |_| {
        client.ended().map(drop).ok_or("still running".to_owned())
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
    let log = client.log();
    serde_json::from_str(log.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {log}"))
}
