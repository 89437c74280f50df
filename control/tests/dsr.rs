//! Services with DSR (docs/dsr.md) in the tables: the way to each backend's node under every kind of pool, tunnels where pods
//! need none, and what is named because it is not possible.

mod common;

use common::{beside_a_router, node, options};
use fairway_control::core::Core;
use fairway_control::index::{KernelEvent, KernelRoute, NodePortAddresses, Place, UPLINK_PORT};
use fairway_control::kernel::Update;
use fairway_tables::{Capacities, Ip, Mac, NextHopKind, Service, ServiceKey, Tables};
use std::net::Ipv6Addr;
use std::path::Path;

const OWN: Ip = Ip::v4([192, 0, 2, 1]);
const NEAR: Ip = Ip::v4([192, 0, 2, 2]);
const FAR: Ip = Ip::v4([198, 51, 100, 3]);
const ROUTER: Ip = Ip::v4([192, 0, 2, 254]);
const BALANCER: ServiceKey = ServiceKey { ip: Ip::v4([203, 0, 113, 1]), port: 80, proto: 6, reserved: 0 };
const FLAGS: u32 = Service::EXTERNAL | Service::MASQUERADE | Service::DSR;

/// This node `a`, `near` in its subnet, `far` behind a router; a Service with DSR and backends on all.
fn core(node_port_addresses: NodePortAddresses, files: &[(&str, &str)]) -> Core {
    let (writer, _) = Tables::heap(Capacities::default());
    let mut core =
        Core::new(fairway_control::core::Options { node_port_addresses, ..options(Path::new("")) }, writer);
    take(&mut core, files);
    core.take(vec![], vec![Update::Listing(beside_a_router(NEAR, ROUTER), vec![])]);
    core
}

fn nodes() -> String {
    node("a", "10.244.1.0/24", "192.0.2.1")
        + &node("near", "10.244.2.0/24", "192.0.2.2")
        + &node("far", "10.244.3.0/24", "198.51.100.3")
}

fn take(core: &mut Core, files: &[(&str, &str)]) {
    let all = files.iter().map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned())));
    core.take(vec![Ok(all.collect())], vec![]);
    assert_eq!(core.folder().errors(), vec![]);
}

fn service(annotation: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop{annotation}}}\nspec:\n  type: LoadBalancer\n  \
         clusterIP: 10.96.0.1\n  ports: [{{port: 80, nodePort: 30080}}]\n{spec}status: {{loadBalancer: {{ingress: [{{ip: \
         203.0.113.1}}]}}}}\n---\n"
    )
}

const DSR: &str = ", annotations: {fairway.io/forwarding: dsr}";

fn slice(endpoints: &[(&str, &str)]) -> String {
    let list: String =
        endpoints.iter().map(|(ip, node)| format!("- {{addresses: [{ip}], nodeName: {node}}}\n")).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, namespace: shop, labels: \
         {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n{list}---\n"
    )
}

const EVERYWHERE: [(&str, &str); 4] =
    [("10.244.1.9", "a"), ("10.244.2.9", "near"), ("10.244.3.9", "far"), ("198.51.100.3", "far")];

fn pool(modes: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: pods}}\nspec: {{cidr: \
         10.244.0.0/16{modes}}}\n---\n"
    )
}

/// Kind and node of a way.
type Way = (Option<NextHopKind>, Ip);

/// Flags, backends of this node, and the ways to all.
fn record(core: &Core, key: ServiceKey) -> (u32, Vec<Ip>, Vec<Way>) {
    let view = core.publisher().view().service(&key).expect("a record");
    let ways = view.ways().map(|way| (way.kind(), way.addr)).collect();
    (view.service().flags, view.local().iter().map(|backend| backend.ip).collect(), ways)
}

fn pending(core: &Core) -> String {
    core.index().pending().iter().map(|p| format!("{}: {}\n", p.what, p.reason)).collect()
}

