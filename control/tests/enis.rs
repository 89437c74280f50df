//! ENIs as Terway's Node lists them: ports, endpoints and what is wrong with them, without privileges.

mod common;

use common::{files, kernel, link, node, options, pod};
use fairway_control::core::Core;
use fairway_control::index::KernelEvent;
use fairway_control::kernel::Update;
use fairway_control::manifests;
use fairway_tables::{Capacities, Ip, Mac, NextHopKind, PortId, PortKind, Settings, Tables};
use std::path::Path;

/// Terway's Node `a`: each ENI's device is that of Ethernet address 02:00:00:00:00:`mac`.
fn enis(list: &[(&str, u8, &str, &[&str])]) -> String {
    let mut text =
        "apiVersion: network.alibabacloud.com/v1beta1\nkind: Node\nmetadata: {name: a}\nstatus:\n  \
                    networkInterfaces:\n"
            .to_owned();
    for (id, mac, cidr, ips) in list {
        text += &format!(
            "    {id}:\n      id: {id}\n      status: InUse\n      macAddress: 02:00:00:00:00:{mac:02x}\n      \
             ipv4CIDR: {cidr}\n      ipv4:\n"
        );
        for ip in *ips {
            text += &format!("        {ip}: {{ip: {ip}, primary: false, status: Valid, podID: default/p}}\n");
        }
    }
    text
}

fn core(enis: String) -> Core {
    let (writer, _) = Tables::heap(Capacities::default());
    let mut core = Core::new(options(Path::new("/nowhere")), writer);
    let pods = pod("p", "a", "172.16.1.10") + &pod("q", "a", "172.16.2.10") + &pod("r", "a", "10.244.1.5");
    let list =
        [("nodes.yaml", node("a", "10.244.1.0/24", "192.0.2.1")), ("pods.yaml", pods), ("enis.yaml", enis)];
    core.take(files(&list), kernel(&["p", "q", "r"]));
    core.take(vec![], vec![Update::Event(link(30, "eth1", 8500)), Update::Event(link(31, "eth2", 8500))]);
    core
}

const TWO: &[(&str, u8, &str, &[&str])] =
    &[("eni-a", 30, "172.16.1.0/24", &["172.16.1.10"]), ("eni-b", 31, "172.16.2.0/24", &["172.16.2.10"])];

