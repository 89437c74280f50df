//! ENIs where something is missing: a gateway that does not answer is named and harms nothing else; without an engine, pods of a
//! node that share ENIs still reach each other; pods with an ENI of their own reach far backends also where nobody masquerades.

mod common;

use common::ways::{download, wait_until_named};
use fairway_tests::dual_stack::Family;
use fairway_tests::node::UPLINK;
use fairway_tests::pod::client::Summary;
use fairway_tests::testbed::POD_PORT;
use fairway_tests::vpc::Vpc;
use fairway_tests::{Options, PodId, Testbed, engines, gate};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

const READY: Duration = Duration::from_secs(60);

/// Two pods on an ENI each, and one on another node, all with servers.
struct Pods {
    first: PodId,
    second: PodId,
    far: PodId,
}

fn build() -> (Testbed, Vpc, Pods) {
    let options = Options { dual_stack: true, ..Options::default() };
    let mut testbed = Testbed::new(options).expect("testbed");
    testbed.manifests().namespace("shop").expect("namespace");
    let mut vpc = Vpc::create(&testbed).expect("network");
    let mut pod = |testbed: &mut Testbed, name: &str, node: usize, eni: u8, host: u8| {
        vpc.add_eni(testbed, node, eni).expect("ENI");
        let ip = vpc.assign(testbed, node, eni, host).expect("address");
        let id = testbed.add_pod(node, "shop", name, ip).expect("pod");
        testbed.start_server(id).expect("server");
        id
    };
    let first = pod(&mut testbed, "first", 0, 0, 10);
    let second = pod(&mut testbed, "second", 0, 1, 11);
    let far = pod(&mut testbed, "far", 1, 0, 12);
    (testbed, vpc, Pods { first, second, far })
}

/// A pod's server.
fn of(testbed: &Testbed, pod: PodId, family: Family) -> SocketAddr {
    SocketAddr::new(family.of(testbed.pod(pod).ip()), POD_PORT)
}

#[test]
fn a_silent_gateway_of_an_eni_is_named_and_everything_else_is_reached() {
    if !gate::may_run("eni") {
        return;
    }
    let _alone = gate::alone();
    let (mut testbed, vpc, pods) = build();
    vpc.set_gateway(&testbed, 0, 0, false).expect("gateway");
    testbed.start_nodes(1).expect("start the nodes");
    testbed.wait("the engines carry", READY, |testbed| engines::carry(testbed)).expect("engines");
    for gateway in ["172.16.10.253", "fd00:16:10:0:ffff:ffff:ffff:fffd"] {
        wait_until_named(&mut testbed, &[&format!("next hop {gateway}"), "does not answer on eni0"]);
    }
    for family in Family::ALL {
        // By the other ENI, to the other node and back.
        let far = of(&testbed, pods.far, family);
        let waited = testbed.wait("the second ENI's pod reaches the other node", READY, |testbed| {
            download(testbed, testbed.pod(pods.second).netns(), far, "2000")
        });
        waited.unwrap_or_else(|error| panic!("{error}"));
        // Within the node, the pod behind the silent gateway included, and from the node itself.
        let [first, second] = [pods.first, pods.second].map(|pod| of(&testbed, pod, family));
        let (first_pod, second_pod) = (testbed.pod(pods.first).netns(), testbed.pod(pods.second).netns());
        let node = testbed.nodes()[0].netns();
        for (from, to) in [(first_pod, second), (second_pod, first), (node, first), (node, second)] {
            download(&testbed, from, to, "10000").unwrap_or_else(|error| panic!("{error}"));
        }
        // What has to go by the silent gateway goes nowhere, above all not by the other ENI.
        let lost = download(&testbed, first_pod, far, "1000");
        assert!(lost.is_err(), "{family}");
    }
    vpc.set_gateway(&testbed, 0, 0, true).expect("gateway");
    for family in Family::ALL {
        let far = of(&testbed, pods.far, family);
        let waited = testbed.wait("the first ENI's pod reaches the other node", READY, |testbed| {
            download(testbed, testbed.pod(pods.first).netns(), far, "2000")
        });
        waited.unwrap_or_else(|error| panic!("{error}"));
    }
    stop(testbed);
}