#[test]
fn each_backend_has_a_way_to_its_node_by_what_its_pool_uses() {
    let flannel = |backend: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: kube-flannel-cfg, namespace: kube-flannel}}\ndata:\n  \
             net-conf.json: '{{\"Network\": \"10.244.0.0/16\", \"Backend\": {{{backend}}}}}'\n"
        )
    };
    use NextHopKind::{Ipip, Local, Tunnel, UdpTunnel};
    for (pools, kind, vxlan) in [
        (String::new(), Tunnel, (4096, 4789)),
        (pool(", ipipMode: Always"), Ipip, (4096, 4789)),
        (pool(", ipipMode: CrossSubnet"), Ipip, (4096, 4789)),
        (pool(", vxlanMode: CrossSubnet"), Tunnel, (4096, 4789)),
        (pool(", ipipMode: Never"), Tunnel, (4096, 4789)),
        (flannel("\"Type\": \"vxlan\", \"DirectRouting\": true"), Tunnel, (1, 8472)),
        (flannel("\"Type\": \"host-gw\""), Tunnel, (4096, 4789)),
        (flannel("\"Type\": \"udp\""), UdpTunnel, (4096, 4789)),
    ] {
        let (nodes, web) = (nodes(), service(DSR, "") + &slice(&EVERYWHERE));
        let files =
            [("nodes.yaml", nodes.as_str()), ("web.yaml", web.as_str()), ("pools.yaml", pools.as_str())];
        let core = core(NodePortAddresses::Primary, &files);
        let mut ways = vec![(Some(Local), Ip::UNSPECIFIED), (Some(kind), NEAR), (Some(kind), FAR)];
        // A backend on a node's own network is in no pool.
        ways.push((Some(Tunnel), FAR));
        for key in [BALANCER, ServiceKey { ip: OWN, port: 30080, ..BALANCER }] {
            assert_eq!(record(&core, key), (FLAGS, vec![Ip::v4([10, 244, 1, 9])], ways.clone()), "{pools}");
        }
        let own = ServiceKey { ip: ServiceKey::NODE_PORTS, port: 30080, ..BALANCER };
        assert_eq!(record(&core, own).0, FLAGS, "where other nodes' node ports are found");
        assert_eq!(record(&core, ServiceKey { ip: Ip::v4([10, 96, 0, 1]), ..BALANCER }), (0, vec![], vec![]));
        for (node, next_hop) in [(NEAR, NEAR), (FAR, ROUTER)] {
            let tunnel = core.publisher().view().tunnel(node).expect("a tunnel");
            assert_eq!(
                (tunnel.vni, tunnel.udp_port, tunnel.next_hop),
                (vxlan.0, vxlan.1, next_hop),
                "{pools}"
            );
            assert_eq!((tunnel.node_ports, tunnel.node_ports6), (node, Ip::UNSPECIFIED));
        }
        assert!(!pending(&core).contains("DSR"), "{}", pending(&core));
    }
}

#[test]
fn without_the_annotation_nothing_changes_and_with_it_removed_all_is_as_before() {
    let direct = pool(", ipipMode: Never");
    let (nodes, slice) = (nodes(), slice(&EVERYWHERE));
    let with = |web: String| {
        [("nodes.yaml", nodes.clone()), ("web.yaml", web + &slice), ("pools.yaml", direct.clone())]
    };
    let give = |core: &mut Core, web: String| {
        let files = with(web);
        take(core, &files.each_ref().map(|(name, text)| (*name, text.as_str())));
    };
    let mut core = core(NodePortAddresses::Primary, &[]);
    let plain = (Service::EXTERNAL | Service::MASQUERADE, vec![], vec![]);
    let nat = ", annotations: {fairway.io/forwarding: nat}";
    for annotation in ["", DSR, nat] {
        give(&mut core, service(annotation, ""));
        let expected = if annotation == DSR { 2 } else { 0 };
        assert_eq!(core.publisher().view().tunnels().count(), expected, "{annotation}");
        assert_eq!(record(&core, BALANCER) == plain, annotation != DSR);
    }
    // Under the policy Local clients meet backends of the node that they came to, and of no other.
    give(&mut core, service(DSR, "  externalTrafficPolicy: Local\n"));
    let local = (Service::EXTERNAL | Service::LOCAL, vec![Ip::v4([10, 244, 1, 9])], vec![]);
    assert_eq!((record(&core, BALANCER), core.publisher().view().tunnels().count()), (local, 0));
}

