//! What options, pools and ip-masq-agent's ConfigMap make of the tables: whose sources are translated, by what, and the way
//! of pods' packets to the outside (docs/nat.md).

mod common;

use common::{files, kernel, node, options};
use fairway_control::core::Core;
use fairway_control::index::{KernelEvent, KernelRoute, Place};
use fairway_control::kernel::Update;
use fairway_control::masquerade::{NatOptions, SnatPorts};
use fairway_control::names::GATEWAY_IP;
use fairway_tables::{Capacities, Ip, Mac, NextHopKind, PortId, Tables};
use std::path::Path;

const ROUTER: Ip = Ip::v4([192, 0, 2, 254]);
const OUTSIDE: Ip = Ip::v4([203, 0, 113, 1]);
const OTHER_NODE: Ip = Ip::v4([192, 0, 2, 2]);

fn nodes() -> String {
    node("a", "10.244.1.0/24", "192.0.2.1") + &node("b", "10.244.2.0/24", "192.0.2.2")
}

fn default_route(gateway: Ip, metric: u32, ifindex: u32) -> Update {
    let route = KernelRoute::via(ifindex, gateway);
    Update::Event(KernelEvent::Route("0.0.0.0/0".parse().unwrap(), metric, route, Place::Last))
}

/// This node, another one, and a router that leads out.
fn core(nat: NatOptions, more: &str) -> Core {
    let (writer, _) = Tables::heap(Capacities::default());
    let mut core =
        Core::new(fairway_control::core::Options { nat, ..options(Path::new("/nowhere")) }, writer);
    take(&mut core, more);
    let mut updates = kernel(&[]);
    updates.push(default_route(ROUTER, 100, 2));
    updates.push(Update::Event(KernelEvent::Neighbour(2, ROUTER, Some(Mac([2, 0, 0, 0, 0, 0xfe])))));
    core.take(vec![], updates);
    core
}

fn take(core: &mut Core, more: &str) {
    core.take(files(&[("nodes.yaml", nodes()), ("more.yaml", more.to_owned())]), vec![]);
}

fn pool(more: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: p}}\nspec: {{cidr: 10.244.0.0/16{more}}}\n"
    )
}

fn agent(config: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ip-masq-agent, namespace: kube-system}}\ndata: {{config: '{config}'}}\n"
    )
}

/// Kind and next hop of the way to an address, and whether pods' sources are translated there.
fn way(core: &Core, to: Ip) -> (NextHopKind, Ip, bool) {
    let view = core.publisher().view();
    let hop = view.route(to).expect("a route");
    (hop.kind().expect("a kind"), hop.addr, view.masquerade().translates(to))
}

const TRANSLATED: (NextHopKind, Ip, bool) = (NextHopKind::Gateway, ROUTER, true);
const BY_THE_STACK: (NextHopKind, Ip, bool) = (NextHopKind::Host, Ip::UNSPECIFIED, false);

#[test]
fn pods_leave_by_the_gateway_with_the_nodes_address_unless_their_pool_says_otherwise() {
    for (what, more, expected) in [
        ("nothing said", String::new(), TRANSLATED),
        ("a pool that says no", pool(""), BY_THE_STACK),
        ("a pool that says so", pool(", natOutgoing: true"), TRANSLATED),
        ("a pool of others", pool("").replace("10.244", "10.99"), TRANSLATED),
        ("ip-masq-agent beside a pool that says no", pool("") + "---\n" + &agent(""), TRANSLATED),
    ] {
        let core = core(NatOptions::default(), &more);
        assert_eq!(way(&core, OUTSIDE), expected, "{what}");
        let translated = expected == TRANSLATED;
        let node = way(&core, OTHER_NODE);
        assert_eq!(node.0 == NextHopKind::Gateway && node.1 == OTHER_NODE && node.2, translated, "{what}");
        assert!(
            !translated || core.publisher().view().neighbour(ROUTER, fairway_tables::PortId(0)).is_some()
        );
    }
    let off = NatOptions { no_masquerade: true, ..NatOptions::default() };
    assert_eq!(way(&core(off, ""), OUTSIDE), BY_THE_STACK);
}

