//! The demo's topology and its steps. A step returns what was checked, in words and figures, or the error
//! that ends the demo.

use super::edits;
use super::figures::{self, Figures};
use super::screen::Screen;
use fairway_tables::DropReason;
use fairway_tests::engines;
use fairway_tests::manifests::{EndpointSpec, ServiceSpec};
use fairway_tests::ping::{PingSummary, ping};
use fairway_tests::pod::client::Summary;
use fairway_tests::report::{Figure, Report};
use fairway_tests::testbed::POD_PORT;
use fairway_tests::{Error, PodId, Result, Testbed};
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

pub(super) const NAMESPACE: &str = "demo";
/// Longest time until a part of the testbed first works.
const READY: Duration = Duration::from_secs(20);
const CLIENT_DEADLINE: Duration = Duration::from_secs(60);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// An address of node-1's range that no pod has.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 250);
/// Largest packet of a pod: the wire's 1500 bytes less what VXLAN adds.
const POD_MTU: u32 = 1450;
const DOWNLOAD_BYTES: u64 = 20_000_000;
const SERVICE_REQUESTS: u64 = 200;

/// The demo under way.
pub(super) struct Scenario {
    pub(super) testbed: Testbed,
    pub(super) screen: Screen,
    pub(super) service: ServiceSpec,
    /// Pod whose clients make the requests; on node-1.
    pub(super) client: PodId,
    /// Backends: on node-1, on node-2, and on node-2 again, added later.
    pub(super) web: [PodId; 3],
    figures: Vec<Figure>,
}

impl Scenario {
    /// Builds pods and manifests, and starts the servers in the pods; not yet Fairway.
    pub(super) fn build(mut testbed: Testbed, screen: Screen) -> Result<Scenario> {
        let mut pod = |node: usize, name: &str, last: u8| {
            testbed.add_pod(node, NAMESPACE, name, Ipv4Addr::new(10, 244, node as u8 + 1, last))
        };
        let client = pod(0, "client", 10)?;
        let web = [pod(0, "web-1", 11)?, pod(1, "web-2", 12)?, pod(1, "web-3", 13)?];
        for id in web {
            testbed.start_server(id)?;
        }
        let service = ServiceSpec {
            namespace: NAMESPACE.to_owned(),
            name: "web".to_owned(),
            cluster_ip: Ipv4Addr::new(10, 96, 0, 80),
            port: 80,
            target_port: POD_PORT,
        };
        testbed.manifests().namespace(NAMESPACE)?;
        testbed.manifests().service(&service)?;
        let scenario = Scenario { testbed, screen, service, client, web, figures: Vec::new() };
        scenario.set_backends(&scenario.web[..2])?;
        Ok(scenario)
    }

    /// The testbed and the screen, when the steps are done.
    pub(super) fn into_parts(self) -> (Testbed, Screen) {
        (self.testbed, self.screen)
    }

    /// Makes these pods, and no others, the service's backends.
    pub(super) fn set_backends(&self, pods: &[PodId]) -> Result<()> {
        let endpoint = |id: &PodId| {
            let pod = self.testbed.pod(*id);
            let node = self.testbed.nodes()[pod.node()].name().to_owned();
            EndpointSpec { pod: pod.name().to_owned(), ip: pod.ip(), node }
        };
        let endpoints: Vec<EndpointSpec> = pods.iter().map(endpoint).collect();
        self.testbed.manifests().endpoints(&self.service, &endpoints)
    }

    /// Notes a figure for the report.
    pub(super) fn note(&mut self, case: &str, metric: &str, value: f64, unit: &str) {
        self.figures.push(Figure::new(case, json!({}), metric, value, unit));
    }

    /// All steps, in order; the first that fails ends it.
    pub(super) fn steps(&mut self) -> Result<()> {
        let screen = self.screen;
        self.introduce();
        screen.heading("What works");
        screen.step("start", || self.start())?;
        screen.step("pod → gateway", || self.gateway())?;
        let [near, far, _] = self.web;
        screen.step("pod → pod, same node", || self.pod_to_pod("pod_to_pod", near))?;
        screen.step("pod → pod, over VXLAN", || self.pod_to_pod("vxlan", far))?;
        screen.step("TCP over VXLAN", || self.download())?;
        screen.step("pod → ClusterIP", || self.service_spread())?;
        screen.step("host → pod", || self.host_to_pod())?;
        screen.heading("Editing the manifests while it runs");
        screen.step("add a backend", || edits::add_backend(self))?;
        screen.step("remove a backend", || edits::remove_backend(self))?;
        screen.heading("What does not work says why");
        screen.step("address without a pod", || self.nobody_there())?;
        screen.heading("Counters");
        let counters = Figures::read(self.testbed.nodes())?;
        screen.line(&counters.text());
        self.figures.extend(counters.for_report());
        Report::of_target("demo").add(&self.figures)
    }

