//! What Calico's pools and Flannel's configuration make of the tables: ways to other nodes, what this node takes,
//! and what is named because it is wrong.

mod common;

use common::{beside_a_router, node, options};
use fairway_control::core::Core;
use fairway_control::index::{KernelEvent, Way};
use fairway_control::kernel::Update;
use fairway_control::names::vtep_mac;
use fairway_tables::{Capacities, Ip, Mac, NextHopKind, Settings, Tables};
use std::path::Path;

const NEAR: Ip = Ip::v4([192, 0, 2, 2]);
const FAR: Ip = Ip::v4([198, 51, 100, 3]);
const ROUTER: Ip = Ip::v4([192, 0, 2, 254]);

/// This node `a`, `near` in its subnet, `far` behind a router.
fn core(files: &[(&str, &str)]) -> Core {
    let (writer, _) = Tables::heap(Capacities::default());
    let mut core = Core::new(options(Path::new("")), writer);
    take(&mut core, files);
    core.take(vec![], vec![Update::Listing(beside_a_router(NEAR, ROUTER), vec![])]);
    core
}

fn take(core: &mut Core, files: &[(&str, &str)]) {
    let nodes = node("a", "10.244.1.0/24", "192.0.2.1")
        + &node("near", "10.244.2.0/24", "192.0.2.2")
        + &node("far", "10.244.3.0/24", "198.51.100.3");
    let mut all = vec![("nodes.yaml".to_owned(), Ok(nodes))];
    all.extend(files.iter().map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned()))));
    core.take(vec![Ok(all.into_iter().collect())], vec![]);
}

fn pool(name: &str, cidr: &str, modes: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: {cidr}{modes}}}\n---\n"
    )
}

fn flannel(backend: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: kube-flannel-cfg, namespace: kube-flannel}}\ndata:\n  \
         net-conf.json: '{{\"Network\": \"10.244.0.0/16\", \"Backend\": {{{backend}}}}}'\n"
    )
}

/// Kind and address of the route to a pod.
fn way(core: &Core, pod: [u8; 4]) -> (NextHopKind, Ip) {
    let hop = core.publisher().view().route(Ip::v4(pod)).expect("a route");
    (hop.kind().expect("a kind"), hop.addr)
}

fn pending(core: &Core) -> String {
    core.index().pending().iter().map(|p| format!("{}: {}\n", p.what, p.reason)).collect()
}

const NEAR_POD: [u8; 4] = [10, 244, 2, 5];
const FAR_POD: [u8; 4] = [10, 244, 3, 5];

#[test]
fn without_pools_all_goes_by_vxlan_as_before() {
    let core = core(&[]);
    assert_eq!(way(&core, NEAR_POD), (NextHopKind::Tunnel, NEAR));
    assert_eq!(way(&core, FAR_POD), (NextHopKind::Tunnel, FAR));
    let settings = core.publisher().view().settings();
    assert_eq!((settings.takes, settings.udp_tunnel_port, settings.second_vxlan.udp_port), (0, 0, 0));
    assert_eq!(settings.pod_mtu, 1450);
}

