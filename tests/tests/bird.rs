//! Pods' blocks that only BGP knows of: real BIRD daemons on the nodes tell each other, directly or by route
//! reflectors, and the engines forward without encapsulation by what BIRD puts into the kernels. A reflector may be FRR.

mod common;

use common::Cluster;
use fairway_tests::bird::{Bird, node_config, reflector_config};
use fairway_tests::capture::by_encapsulation;
use fairway_tests::frr::{self, Frr};
use fairway_tests::gate;
use fairway_tests::netns::Netns;
use fairway_tests::pod::client::Summary;
use std::net::Ipv4Addr;
use std::time::Duration;

const READY: Duration = Duration::from_secs(30);
const POOL: &str = "10.244.0.0/16";
const NEVER: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: pods\nspec:\n  \
                     cidr: 10.244.0.0/16\n  ipipMode: Never\n  vxlanMode: Never\n";

/// Two nodes whose engines know each other's pods by the kernel's table alone.
fn start() -> Cluster {
    let mut cluster = Cluster::build(1);
    cluster.testbed.manifests().write("pool", NEVER).expect("manifest");
    for number in 0..2 {
        let node = cluster.testbed.node_mut(number);
        node.start_control_with(&["--direct-routes", "kernel"]).expect("control");
        node.start_dataplane(&["--workers", "1"]).expect("dataplane");
    }
    cluster.wait_for_gateways();
    cluster
}

fn start_node_bird(cluster: &Cluster, number: usize, neighbours: &[Ipv4Addr]) -> Bird {
    let node = &cluster.testbed.nodes()[number];
    let config = node_config(node.ip(), node.pod_cidr(), POOL, neighbours);
    Bird::start(&cluster.testbed, node.netns(), node.name(), &config).expect("bird")
}

/// Waits until the engine of a node sends to a range through exactly these next hops.
fn wait_for_hops(cluster: &mut Cluster, number: usize, prefix: &str, hops: &[&str]) {
    let what = format!("node {number} sends to {prefix} through {hops:?}");
    let waited = cluster.testbed.wait(&what, READY, |testbed| {
        let node = &testbed.nodes()[number];
        let routes = node.ask(&["routes"]).map_err(|e| e.to_string())?;
        let neighbours = node.ask(&["neighbours"]).map_err(|e| e.to_string())?;
        let all = routes.as_array().ok_or("no list")?;
        let found: Vec<&str> = all
            .iter()
            .filter(|route| route["prefix"] == prefix && route["kind"] == "gateway")
            .filter_map(|route| route["next_hop"].as_str())
            .collect();
        let resolved = |hop: &&str| {
            neighbours.as_array().is_some_and(|all| all.iter().any(|neighbour| neighbour["ip"] == **hop))
        };
        if found == hops && hops.iter().all(resolved) {
            Ok(())
        } else {
            Err(format!("routes {routes}, neighbours {neighbours}"))
        }
    });
    waited.unwrap_or_else(|error| panic!("{error}"));
}

/// A download between the pods of the two nodes, byte-exact.
fn download(cluster: &Cluster) {
    let url = format!("http://{}/bytes/1000000", cluster.pod_address("web-2"));
    let args =
        ["get", url.as_str(), "--verify-bytes", "--count", "8", "--no-keepalive", "--timeout-ms", "20000"];
    let summary: Summary = cluster.client(&args, Duration::from_secs(60));
    assert_eq!((summary.errors, summary.byte_exact), (Vec::new(), Some(true)));
}

/// Insists that a pod learns by ICMP that the other node's pods cannot be reached.
fn expect_refusal(cluster: &Cluster) {
    let netns = cluster.testbed.pod(cluster.client).netns();
    let target = cluster.testbed.pod(cluster.pod("web-2")).ip().to_string();
    let args = ["-n", "-c", "1", "-W", "2", &target];
    let said = netns.run("ping", &args, Duration::from_secs(10)).expect("ping runs").stdout;
    assert!(said.contains("From 10.244.1.1 ") && said.contains("Destination Host Unreachable"), "{said}");
}

#[test]
fn full_mesh_nodes_tell_each_other_their_blocks_and_a_dead_one_is_refused() {
    if !gate::may_run("bird") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = start();
    let ips: Vec<Ipv4Addr> = cluster.testbed.nodes().iter().map(|node| node.ip()).collect();
    expect_refusal(&cluster);
    let _first = start_node_bird(&cluster, 0, &ips[1..]);
    let second = start_node_bird(&cluster, 1, &ips[..1]);
    wait_for_hops(&mut cluster, 0, "10.244.2.0/24", &["192.168.77.2"]);
    wait_for_hops(&mut cluster, 1, "10.244.1.0/24", &["192.168.77.1"]);
    let capture = cluster.testbed.capture(ips[0], "mesh").expect("capture");
    download(&cluster);
    let counts = by_encapsulation(&capture.stop().expect("captured packets"));
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["direct"], "{counts:?}");

    second.kill();
    wait_for_hops(&mut cluster, 0, "10.244.2.0/24", &[]);
    expect_refusal(&cluster);
    let _second = start_node_bird(&cluster, 1, &ips[..1]);
    wait_for_hops(&mut cluster, 0, "10.244.2.0/24", &["192.168.77.2"]);
    wait_for_hops(&mut cluster, 1, "10.244.1.0/24", &["192.168.77.1"]);
    download(&cluster);
    cluster.stop_and_check_invariants();
}