    fn introduce(&self) {
        let screen = &self.screen;
        screen.heading("Two nodes, joined by a switch (MTU 1500); every node and pod is a namespace");
        for (number, node) in self.testbed.nodes().iter().enumerate() {
            let pods = self.testbed.pods().iter().filter(|pod| pod.node() == number);
            let pods: Vec<String> = pods.map(|pod| format!("{} {}", pod.name(), pod.ip())).collect();
            let (name, ip, cidr) = (node.name(), node.ip(), node.pod_cidr());
            screen.line(&format!("  {name}  {ip}  pods {cidr}: {}", pods.join(", ")));
        }
        let ServiceSpec { namespace, name, cluster_ip, port, .. } = &self.service;
        screen.line(&format!(
            "  Service {namespace}/{name}  {cluster_ip}:{port} → web-1 on node-1, web-2 on node-2"
        ));
        screen.line(&format!("  fed from {}", self.testbed.manifests().folder().display()));
    }

    fn start(&mut self) -> Result<String> {
        let start = Instant::now();
        self.testbed.start_nodes(1)?;
        // Before the engines run the kernels answer in their place, but not for services.
        self.testbed
            .wait("both engines carry the pods' traffic", READY, |testbed| engines::carry(testbed))?;
        let seconds = start.elapsed().as_secs_f64();
        self.note("start", "seconds", seconds, "s");
        Ok(format!("fairway-control and fairway-dataplane on both nodes ({seconds:.1} s)"))
    }

    /// Pings until the first answer, which may wait for ports and neighbours, and then insists on every
    /// answer.
    fn ping(&mut self, target: Ipv4Addr, packet_bytes: u32) -> Result<PingSummary> {
        let client = self.client;
        self.testbed.wait(&format!("{target} answers"), READY, |testbed| {
            match ping(testbed.pod(client).netns(), target, 1, 84) {
                Ok(summary) if summary.complete() => Ok(()),
                Ok(summary) => Err(summary.output),
                Err(error) => Err(error.to_string()),
            }
        })?;
        let summary = ping(self.testbed.pod(client).netns(), target, 20, packet_bytes)?;
        if summary.complete() {
            return Ok(summary);
        }
        Err(Error::Answer { what: format!("ping {target} -s {packet_bytes}"), reason: summary.output })
    }

    fn gateway(&mut self) -> Result<String> {
        let summary = self.ping(GATEWAY, 84)?;
        let mean_us = summary.mean_us.unwrap_or_default();
        self.note("gateway", "rtt_mean", mean_us, "us");
        Ok(format!("ping {GATEWAY}: {}/{} answered, {mean_us:.0} µs", summary.received, summary.sent))
    }

    fn pod_to_pod(&mut self, case: &str, target: PodId) -> Result<String> {
        let (name, ip) = (self.testbed.pod(target).name().to_owned(), self.testbed.pod(target).ip());
        let small = self.ping(ip, 84)?;
        let large = self.ping(ip, POD_MTU)?;
        let mean_us = small.mean_us.unwrap_or_default();
        self.note(case, "rtt_mean", mean_us, "us");
        let summary = self.get(&format!("http://{ip}:{POD_PORT}/"), &[])?;
        expect_backends(&summary, &[&name])?;
        Ok(format!(
            "ping {name} {ip}: {}/{} answered, {mean_us:.0} µs; {POD_MTU} bytes unfragmented: {}/{}; HTTP 200",
            small.received, small.sent, large.received, large.sent
        ))
    }

    /// Runs the HTTP client in the client pod and insists that no request fails.
    pub(super) fn get(&self, url: &str, args: &[&str]) -> Result<Summary> {
        let mut all = vec!["get", url];
        all.extend(args);
        let netns = self.testbed.pod(self.client).netns();
        let summary: Summary = self.testbed.client(netns, &all, CLIENT_DEADLINE)?;
        no_failure(url, summary)
    }