#[test]
fn each_mode_leads_each_node_its_way_and_changes_while_running() {
    use NextHopKind::{Gateway, Ipip, Tunnel, UdpTunnel};
    let (ipip, direct) = (Settings::TAKES_IPIP, Settings::TAKES_DIRECT);
    let calico = |modes| pool("p", "10.244.0.0/16", modes);
    let mut core = core(&[]);
    for (manifest, near, far, takes, pod_mtu) in [
        (calico(", ipipMode: Always"), (Ipip, NEAR), (Ipip, FAR), ipip, 1480),
        (calico(", ipipMode: CrossSubnet"), (Gateway, NEAR), (Ipip, FAR), ipip | direct, 1480),
        (calico(", vxlanMode: CrossSubnet"), (Gateway, NEAR), (Tunnel, FAR), direct, 1450),
        (calico(", vxlanMode: Always"), (Tunnel, NEAR), (Tunnel, FAR), 0, 1450),
        (calico(""), (Gateway, NEAR), (Gateway, ROUTER), direct, 1500),
        (flannel("\"Type\": \"vxlan\""), (Tunnel, NEAR), (Tunnel, FAR), 0, 1450),
        (
            flannel("\"Type\": \"vxlan\", \"DirectRouting\": true"),
            (Gateway, NEAR),
            (Tunnel, FAR),
            direct,
            1450,
        ),
        (flannel("\"Type\": \"udp\""), (UdpTunnel, NEAR), (UdpTunnel, FAR), 0, 1472),
        (flannel("\"Type\": \"host-gw\""), (Gateway, NEAR), (Gateway, ROUTER), direct, 1500),
    ] {
        take(&mut core, &[("pool.yaml", &manifest)]);
        assert_eq!((way(&core, NEAR_POD), way(&core, FAR_POD)), (near, far), "{manifest}");
        let view = core.publisher().view();
        assert_eq!((view.settings().takes, view.settings().pod_mtu), (takes, pod_mtu), "{manifest}");
        assert_eq!(view.settings().udp_tunnel_port != 0, near.0 == UdpTunnel, "{manifest}");
        // A tunnel is there for the node that is reached through one, and for no other.
        assert_eq!(view.tunnel(NEAR).is_some(), near.0 != Gateway, "{manifest}");
        assert_eq!(view.tunnel(FAR).map(|t| t.next_hop), (far.0 != Gateway).then_some(ROUTER), "{manifest}");
        assert!(view.neighbours().count() == 2, "both next hops stay resolved");
        assert_eq!(pending(&core), HOST_VETH, "{manifest}");
    }
    take(&mut core, &[]);
    assert_eq!(way(&core, FAR_POD), (Tunnel, FAR));
    let view = core.publisher().view();
    assert_eq!(view.tunnel(FAR).map(|t| (t.vni, t.udp_port)), Some((4096, 4789)));
}

/// What is pending because these tests have no host veth.
const HOST_VETH: &str =
    "host veth fwhost0: the device is not there\nhost veth fwhost1: the device is not there\n";

#[test]
fn flannels_network_has_its_own_layout_and_the_vteps_of_the_annotations() {
    let annotated = |name: &str, mac: &str| {
        let annotation = "flannel.alpha.coreos.com/backend-data";
        let data = format!("'{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}'");
        let metadata = format!("metadata: {{name: {name}");
        let annotated = format!("{metadata}, annotations: {{{annotation}: {data}}}");
        node(name, "10.244.2.0/24", "192.0.2.2").replacen(&metadata, &annotated, 1)
    };
    let mut core = core(&[]);
    let own =
        annotated("a", "02:00:00:00:0f:01").replace("10.244.2", "10.244.1").replace("192.0.2.2", "192.0.2.1");
    let nodes = own + &annotated("near", "02:00:00:00:0f:02");
    let files =
        [("nodes.yaml".to_owned(), Ok(nodes)), ("f.yaml".to_owned(), Ok(flannel("\"Type\": \"vxlan\"")))];
    core.take(vec![Ok(files.into_iter().collect())], vec![]);
    assert_eq!(core.folder().errors(), []);
    let view = core.publisher().view();
    let settings = view.settings();
    let second = settings.second_vxlan;
    assert_eq!((second.vni, second.udp_port), (1, 8472));
    assert_eq!(second.vtep_mac, Mac([2, 0, 0, 0, 0x0f, 1]));
    // The node's own layout is still taken, with its own VTEP.
    assert_eq!((settings.vni, settings.vxlan_port, settings.vtep_mac), (4096, 4789, vtep_mac("a")));
    let tunnel = view.tunnel(NEAR).expect("a tunnel");
    assert_eq!((tunnel.vni, tunnel.udp_port), (1, 8472));
    assert_eq!((tunnel.remote_mac.0[5], tunnel.local_mac.0[5]), (2, 1));
}

#[test]
fn pools_of_several_kinds_live_side_by_side() {
    let pools = pool("one", "10.244.2.0/24", ", ipipMode: Always")
        + &pool("upper", "10.244.3.128/25", "")
        + &pool("lower", "10.244.3.0/25", ", vxlanMode: Always");
    let core = core(&[("pools.yaml", &pools)]);
    assert_eq!(way(&core, NEAR_POD), (NextHopKind::Ipip, NEAR));
    assert_eq!(way(&core, FAR_POD), (NextHopKind::Tunnel, FAR));
    assert_eq!(way(&core, [10, 244, 3, 200]), (NextHopKind::Gateway, ROUTER));
    let told = pending(&core);
    assert!(told.contains("pod range of Node a: 10.244.1.0/24 is not wholly in a pool"), "{told}");
    assert!(!told.contains("Node far") && !told.contains("Node near"), "{told}");
}