/// The engines end well only if no frame is missing (I1) and every packet is accounted for (I2).
fn stop(mut testbed: Testbed) {
    for node in 0..2 {
        testbed.node_mut(node).stop_dataplane().unwrap_or_else(|e| panic!("{e}"));
        testbed.node_mut(node).stop_control().unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn without_the_engine_pods_on_enis_of_one_node_reach_each_other_and_the_node_them() {
    if !gate::may_run("eni") {
        return;
    }
    let _alone = gate::alone();
    let (mut testbed, _vpc, pods) = build();
    testbed.start_nodes(1).expect("start the nodes");
    testbed.wait("the engines carry", READY, |testbed| engines::carry(testbed)).expect("engines");
    testbed.node_mut(0).kill_dataplane();
    for family in Family::ALL {
        let [first, second] = [pods.first, pods.second].map(|pod| of(&testbed, pod, family));
        let (first_pod, second_pod) = (pods.first, pods.second);
        for (from, to) in [(Some(first_pod), second), (Some(second_pod), first), (None, first)] {
            let waited = testbed.wait("the kernel carries", READY, |testbed| {
                let node = testbed.nodes()[0].netns();
                download(testbed, from.map_or(node, |pod| testbed.pod(pod).netns()), to, "2000")
            });
            waited.unwrap_or_else(|error| panic!("{error}"));
        }
    }
    stop(testbed);
}

/// A Service of both families with one backend.
fn service(vip: Ipv4Addr, backend: Ipv4Addr) -> String {
    let [ip, ip6] = Family::ALL.map(|family| family.of(vip));
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: web}}\nspec:\n  clusterIPs: [{ip}, '{ip6}']\n  \
         ports: [{{name: t, port: 80}}]\n"
    );
    for (n, family) in Family::ALL.into_iter().enumerate() {
        let ip = family.of(backend);
        yaml += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: shop\n  name: web-{n}\n  \
             labels: {{kubernetes.io/service-name: web}}\naddressType: {family}\nports: [{{name: t, port: {POD_PORT}}}]\n\
             endpoints: [{{addresses: ['{ip}']}}]\n"
        );
    }
    yaml
}

#[test]
fn a_pod_with_an_eni_of_its_own_reaches_far_backends_where_nobody_masquerades() {
    if !gate::may_run("eni") {
        return;
    }
    let _alone = gate::alone();
    let mut testbed = Testbed::new(Options { dual_stack: true, ..Options::default() }).expect("testbed");
    testbed.manifests().namespace("shop").expect("namespace");
    let mut vpc = Vpc::create(&testbed).expect("network");
    let ranges = ["10.96.0.0/16", "fd00:96::/32"];
    let client = vpc.give(&mut testbed, 0, 5, "client", &ranges).expect("pod");
    let far = vpc.give(&mut testbed, 1, 6, "far", &ranges).expect("pod");
    testbed.start_server(far).expect("server");
    let vip = Ipv4Addr::new(10, 96, 0, 44);
    testbed.manifests().write("web", &service(vip, testbed.pod(far).ip())).expect("service");
    // The cloud's network is the nodes' way out, and the first node forwards.
    let router = Ipv4Addr::new(192, 168, 77, 254);
    testbed.join_switch(vpc.netns(), router).expect("join");
    for node in 0..2 {
        for (family, everything) in Family::ALL.into_iter().zip(["0.0.0.0/0", "::/0"]) {
            let via = family.of(router).to_string();
            let route = ["route", "add", everything, "via", &via, "dev", UPLINK];
            testbed.nodes()[node].netns().ip(route).expect("route");
        }
        testbed.node_mut(node).set_control_options(&["--no-masquerade"]);
    }
    let forward = || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    };
    testbed.nodes()[0].netns().inside(forward).expect("namespace").expect("forwarding");
    testbed.start_nodes(1).expect("start the nodes");
    for family in Family::ALL {
        let url = format!("http://{}/client", SocketAddr::new(family.of(vip), 80));
        // The backend sees the node's address on its uplink, to which the network knows the way.
        let seen = format!("far {}", family.of(testbed.nodes()[0].ip()));
        let waited = testbed.wait(&format!("{url} answers"), READY, |testbed| {
            let args = ["get", url.as_str(), "--no-keepalive", "--count", "5", "--timeout-ms", "1000"];
            let netns = testbed.pod(client).netns();
            let summary: Summary =
                testbed.client(netns, &args, Duration::from_secs(20)).map_err(|e| e.to_string())?;
            let answers: Vec<&String> = summary.backends.keys().collect();
            let right = summary.failures == 0 && answers == [&seen];
            if right { Ok(()) } else { Err(format!("{answers:?}, {:?}", summary.errors)) }
        });
        waited.unwrap_or_else(|error| panic!("{error}"));
    }
    stop(testbed);
}