#[test]
fn ways_follow_nodes_that_come_and_go_and_missing_ones_are_named() {
    let mut core = core(NodePortAddresses::In(vec!["192.0.0.0/16".parse().unwrap()]), &[]);
    core.take(vec![], vec![Update::Event(KernelEvent::Address(2, Ip::v4([192, 0, 2, 9])))]);
    let web = service(DSR, "") + &slice(&[("10.244.3.9", "far"), ("10.9.9.9", "''")]);
    let (own, all) = (node("a", "10.244.1.0/24", "192.0.2.1"), nodes());
    let no_way = (Some(NextHopKind::Unreachable), Ip::UNSPECIFIED);
    for (nodes, way) in [(&own, no_way), (&all, (Some(NextHopKind::Tunnel), FAR)), (&own, no_way)] {
        take(&mut core, &[("nodes.yaml", nodes.as_str()), ("web.yaml", web.as_str())]);
        let (flags, _, ways) = record(&core, BALANCER);
        assert_eq!((flags & !Service::ENDPOINTS_ELSEWHERE, ways), (FLAGS, vec![no_way, way]));
        let pending = pending(&core);
        assert!(
            pending.contains("Service shop/web: 1 endpoints have no nodeName: they see this node's"),
            "{pending}"
        );
        assert_eq!(
            pending.contains("1 endpoints are on nodes that are not known"),
            way == no_way,
            "{pending}"
        );
        assert!(pending.contains("Service shop/web: node ports at 192.0.2.9 are without DSR"), "{pending}");
    }
    assert_eq!(record(&core, ServiceKey { ip: OWN, port: 30080, ..BALANCER }).0 & Service::DSR, Service::DSR);
    let other = ServiceKey { ip: Ip::v4([192, 0, 2, 9]), port: 30080, ..BALANCER };
    assert_eq!(record(&core, other).0 & Service::DSR, 0, "other nodes do not know this address");
}

#[test]
fn another_value_of_the_annotation_is_named() {
    let web = service(", annotations: {fairway.io/forwarding: tunnel}", "");
    let mut core = core(NodePortAddresses::Primary, &[]);
    core.take(vec![Ok([("web.yaml".to_owned(), Ok(web))].into_iter().collect())], vec![]);
    let errors = core.folder().errors().iter().map(ToString::to_string).collect::<String>();
    assert!(
        errors.contains("fairway.io/forwarding") && errors.contains("'tunnel' is not a way to forward"),
        "{errors}"
    );
}

#[test]
fn a_backend_outside_the_pods_ranges_has_a_tunnel_of_its_own_family() {
    let six = |n: u16| Ip(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, n).octets());
    let both = |name: &str, cidr: &str, n: u8| {
        let address = format!("  - {{type: InternalIP, address: 'fd00:77::{n}'}}\n---\n");
        node(name, cidr, &format!("192.0.2.{n}")).replace("---\n", &address)
    };
    let nodes = both("a", "10.244.1.0/24", 1) + &both("near", "10.244.2.0/24", 2);
    // A backend of the node's own network, and no IPv6 pod anywhere.
    let web = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, annotations: {fairway.io/forwarding: \
               dsr}}\nspec:\n  type: LoadBalancer\n  clusterIP: 'fd00:96::1'\n  ipFamilies: [IPv6]\n  ports: [{port: 80}]\n\
               status: {loadBalancer: {ingress: [{ip: 'fd00:113::1'}]}}\n---\n"
        .to_owned()
        + &slice(&[("'fd00:77::2'", "near")]).replace("IPv4", "IPv6");
    let mut core = core(NodePortAddresses::Primary, &[("nodes.yaml", nodes.as_str())]);
    for event in [
        KernelEvent::Address(2, six(1)),
        KernelEvent::Route("fd00:77::/64".parse().unwrap(), 0, KernelRoute::direct(2), Place::Last),
        KernelEvent::Neighbour(2, six(2), Some(Mac([2, 0, 0, 0, 0, 2]))),
    ] {
        core.take(vec![], vec![Update::Event(event)]);
    }
    let key = ServiceKey { ip: Ip("fd00:113::1".parse::<Ipv6Addr>().unwrap().octets()), ..BALANCER };
    for web in ["", &web, ""] {
        take(&mut core, &[("nodes.yaml", nodes.as_str()), ("web.yaml", web)]);
        let view = core.publisher().view();
        let tunnel = view.tunnel(six(2)).map(|tunnel| (tunnel.local, tunnel.next_hop, tunnel.vni));
        assert_eq!(tunnel, (!web.is_empty()).then_some((six(1), six(2), 4096)));
        let neighbour = view.neighbour(six(2), UPLINK_PORT);
        assert_eq!(
            neighbour.is_some(),
            !web.is_empty(),
            "what a tunnel leads through is known as long as it is needed"
        );
        if !web.is_empty() {
            assert_eq!(record(&core, key).2, [(Some(NextHopKind::Tunnel), six(2))]);
        }
    }
}