#[test]
fn the_way_out_follows_the_kernels_default_route_and_only_out_of_the_uplink() {
    let mut core = core(NatOptions::default(), "");
    let other = Ip::v4([192, 0, 2, 253]);
    core.take(vec![], vec![default_route(other, 50, 2)]);
    assert_eq!(way(&core, OUTSIDE), (NextHopKind::Gateway, other, true), "the lower metric");
    let gone = |metric, gateway| {
        let route = KernelRoute::via(2, gateway);
        Update::Event(KernelEvent::RouteGone("0.0.0.0/0".parse().unwrap(), metric, route))
    };
    core.take(vec![], vec![gone(50, other)]);
    assert_eq!(way(&core, OUTSIDE), TRANSLATED);
    core.take(vec![], vec![default_route(other, 10, 9)]);
    assert_eq!(way(&core, OUTSIDE).0, NextHopKind::Host, "another device is the stack's business");
    core.take(vec![], vec![gone(100, ROUTER)]);
    assert_eq!(way(&core, OUTSIDE).0, NextHopKind::Host);
}

#[test]
fn the_engine_is_told_what_the_stack_delivers_out_of_the_uplink() {
    let mut core = core(NatOptions::default(), &pool(""));
    let by = |core: &Core, to: Ip| {
        let hop = core.publisher().view().route(to).expect("a route");
        (hop.kind(), hop.port)
    };
    let by_the_stack = |port| (Some(NextHopKind::Host), port);
    let on_link = |prefix: &str, ifindex| {
        let route = KernelRoute::direct(ifindex);
        Update::Event(KernelEvent::Route(prefix.parse().unwrap(), 0, route, Place::Last))
    };
    core.take(vec![], vec![on_link("192.0.2.0/24", 2), on_link("198.51.100.0/24", 9)]);
    let station = Ip::v4([192, 0, 2, 77]);
    assert_eq!(by(&core, station), by_the_stack(PortId(0)), "on the uplink's link");
    assert_eq!(by(&core, Ip::v4([192, 0, 2, 1])), by_the_stack(PortId::NONE), "the node's own address");
    assert_eq!(by(&core, OUTSIDE), by_the_stack(PortId(0)), "the kernel's default route leads there");
    core.take(vec![], vec![default_route(ROUTER, 10, 9)]);
    assert_eq!(by(&core, OUTSIDE), by_the_stack(PortId::NONE));
}

#[test]
fn listed_destinations_see_pods_own_addresses() {
    let option =
        NatOptions { non_masquerade_cidrs: vec!["203.0.113.0/24".parse().unwrap()], ..NatOptions::default() };
    assert_eq!(way(&core(option, ""), OUTSIDE), (NextHopKind::Gateway, ROUTER, false));
    let mut core = core(NatOptions::default(), &agent("nonMasqueradeCIDRs: [203.0.113.0/24]"));
    assert!(!way(&core, OUTSIDE).2);
    assert!(!way(&core, Ip::v4([169, 254, 169, 254])).2, "link-local, unless the ConfigMap asks for it");
    take(&mut core, &agent("nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqLinkLocal: true").replace('\n', "\n\n"));
    assert!(way(&core, OUTSIDE).2 && !way(&core, Ip::v4([10, 1, 2, 3])).2);
    let many: Vec<String> = (0..80).map(|n| format!("198.18.{n}.0/24")).collect();
    take(&mut core, &agent(&format!("nonMasqueradeCIDRs: [{}]", many.join(", "))));
    let pending = core.index().pending();
    let told = pending.iter().find(|p| p.what.starts_with("destinations")).expect("named");
    assert!(told.reason.contains("there are 81, of which 64 count"), "{}", told.reason);
    take(&mut core, &agent("nonMasqueradeCIDRs: [10.0.0.0]"));
    let errors = core.folder().errors();
    assert_eq!(errors.len(), 1);
    let said = errors[0].to_string();
    assert!(
        said.contains("kube-system/ip-masq-agent: data[config].nonMasqueradeCIDRs[0]: '10.0.0.0'"),
        "{said}"
    );
}

#[test]
fn the_engine_is_told_the_addresses_and_ports_to_give() {
    let ports = SnatPorts { first: 50_000, last: 50_999 };
    let core = core(NatOptions { snat_ports: ports, ..NatOptions::default() }, "");
    let settings = core.publisher().view().settings();
    assert_eq!((settings.outside_ip, settings.outside_ip6), (Ip::v4([192, 0, 2, 1]), Ip::UNSPECIFIED));
    assert_eq!((settings.host_ip, settings.host_ip6), (GATEWAY_IP, Ip::UNSPECIFIED));
    assert_eq!((settings.snat_first, settings.snat_last), (50_000, 50_999));
    let (plan, _) = core.host_plan().unwrap();
    assert!(
        plan.routes.contains_key(&fairway_tables::Prefix::host(GATEWAY_IP)),
        "the stack answers it through the engine"
    );
}
