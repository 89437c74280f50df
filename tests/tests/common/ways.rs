//! What the tests of ways between nodes share: pools and nodes as manifests, and traffic of every kind from one end to the
//! other while the wire is captured.

use super::Cluster;
use fairway_control::names;
use fairway_tests::Testbed;
use fairway_tests::capture::by_encapsulation;
use fairway_tests::netns::Netns;
use fairway_tests::pod::client::Summary;
use fairway_tests::pod::udp::UdpSummary;
use fairway_tests::station::{Peer, Station};
use fairway_tests::testbed::POD_PORT;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

const READY: Duration = Duration::from_secs(30);
const DOWNLOAD_BYTES: u64 = 3_000_000;

/// Waits until nodes send to a pod range by this kind of route and encapsulation, through a neighbour that answers.
pub(crate) fn wait_for_way(
    cluster: &mut Cluster,
    node: usize,
    prefix: &str,
    kind: &str,
    encapsulation: Option<&str>,
) {
    let what = format!("node {node} sends to {prefix} by {kind} {encapsulation:?}");
    let waited = cluster.testbed.wait(&what, READY, |testbed| {
        let node = &testbed.nodes()[node];
        let routes = node.ask(&["routes"]).map_err(|e| e.to_string())?;
        let route = routes.as_array().and_then(|all| all.iter().find(|route| route["prefix"] == prefix));
        let route = route.ok_or_else(|| format!("no route: {routes}"))?;
        let neighbours = node.ask(&["neighbours"]).map_err(|e| e.to_string())?;
        let right = route["kind"] == kind && route["encapsulation"].as_str() == encapsulation;
        let resolved = neighbours.as_array().is_some_and(|all| !all.is_empty());
        if right && resolved { Ok(()) } else { Err(format!("{route}, neighbours {neighbours}")) }
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
}

/// From a namespace to a pod's server: a download, byte-exact, and echoes of datagrams small and large.
pub(crate) fn exercise(cluster: &Cluster, what: &str, from: &Netns, server: Ipv4Addr) {
    exercise_at(cluster, what, from, &format!("{server}:{POD_PORT}"));
}

/// The same with the server's address and port, of either family.
pub(crate) fn exercise_at(cluster: &Cluster, what: &str, from: &Netns, target: &str) {
    let url = format!("http://{target}/bytes/{DOWNLOAD_BYTES}");
    let args = ["get", url.as_str(), "--verify-bytes", "--timeout-ms", "60000"];
    let summary: Summary = cluster
        .testbed
        .client(from, &args, Duration::from_secs(90))
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!((&summary.errors, summary.byte_exact), (&Vec::new(), Some(true)), "{what}");
    for size_bytes in ["1", "1472", "65000"] {
        // A sender on a wire with a larger MTU than the pod's learns that from its first datagram's loss (RFC 1191).
        let learn = ["udp-ping", target, "--size-bytes", size_bytes, "--timeout-ms", "1000"];
        let learnt: Result<UdpSummary, _> = cluster.testbed.client(from, &learn, Duration::from_secs(30));
        assert!(learnt.is_ok(), "{what}: {learnt:?}");
        let args = ["udp-ping", target, "--count", "5", "--size-bytes", size_bytes, "--timeout-ms", "3000"];
        let echoes: UdpSummary = cluster
            .testbed
            .client(from, &args, Duration::from_secs(60))
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!((echoes.received, echoes.damaged), (5, 0), "{what}: datagrams of {size_bytes} bytes");
    }
}

/// Exercises two ways while capturing the wire of `node`, and insists that all pods' packets are encapsulated so.
pub(crate) fn exercise_and_capture(
    cluster: &Cluster,
    name: &str,
    wire: &str,
    station: Ipv4Addr,
    ways: [(&Netns, Ipv4Addr); 2],
) {
    let capture = cluster.testbed.capture(station, name).expect("capture");
    for (from, server) in ways {
        exercise(cluster, name, from, server);
    }
    let counts = by_encapsulation(&capture.stop().expect("captured packets"));
    let kinds: Vec<&str> = counts.keys().map(String::as_str).collect();
    assert_eq!(kinds, [wire], "{name}: {counts:?}");
    // Both downloads alone are 4,000 full packets.
    assert!(counts[wire] > 4000, "{name}: {counts:?}");
}

/// Waits until the first node's status names something in these words, all in one place.
pub(crate) fn wait_until_named(testbed: &mut Testbed, words: &[&str]) {
    let waited = testbed.wait(&format!("status names {words:?}"), READY, |testbed| {
        let status = testbed.nodes()[0].ask(&["status"]).map_err(|e| e.to_string())?;
        let lists = [&status["pending"], &status["manifests"]["errors"], &status["errors"]];
        let all: Vec<String> =
            lists.iter().filter_map(|l| l.as_array()).flatten().map(ToString::to_string).collect();
        let named = all.iter().any(|entry| words.iter().all(|word| entry.contains(word)));
        if named { Ok(()) } else { Err(all.join("\n")) }
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
}

/// A download, byte-exact, or what went wrong.
pub(crate) fn download(
    testbed: &Testbed,
    from: &Netns,
    to: SocketAddr,
    timeout_ms: &str,
) -> Result<(), String> {
    let url = format!("http://{to}/bytes/500000");
    let args = ["get", url.as_str(), "--no-keepalive", "--verify-bytes", "--timeout-ms", timeout_ms];
    let summary: Summary = testbed.client(from, &args, Duration::from_secs(60)).map_err(|e| e.to_string())?;
    let right = summary.failures == 0 && summary.byte_exact == Some(true);
    if right { Ok(()) } else { Err(format!("{to}: {:?}", summary.errors)) }
}

/// What a station's Node object says, with the annotations of Calico and Flannel.
pub(crate) fn node_of_station(station: &Station, pod_cidr: &str, vtep_mac: &str) -> String {
    let ip = station.ip();
    format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: station\n  annotations:\n    \
         projectcalico.org/IPv4Address: {ip}/24\n    projectcalico.org/VXLANTunnelMACAddr: '{vtep_mac}'\n    \
         flannel.alpha.coreos.com/public-ip: {ip}\n    flannel.alpha.coreos.com/backend-data: \
         '{{\"VNI\":1,\"VtepMAC\":\"{vtep_mac}\"}}'\nspec:\n  podCIDR: {pod_cidr}\nstatus:\n  addresses:\n  \
         - type: InternalIP\n    address: {ip}\n"
    )
}

/// A node, as a station knows it.
pub(crate) fn peer_of(cluster: &Cluster, node: usize) -> Peer {
    let node = &cluster.testbed.nodes()[node];
    Peer {
        ip: node.ip(),
        vtep_mac: names::vtep_mac(node.name()).to_string(),
        pod_cidr: node.pod_cidr().to_owned(),
    }
}

/// Gives every pod an interface that believes in 1500 bytes.
pub(crate) fn enlarge_pods(cluster: &Cluster) {
    for pod in cluster.testbed.pods() {
        let veth = names::host_veth("shop", pod.name());
        let node = cluster.testbed.nodes()[pod.node()].netns();
        node.ip(["link", "set", &veth, "mtu", "1500"]).expect("mtu of the host's end");
        pod.netns().ip(["link", "set", "eth0", "mtu", "1500"]).expect("mtu of the pod's end");
    }
}

/// What `ping` says about one echo request with these options.
pub(crate) fn one_ping(netns: &Netns, options: &[&str], target: impl Into<IpAddr>) -> String {
    let target = target.into().to_string();
    let mut args = vec!["-n", "-c", "1", "-W", "2"];
    args.extend(options);
    args.push(&target);
    let output = netns.run("ping", &args, Duration::from_secs(10)).expect("ping runs");
    output.stdout + &output.stderr
}

/// Pings with IP packets of every size around a path's MTU: not to be fragmented, which tells the largest that passes,
/// and else, where each passes in as many parts as it takes. The pod must not have learned anything of this path yet.
pub(crate) fn ping_around_the_edge(
    netns: &Netns,
    target: impl Into<IpAddr>,
    path_mtu: u32,
    told_by: impl Into<IpAddr>,
) {
    let (target, told_by) = (target.into(), told_by.into());
    let (header, fragment_header) = if target.is_ipv4() { (20, 0) } else { (40, 8) };
    let ping = |whether: &str, bytes: u32| {
        one_ping(netns, &["-M", whether, "-s", &(bytes - header - 8).to_string()], target)
    };
    for bytes in path_mtu - 2..=path_mtu {
        let said = ping("do", bytes);
        assert!(said.contains("1 received"), "{bytes} bytes: {said}");
    }
    let one_too_many = || {
        let said = ping("do", path_mtu + 1);
        let told = if target.is_ipv4() {
            format!("Frag needed and DF set (mtu = {path_mtu})")
        } else {
            format!("Packet too big: mtu={path_mtu}")
        };
        assert!(said.contains(&told), "{said}");
        assert!(said.contains(&format!("From {told_by} ")), "who speaks: {said}");
    };
    // Packets of IPv6 are fragmented by their sender alone, who has to be told first; so has who answers.
    if !target.is_ipv4() {
        one_too_many();
        ping("dont", path_mtu + 1);
    }
    // All fragments but the last are multiples of 8 beside their headers.
    let room = path_mtu - header - fragment_header;
    for edge in [path_mtu, 1500, header + (room & !7) + room] {
        for bytes in edge - 9..=edge + 9 {
            let said = ping("dont", bytes);
            assert!(said.contains("1 received"), "{bytes} bytes, to be fragmented: {said}");
        }
    }
    if target.is_ipv4() {
        one_too_many();
    }
}

/// Downloads 8 MB from `server` and has its pod find the path's MTU by ICMP errors alone. Pods must be
/// [large](enlarge_pods).
pub(crate) fn learn_mtu_by_tcp(
    cluster: &Cluster,
    client: &Netns,
    url: &str,
    server: &Netns,
    back: impl Into<IpAddr>,
    mtu: u32,
) {
    const BYTES: u64 = 8_000_000;
    let back = back.into().to_string();
    let route = || server.ip(["route", "get", &back]).expect("route");
    let learnt = format!("mtu {mtu}");
    assert!(!route().contains(&learnt), "{}", route());
    let url = format!("{url}/bytes/{BYTES}");
    let args = ["get", url.as_str(), "--verify-bytes", "--timeout-ms", "60000"];
    let download: Summary =
        cluster.testbed.client(client, &args, Duration::from_secs(70)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(download.errors, Vec::<String>::new());
    assert_eq!((download.bytes, download.byte_exact), (BYTES, Some(true)));
    assert!(route().contains(&learnt), "{}", route());
}