fn ip(text: &str) -> Ip {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

#[test]
fn each_eni_is_an_uplink_and_its_pods_are_bound_to_it() {
    let mut core = core(enis(TWO));
    assert_eq!(core.folder().errors(), vec![]);
    let gateway = ip("172.16.1.253");
    core.take(vec![], vec![Update::Event(KernelEvent::Neighbour(30, gateway, Some(Mac([2; 6]))))]);
    let view = core.publisher().view();
    let ports: Vec<_> =
        view.ports().filter(|(_, port)| port.kind() == Some(PortKind::Uplink)).map(|(id, _)| id).collect();
    assert_eq!(ports.len(), 3);
    let bound = |text| view.endpoint(ip(text)).map(|endpoint| endpoint.uplink).unwrap();
    let record = |text| view.port(bound(text)).unwrap();
    assert_eq!((record("172.16.1.10").ifname(), record("172.16.1.10").gateway), ("eth1", gateway));
    assert_eq!((record("172.16.2.10").ifname(), record("172.16.2.10").mtu), ("eth2", 8500));
    assert_eq!(bound("10.244.1.5"), PortId::NONE);
    assert_eq!(view.route(ip("172.16.1.10")).unwrap().kind(), Some(NextHopKind::Local));
    assert_eq!(view.neighbour(gateway, bound("172.16.1.10")).map(|n| n.mac), Some(Mac([2; 6])));
    assert_ne!(view.settings().takes & Settings::TAKES_DIRECT, 0);
    let plan = core.host_plan().unwrap().0;
    assert_eq!(plan.routes.get(&"172.16.1.10/32".parse().unwrap()), Some(&ip("10.244.1.1")));
    // The other gateway does not answer, and is named.
    let silent = core.index().pending();
    assert!(
        silent.iter().any(|p| p.what == "next hop 172.16.2.253" && p.reason.contains("eth2")),
        "{silent:?}"
    );
}

#[test]
fn what_is_wrong_with_an_eni_is_named_and_its_pods_do_not_leave_elsewhere() {
    let mut core = core(enis(&[TWO[0], ("eni-c", 99, "''", &["172.16.2.10"])]));
    let pending = |core: &Core, words: &str| {
        let all = core.index().pending();
        assert!(
            all.iter().any(|p| p.what.starts_with("ENI eni-") && p.reason.contains(words)),
            "{words}: {all:?}"
        );
    };
    pending(&core, "no device has its Ethernet address 02:00:00:00:00:63");
    pending(&core, "it has no ipv4CIDR");
    let uplink = |core: &Core, text| core.publisher().view().endpoint(ip(text)).unwrap().uplink;
    let nowhere = uplink(&core, "172.16.2.10");
    assert!(nowhere != PortId::NONE && core.publisher().view().port(nowhere).is_none());
    let KernelEvent::Link(eth1) = link(30, "eth1", 8500) else { panic!("a link") };
    let down = fairway_control::index::Link { up: false, ..eth1 };
    core.take(vec![], vec![Update::Event(KernelEvent::Link(down))]);
    pending(&core, "its device eth1 is down");
    assert!(core.publisher().view().port(uplink(&core, "172.16.1.10")).is_none());
    core.take(vec![], vec![Update::Event(link(30, "eth1", 8500))]);
    assert!(core.publisher().view().port(uplink(&core, "172.16.1.10")).is_some());
}

#[test]
fn enis_of_pods_own_are_no_uplinks_and_their_pods_are_told_apart() {
    let label = "metadata: {name: a, labels: {k8s.aliyun.com/exclusive-mode-eni-type: eniOnly}}";
    // One's device is in the node still; the other's is in its pod.
    let list = [TWO[0], ("eni-b", 99, "172.16.2.0/24", &["172.16.2.10"][..])];
    let core = core(enis(&list).replace("metadata: {name: a}", label));
    assert_eq!(core.folder().errors(), vec![]);
    let view = core.publisher().view();
    assert_eq!(view.ports().filter(|(_, port)| port.kind() == Some(PortKind::Uplink)).count(), 1);
    for text in ["172.16.1.10", "172.16.2.10"] {
        let endpoint = view.endpoint(ip(text)).unwrap();
        assert!(endpoint.has_own_nic() && endpoint.bound_to().is_none());
        assert_eq!(view.route(ip(text)).unwrap().kind(), Some(NextHopKind::Local));
        let plan = core.host_plan().unwrap().0;
        assert_eq!(plan.routes.get(&format!("{text}/32").parse().unwrap()), Some(&ip("10.244.1.1")));
    }
    assert!(!view.endpoint(ip("10.244.1.5")).unwrap().has_own_nic());
    assert_eq!(view.settings().takes & Settings::TAKES_DIRECT, 0);
    let pending = core.index().pending();
    assert!(!pending.iter().any(|p| p.what.starts_with("ENI ")), "{pending:?}");
}

#[test]
fn broken_and_contradictory_enis_are_refused() {
    let errors = |text: &str| match manifests::parse("f.yaml", text) {
        Ok(_) => String::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    };
    let good = enis(TWO);
    assert_eq!(errors(&good), "");
    for (from, to, words) in [
        (
            "02:00:00:00:00:1e",
            "02:00",
            "networkInterfaces[eni-a].macAddress: '02:00' is not an Ethernet address",
        ),
        ("172.16.1.0/24", "172.16.1.0", "networkInterfaces[eni-a].ipv4CIDR"),
        ("{ip: 172.16.1.10", "{ip: 172.16.1", "networkInterfaces[eni-a].ipv4[172.16.1.10].ip"),
        ("v1beta1", "v1", "use network.alibabacloud.com/v1beta1"),
    ] {
        let said = errors(&good.replacen(from, to, 1));
        assert!(said.contains(words), "{words}: {said}");
    }
    let twice = core(enis(&[TWO[0], ("eni-b", 31, "172.16.2.0/24", &["172.16.1.10"])]));
    let said = format!("{:?}", twice.folder().errors().iter().map(ToString::to_string).collect::<Vec<_>>());
    assert!(said.contains("172.16.1.10 is also that of eni-"), "{said}");
}
