//! What several test files need: manifests of a small cluster, bounded waits, network namespaces.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod control;

use fairway_control::core::Options;
use fairway_control::index::{Facts, KernelEvent, KernelRoute, Link, Place};
use fairway_control::kernel::{NeighbourTrust, Update};
use fairway_control::names::{HOST_ENGINE_IF, HOST_KERNEL_IF, host_veth};
use fairway_tables::{Ip, Mac};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A name that no other test of this or another process has; short enough for a device.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{:x}{:x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Waits until the check gives a value, at most ten seconds; then fails with what it said last.
pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match check() {
            Ok(value) => return value,
            Err(last) if Instant::now() > deadline => panic!("{what} did not happen: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

pub(crate) fn node(name: &str, cidr: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: {cidr}}}\nstatus:\n  \
         addresses:\n  - {{type: Hostname, address: {name}}}\n  - {{type: InternalIP, address: {ip}}}\n---\n"
    )
}

/// What the kernel says of a node at 192.0.2.1 with `near` in its subnet and a router that leads to all else.
pub(crate) fn beside_a_router(near: Ip, router: Ip) -> Facts {
    let mut facts = Facts::default();
    for event in [
        KernelEvent::Link(Link { ifindex: 2, name: "eth0".into(), mac: Mac([2; 6]), mtu: 1500, up: true }),
        KernelEvent::Address(2, Ip::v4([192, 0, 2, 1])),
        KernelEvent::Route("192.0.2.0/24".parse().unwrap(), 0, KernelRoute::direct(2), Place::Last),
        KernelEvent::Route("0.0.0.0/0".parse().unwrap(), 0, KernelRoute::via(2, router), Place::Last),
        KernelEvent::Neighbour(2, near, Some(Mac([2, 0, 0, 0, 0, 2]))),
        KernelEvent::Neighbour(2, router, Some(Mac([2, 0, 0, 0, 0, 0xfe]))),
    ] {
        facts.apply(&event);
    }
    facts
}

pub(crate) fn pod(name: &str, node: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default}}\nspec: {{nodeName: {node}, \
         containers: []}}\nstatus: {{podIP: {ip}, podIPs: [{{ip: {ip}}}]}}\n---\n"
    )
}

pub(crate) fn service(name: &str, ip: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  clusterIP: {ip}\n  \
         ports:\n  - {{name: http, port: {port}, targetPort: 8080}}\n---\n"
    )
}

pub(crate) fn slice(name: &str, service: &str, ips: &[&str]) -> String {
    let endpoints: String = ips.iter().map(|ip| format!("- {{addresses: [{ip}]}}\n")).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: default\n  \
         labels: {{kubernetes.io/service-name: {service}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
         endpoints:\n{endpoints}---\n"
    )
}

/// Writes as an editor does: a new file, renamed into place.
pub(crate) fn replace(path: &Path, text: &str) {
    let new = path.with_extension("swp");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

/// Whether a privileged test can run; prints why not, and fails in CI.
pub(crate) fn privileged() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap_or("0").trim().to_owned();
    let capabilities = u64::from_str_radix(&effective, 16).unwrap_or(0);
    // CAP_NET_ADMIN (12) and CAP_SYS_ADMIN (21), capabilities(7).
    let able = capabilities >> 12 & 1 == 1 && capabilities >> 21 & 1 == 1;
    if !able {
        assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "CI must run privileged tests as root");
        eprintln!("skipped: needs CAP_NET_ADMIN and CAP_SYS_ADMIN");
    }
    able
}

/// Runs a command; its output, or a failure that says what it printed.
pub(crate) fn run(line: &str) -> Output {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The text that a command prints.
pub(crate) fn text(line: &str) -> String {
    String::from_utf8_lossy(&run(line).stdout).into_owned()
}

/// A network namespace, removed at the end even of a failed test.
pub(crate) struct Netns(pub(crate) String);

impl Netns {
    pub(crate) fn new(prefix: &str) -> Netns {
        let netns = Netns(unique(prefix));
        run(&format!("ip netns add {}", netns.0));
        netns.run("ip link set lo up");
        netns
    }

    pub(crate) fn run(&self, line: &str) -> Output {
        run(&format!("ip netns exec {} {line}", self.0))
    }

    pub(crate) fn text(&self, line: &str) -> String {
        String::from_utf8_lossy(&self.run(line).stdout).into_owned()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

pub(crate) fn options(run_dir: &Path) -> Options {
    Options::alone(run_dir, "a", 64)
}

pub(crate) fn files(list: &[(&str, String)]) -> Vec<fairway_control::manifests::Scan> {
    vec![Ok(list.iter().map(|(name, text)| ((*name).to_owned(), Ok(text.clone()))).collect())]
}

pub(crate) fn link(ifindex: u32, name: &str, mtu: u32) -> KernelEvent {
    KernelEvent::Link(Link {
        ifindex,
        name: name.into(),
        mac: Mac([2, 0, 0, 0, 0, ifindex as u8]),
        mtu,
        up: true,
    })
}

pub(crate) fn kernel(pods: &[&str]) -> Vec<Update> {
    let mut facts = Facts::default();
    let mut events = vec![
        link(2, "eth0", 1500),
        link(3, HOST_KERNEL_IF, 1450),
        link(4, HOST_ENGINE_IF, 1450),
        KernelEvent::Address(2, Ip::v4([192, 0, 2, 1])),
        KernelEvent::Route("192.0.2.0/24".parse().unwrap(), 0, KernelRoute::direct(2), Place::Last),
        KernelEvent::Neighbour(2, Ip::v4([192, 0, 2, 2]), Some(Mac([2; 6]))),
    ];
    let veths = pods.iter().enumerate().map(|(i, pod)| link(10 + i as u32, &host_veth("default", pod), 1450));
    events.extend(veths);
    events.iter().for_each(|event| facts.apply(event));
    vec![Update::Listing(facts, vec![(2, Ip::v4([192, 0, 2, 2]), NeighbourTrust::Fresh)])]
}