#[test]
fn what_is_not_done_yet_or_missing_is_said() {
    let pools = pool("p", "10.244.0.0/16", ", ipipMode: Always, nodeSelector: \"rack == '1'\"");
    let mut core = core(&[("pools.yaml", &pools)]);
    let told = pending(&core);
    assert!(told.contains("nodeSelector 'rack == '1'' is not looked at"), "{told}");
    let gone = KernelEvent::Neighbour(2, ROUTER, None);
    core.take(vec![], vec![Update::Event(gone)]);
    assert!(pending(&core).contains("neighbour 192.0.2.254 on the uplink does not answer yet"));
    assert_eq!(way(&core, NEAR_POD), (NextHopKind::Ipip, NEAR), "the rest goes on");
}

#[test]
fn pools_that_overlap_are_refused_and_the_one_in_force_stays() {
    let mut core = core(&[("a.yaml", &pool("one", "10.244.0.0/16", ", ipipMode: Always"))]);
    let one = pool("one", "10.244.0.0/16", ", ipipMode: Always");
    for (second, words) in [
        (
            pool("two", "10.244.2.0/24", ""),
            "10.244.2.0/24 overlaps 10.244.0.0/16 of IpPool one (a.yaml document 1)",
        ),
        (flannel("\"Type\": \"host-gw\""), "10.244.0.0/16 overlaps 10.244.0.0/16 of IpPool one"),
        (pool("one", "10.250.0.0/16", ""), "is already in a.yaml"),
    ] {
        take(&mut core, &[("a.yaml", &one), ("b.yaml", &second)]);
        let errors: Vec<_> = core.folder().errors().iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains(words), "{errors:?}");
        assert_eq!(way(&core, NEAR_POD), (NextHopKind::Ipip, NEAR));
    }
}

#[test]
fn the_kernel_without_the_engine_follows_the_pools_and_says_where_it_does_not() {
    use Way::{Direct, Ipip};
    let (near, far) = ("10.244.2.0/24".parse().unwrap(), "10.244.3.0/24".parse().unwrap());
    let by = |ifname, node, name| Way::Vxlan { ifname, node, vtep_mac: vtep_mac(name) };
    let own = [by("fairway.vxlan", NEAR, "near"), by("fairway.vxlan", FAR, "far")];
    let flannels = [by("fairway.flannel", NEAR, "near"), by("fairway.flannel", FAR, "far")];
    let (own_network, flannels_network) = (("fairway.vxlan", 4096, 4789), ("fairway.flannel", 1, 8472));
    let calico = |modes| pool("p", "10.244.0.0/16", modes);
    let mixed = pool("p", "10.244.2.0/24", ", ipipMode: Always");
    for (manifest, networks, ways, not_carried) in [
        (String::new(), vec![own_network], vec![(near, own[0]), (far, own[1])], vec![]),
        (
            calico(", vxlanMode: CrossSubnet"),
            vec![own_network],
            vec![(near, Direct(NEAR)), (far, own[1])],
            vec![],
        ),
        (calico(""), vec![], vec![(near, Direct(NEAR)), (far, Direct(ROUTER))], vec![]),
        (calico(", ipipMode: Always"), vec![], vec![(near, Ipip(NEAR)), (far, Ipip(FAR))], vec![]),
        (mixed, vec![own_network], vec![(near, Ipip(NEAR)), (far, own[1])], vec![]),
        (
            flannel("\"Type\": \"vxlan\""),
            vec![flannels_network],
            vec![(near, flannels[0]), (far, flannels[1])],
            vec![],
        ),
        (flannel("\"Type\": \"udp\""), vec![], vec![], vec![near, far]),
    ] {
        let core = core(&[("pools.yaml", &manifest)]);
        let plan = core.fallback_plan().expect("a plan");
        let planned: Vec<_> = plan.vxlans.iter().map(|vxlan| (vxlan.ifname, vxlan.vni, vxlan.port)).collect();
        assert_eq!(planned, networks, "{manifest}");
        let uses_ipip = ways.iter().any(|(_, way)| matches!(way, Ipip(_)));
        assert_eq!(plan.ipip.is_some(), uses_ipip, "{manifest}");
        assert_eq!(plan.ranges.into_iter().collect::<Vec<_>>(), ways, "{manifest}");
        assert_eq!(plan.not_carried.into_iter().collect::<Vec<_>>(), not_carried, "{manifest}");
    }
}