    fn download(&mut self) -> Result<String> {
        let ip = self.testbed.pod(self.web[1]).ip();
        let url = format!("http://{ip}:{POD_PORT}/bytes/{DOWNLOAD_BYTES}");
        let summary = self.get(&url, &["--verify-bytes", "--timeout-ms", "50000"])?;
        if summary.byte_exact != Some(true) || summary.bytes != DOWNLOAD_BYTES {
            return Err(Error::Answer {
                what: url,
                reason: format!("not the bytes that were sent: {summary:?}"),
            });
        }
        let mbit_s = summary.bytes as f64 * 8.0 / summary.seconds / 1e6;
        self.note("vxlan", "tcp_throughput", mbit_s, "Mbit/s");
        Ok(format!("{} MB from web-2, byte-exact, {mbit_s:.0} Mbit/s", DOWNLOAD_BYTES / 1_000_000))
    }

    fn service_spread(&mut self) -> Result<String> {
        let url = self.service_url();
        let client = self.client;
        self.testbed.wait("the service answers", READY, |testbed| {
            let args = ["get", url.as_str(), "--timeout-ms", "500"];
            match testbed.client::<Summary>(testbed.pod(client).netns(), &args, CLIENT_DEADLINE) {
                Ok(summary) if summary.failures == 0 => Ok(()),
                Ok(summary) => Err(summary.errors.join("; ")),
                Err(error) => Err(error.to_string()),
            }
        })?;
        let count = SERVICE_REQUESTS.to_string();
        let summary = self.get(&url, &["--count", &count, "--no-keepalive"])?;
        expect_backends(&summary, &["web-1", "web-2"])?;
        self.note("service", "request_p50", summary.latency.p50_us as f64, "us");
        let spread: Vec<String> =
            summary.backends.iter().map(|(name, b)| format!("{name} {}", b.requests)).collect();
        Ok(format!(
            "{}/{} requests to {url} answered: {}",
            summary.requests - summary.failures,
            summary.requests,
            spread.join(", ")
        ))
    }

    fn host_to_pod(&mut self) -> Result<String> {
        let mut done = Vec::new();
        for id in [self.web[0], self.web[1]] {
            let (name, ip) = (self.testbed.pod(id).name().to_owned(), self.testbed.pod(id).ip());
            let url = format!("http://{ip}:{POD_PORT}/");
            let args = ["get", url.as_str(), "--count", "10", "--no-keepalive"];
            let host = self.testbed.nodes()[0].netns();
            let summary: Summary = self.testbed.client(host, &args, CLIENT_DEADLINE)?;
            expect_backends(&no_failure(&url, summary)?, &[&name])?;
            done.push(format!("{name} 10/10"));
        }
        Ok(format!("requests from node-1's own network: {}", done.join(", ")))
    }

    fn nobody_there(&mut self) -> Result<String> {
        let dropped = |testbed: &Testbed| {
            figures::snapshot(&testbed.nodes()[0]).map(|s| s.drops(DropReason::NoEndpoint))
        };
        let before = dropped(&self.testbed)?;
        let summary = ping(self.testbed.pod(self.client).netns(), NOBODY, 3, 84)?;
        if summary.received > 0 {
            return Err(Error::Answer { what: format!("ping {NOBODY}"), reason: summary.output });
        }
        let grown = self.testbed.wait("the drops are counted", Duration::from_secs(5), |testbed| {
            let now = dropped(testbed).map_err(|e| e.to_string())?;
            if now >= before + 3 { Ok(now - before) } else { Err(format!("{} counted", now - before)) }
        })?;
        Ok(format!("ping {NOBODY}: {grown} packets dropped, reason no-endpoint"))
    }

    /// Where the service is reached.
    pub(super) fn service_url(&self) -> String {
        format!("http://{}:{}/", self.service.cluster_ip, self.service.port)
    }
}

/// An error unless every request was answered in full.
pub(super) fn no_failure(what: &str, summary: Summary) -> Result<Summary> {
    if summary.failures == 0 {
        return Ok(summary);
    }
    let (failures, requests, errors) = (summary.failures, summary.requests, summary.errors.join("; "));
    Err(Error::Answer {
        what: what.to_owned(),
        reason: format!("{failures} of {requests} requests failed: {errors}"),
    })
}

/// An error unless exactly these backends have answered.
fn expect_backends(summary: &Summary, expected: &[&str]) -> Result<()> {
    let got: Vec<&str> = summary.backends.keys().map(String::as_str).collect();
    if got == expected {
        return Ok(());
    }
    Err(Error::Answer {
        what: "the request".to_owned(),
        reason: format!("{got:?} answered, not {expected:?}"),
    })
}