/// A router on the switch that runs no part of Fairway.
fn router(cluster: &Cluster, number: u8) -> Netns {
    let name = format!("{}-router-{number}", cluster.testbed.name());
    let netns = Netns::create(&name).expect("router");
    cluster.testbed.join_switch(&netns, Ipv4Addr::new(192, 168, 77, number)).expect("join");
    let settings = || {
        let set = |name: &str, value: &str| std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value);
        // In and out by one device, which is no mistake here.
        set("conf/all/send_redirects", "0")?;
        set("conf/uplink0/send_redirects", "0")?;
        set("conf/all/rp_filter", "0")?;
        set("ip_forward", "1")
    };
    netns.inside(settings).expect("enter the router").expect("settings");
    netns
}

/// Which routers carried packets of pods between two captures' starts and ends.
fn carries(captures: Vec<fairway_tests::capture::Capture>) -> Vec<bool> {
    let carried = |packets: Vec<Vec<u8>>| by_encapsulation(&packets).contains_key("direct");
    captures.into_iter().map(|capture| carried(capture.stop().expect("captured packets"))).collect()
}

#[test]
fn two_route_reflectors_make_two_paths_and_the_death_of_one_leaves_the_other() {
    if !gate::may_run("bird") {
        return;
    }
    let _alone = gate::alone();
    let mut cluster = start();
    let ips: Vec<Ipv4Addr> = cluster.testbed.nodes().iter().map(|node| node.ip()).collect();
    let reflectors = [253, 254].map(|last| Ipv4Addr::new(192, 168, 77, last));
    let routers = [router(&cluster, 253), router(&cluster, 254)];
    let start_reflector = |cluster: &Cluster, i: usize| {
        let config = reflector_config(reflectors[i], &ips);
        Bird::start(&cluster.testbed, &routers[i], &format!("router-{i}"), &config).expect("bird")
    };
    let [first, second] = [0, 1].map(|i| start_reflector(&cluster, i));
    let _nodes = [0, 1].map(|number| start_node_bird(&cluster, number, &reflectors));
    let both = ["192.168.77.253", "192.168.77.254"];
    let capture = |cluster: &Cluster, name: &str| {
        reflectors
            .iter()
            .enumerate()
            .map(|(i, ip)| cluster.testbed.capture(*ip, &format!("{name}-{i}")).expect("capture"))
            .collect::<Vec<_>>()
    };
    wait_for_hops(&mut cluster, 0, "10.244.2.0/24", &both);
    wait_for_hops(&mut cluster, 1, "10.244.1.0/24", &both);
    let captures = capture(&cluster, "both");
    // Eight connections each choose one of two paths, in either direction: it takes bad luck of 1 in 32,000 that one
    // of the routers sees none of them.
    download(&cluster);
    assert_eq!(carries(captures), [true, true]);

    first.kill();
    wait_for_hops(&mut cluster, 0, "10.244.2.0/24", &both[1..]);
    wait_for_hops(&mut cluster, 1, "10.244.1.0/24", &both[1..]);
    let captures = capture(&cluster, "one");
    download(&cluster);
    assert_eq!(carries(captures), [false, true]);

    second.kill();
    wait_for_hops(&mut cluster, 0, "10.244.2.0/24", &[]);
    expect_refusal(&cluster);
    let _again = [0, 1].map(|i| start_reflector(&cluster, i));
    wait_for_hops(&mut cluster, 0, "10.244.2.0/24", &both);
    wait_for_hops(&mut cluster, 1, "10.244.1.0/24", &both);
    download(&cluster);
    cluster.stop_and_check_invariants();
}

#[test]
fn frr_as_route_reflector_and_router_serves_nodes_with_bird() {
    if !gate::may_run("bird") {
        return;
    }
    if !Frr::is_installed() {
        return gate::skip("bird", "FRR is not installed; scripts/install-deps installs it");
    }
    let _alone = gate::alone();
    let mut cluster = start();
    let ips: Vec<Ipv4Addr> = cluster.testbed.nodes().iter().map(|node| node.ip()).collect();
    let reflector = Ipv4Addr::new(192, 168, 77, 253);
    let router = router(&cluster, 253);
    let _nodes = [0, 1].map(|number| start_node_bird(&cluster, number, &[reflector]));
    for round in 0..2 {
        expect_refusal(&cluster);
        let config = frr::reflector_config(reflector, &ips);
        let frr = Frr::start(&cluster.testbed, &router, "router", reflector, &config).expect("FRR");
        wait_for_hops(&mut cluster, 0, "10.244.2.0/24", &["192.168.77.253"]);
        wait_for_hops(&mut cluster, 1, "10.244.1.0/24", &["192.168.77.253"]);
        let capture = cluster.testbed.capture(reflector, &format!("frr-{round}")).expect("capture");
        download(&cluster);
        assert_eq!(carries(vec![capture]), [true]);
        frr.kill();
        wait_for_hops(&mut cluster, 0, "10.244.2.0/24", &[]);
        wait_for_hops(&mut cluster, 1, "10.244.1.0/24", &[]);
    }
    cluster.stop_and_check_invariants();
}
