//! The cluster that the end-to-end tests share: two nodes, a client on the first, backends on both, and a
//! service in front of them.

// Each test file uses its own part of this.
#![allow(dead_code)]

pub(crate) mod carrier;
pub(crate) mod dual_stack;
pub(crate) mod load;
pub(crate) mod pools;
pub(crate) mod underlay6;
pub(crate) mod ways;

use fairway_tests::engines;
use fairway_tests::manifests::{EndpointSpec, ServiceSpec};
use fairway_tests::pod::client::Summary;
use fairway_tests::snmp::{self, Counters};
use fairway_tests::testbed::POD_PORT;
use fairway_tests::{Options, PodId, Testbed};
use std::net::Ipv4Addr;
use std::time::Duration;

const READY: Duration = Duration::from_secs(20);

/// The first number that follows a word.
pub(crate) fn number_after(text: &str, word: &str) -> Option<u64> {
    let rest = &text[text.find(word)? + word.len()..];
    let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits[..digits.find(|c: char| !c.is_ascii_digit())?].parse().ok()
}

/// A running cluster.
pub(crate) struct Cluster {
    pub(crate) testbed: Testbed,
    /// On the first node.
    pub(crate) client: PodId,
    /// web-1 on the first node, web-2 and web-3 on the second.
    pub(crate) web: [PodId; 3],
    pub(crate) service: ServiceSpec,
}

impl Cluster {
    /// Builds it, starts everything, and waits until every pod reaches its gateway. The service has no
    /// backend yet.
    pub(crate) fn start(workers: u8) -> Cluster {
        let mut cluster = Cluster::build(workers);
        cluster.testbed.start_nodes(usize::from(workers)).expect("start the nodes");
        cluster.wait_for_gateways();
        cluster
    }

    /// The same with addresses of both families.
    pub(crate) fn start_dual_stack() -> Cluster {
        let mut cluster = Cluster::build_with(Options { dual_stack: true, ..Options::default() });
        cluster.testbed.start_nodes(1).expect("start the nodes");
        cluster.wait_for_gateways();
        cluster
    }

    /// Builds it without starting Fairway.
    pub(crate) fn build(workers: u8) -> Cluster {
        Cluster::build_with(Options { uplink_queues: workers, ..Options::default() })
    }

    pub(crate) fn build_with(options: Options) -> Cluster {
        let mut testbed = Testbed::new(options).expect("testbed");
        let mut pod = |node: usize, name: &str, last: u8| {
            let ip = Ipv4Addr::new(10, 244, node as u8 + 1, last);
            testbed.add_pod(node, "shop", name, ip).expect("pod")
        };
        let client = pod(0, "client", 10);
        let web = [pod(0, "web-1", 11), pod(1, "web-2", 12), pod(1, "web-3", 13)];
        for id in web {
            testbed.start_server(id).expect("server");
        }
        let service = ServiceSpec {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            cluster_ip: Ipv4Addr::new(10, 96, 0, 80),
            port: 80,
            target_port: POD_PORT,
        };
        testbed.manifests().namespace("shop").expect("namespace");
        testbed.manifests().service(&service).expect("service");
        testbed.manifests().endpoints(&service, &[]).expect("endpoints");
        Cluster { testbed, client, web, service }
    }

    /// Waits until every pod reaches its gateway, which is the engine.
    pub(crate) fn wait_for_gateways(&mut self) {
        let what = "every pod reaches its gateway";
        let waited = self.testbed.wait(what, READY, |testbed| engines::carry(testbed));
        waited.unwrap_or_else(|error| panic!("{error}"));
    }

    /// The pod of this name.
    pub(crate) fn pod(&self, name: &str) -> PodId {
        let all = [self.client, self.web[0], self.web[1], self.web[2]];
        let found = all.into_iter().find(|id| self.testbed.pod(*id).name() == name);
        found.unwrap_or_else(|| panic!("there is no pod {name}"))
    }

    /// Makes these pods the service's only backends.
    pub(crate) fn set_backends(&self, names: &[&str]) {
        let endpoint = |name: &&str| {
            let pod = self.testbed.pod(self.pod(name));
            let node = self.testbed.nodes()[pod.node()].name().to_owned();
            EndpointSpec { pod: (*name).to_owned(), ip: pod.ip(), node }
        };
        let endpoints: Vec<EndpointSpec> = names.iter().map(endpoint).collect();
        self.testbed.manifests().endpoints(&self.service, &endpoints).expect("endpoints");
    }

    /// Waits until exactly these backends answer through the service.
    pub(crate) fn wait_for_backends(&mut self, names: &[&str]) {
        let (url, client) = (self.url("/"), self.client);
        let waited = self.testbed.wait(&format!("{names:?} answer"), READY, |testbed| {
            let args = ["get", url.as_str(), "--no-keepalive", "--count", "40", "--timeout-ms", "500"];
            let netns = testbed.pod(client).netns();
            let summary: Summary =
                testbed.client(netns, &args, Duration::from_secs(40)).map_err(|e| e.to_string())?;
            let got: Vec<&str> = summary.backends.keys().map(String::as_str).collect();
            let complete = summary.failures == 0 && got == names;
            if complete { Ok(()) } else { Err(format!("{got:?}, errors {:?}", summary.errors)) }
        });
        waited.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Runs `fairway-pod` in the client pod.
    pub(crate) fn client<T: serde::de::DeserializeOwned>(&self, args: &[&str], deadline: Duration) -> T {
        let netns = self.testbed.pod(self.client).netns();
        self.testbed.client(netns, args, deadline).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A path at the service.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.service.cluster_ip, self.service.port)
    }

    /// Address and port of a pod's server.
    pub(crate) fn pod_address(&self, name: &str) -> String {
        format!("{}:{POD_PORT}", self.testbed.pod(self.pod(name)).ip())
    }

    /// What the kernels of client, web-1, web-2 and the nodes count now.
    pub(crate) fn kernel_counters(&self) -> Vec<(String, Counters)> {
        let pods = ["client", "web-1", "web-2"];
        let pods = pods.map(|name| (name.to_owned(), self.testbed.pod(self.pod(name)).netns()));
        let read = |(name, netns)| (name, snmp::read(netns).expect("kernel counters"));
        pods.into_iter().map(read).collect()
    }

    /// Place, earlier counters and counters now.
    pub(crate) fn kernel_counters_since(
        &self,
        before: Vec<(String, Counters)>,
    ) -> Vec<(String, Counters, Counters)> {
        let now = self.kernel_counters();
        before.into_iter().zip(now).map(|((place, old), (_, new))| (place, old, new)).collect()
    }

    /// Stops everything in order. The engines end with exit code 0 only if no frame is missing (I1) and
    /// every packet is accounted for (I2), and say so.
    pub(crate) fn stop_and_check_invariants(mut self) {
        for node in 0..self.testbed.nodes().len() {
            let lines = self.testbed.node_mut(node).stop_dataplane().unwrap_or_else(|e| panic!("{e}"));
            assert!(!lines.is_empty(), "the engine's last words speak of I1 and I2");
            self.testbed.node_mut(node).stop_control().unwrap_or_else(|e| panic!("{e}"));
        }
    }
}
