//! The node of the vectors, as control and engine see it.
//!
//! kube-proxy's tests know pods by 10.0.0.0/8 (fd00:10::/64) alone, and endpoints by the node that their slice names; node
//! ranges that would fit all of them do not exist. Here every pod and endpoint is attached to this node, whose pods have
//! 10.0.0.0/8: who is used as a backend goes by the slices alone.

use crate::Outcome;
use crate::case::{Case, Flow};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fairway_control::core::{Core, Options};
use fairway_control::index::{Facts, HOST_PORT, KernelEvent, KernelRoute, Link, Place, UPLINK_PORT};
use fairway_control::kernel::Update;
use fairway_control::names::{GATEWAY_MAC, HOST_ENGINE_IF, HOST_KERNEL_IF, host_veth, pod_mac};
use fairway_dataplane::testkit::packet::Headers;
use fairway_dataplane::testkit::packet6::Headers6;
use fairway_dataplane::testkit::{World, WorldConfig};
use fairway_dataplane::wire::{proto, sctp, tcp_flags};
use fairway_tables::{Capacities, DropReason, Ip, Mac, Prefix, ServiceKey, Tables};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

const RANGES: [&str; 2] = ["10.0.0.0/8", "fd00:10::/32"];
const UPLINK_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const ROUTERS: [&str; 2] = ["192.168.0.254", "2001:db8::fe"];
/// Connections of a flow; one of three backends stays unmet by a chance of 10⁻²².
const CONNECTIONS: std::ops::Range<u16> = 10_000..10_128;

/// See the module's head.
pub(crate) struct Node {
    engine: World<Core>,
    own: Vec<Ip>,
}

fn is_pod(ip: IpAddr) -> bool {
    RANGES.iter().any(|range| range.parse::<Prefix>().expect("a range").contains(ip.into()))
}

impl Node {
    pub(crate) fn of(case: &Case) -> Node {
        let clients = case.flows.iter().map(|flow| flow.source).filter(|ip| is_pod(*ip));
        let pods: BTreeSet<IpAddr> = clients.chain(case.endpoints()).collect();
        let (writer, readers) = Tables::heap(Capacities::default());
        let mut core = Core::new(options(case), writer);
        let mut objects = vec![node(&case.node)];
        objects.extend(pods.iter().map(|ip| pod(&case.node, *ip)));
        objects.extend(case.objects.iter().cloned());
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        core.take(vec![Ok([("all.json".to_owned(), Ok(list))].into_iter().collect())], kernel(case, &pods));
        assert_eq!(core.folder().errors(), vec![], "{}", case.test);
        assert!(core.publisher().refused().is_empty());
        let config = WorldConfig { frames: 512, connections: 16_384, ..WorldConfig::default() };
        let engine = World::around(config, pods.len() + 2, core, readers);
        Node { engine, own: case.node_ips.iter().map(|ip| (*ip).into()).collect() }
    }

    /// What becomes of a flow's connections.
    pub(crate) fn outcome(&mut self, flow: &Flow) -> Outcome {
        let (source, mut target) = (Ip::from(flow.source), Ip::from(flow.target.ip()));
        if flow.source.is_loopback() {
            // Never leaves the kernel's loopback device.
            assert!(self.service(flow, target).is_none(), "'{}'", flow.name);
            return Outcome::Untouched;
        }
        let is_own = self.own.contains(&source) || source == target;
        if self.own.contains(&source) && self.own.contains(&target) {
            // The programs at the node's sockets turn these (docs/services.md, "From the node itself").
            target = if target.is_v4() { ServiceKey::NODE_PORTS } else { ServiceKey::NODE_PORTS6 };
        }
        let pod = self.engine.writer.publisher().view().endpoint(source);
        let port = match pod {
            Some(pod) => pod.port,
            None if is_own => HOST_PORT,
            None => UPLINK_PORT,
        };
        let is_service = self.service(flow, target).is_some();
        // The steering program leaves what is for no service to the kernel.
        if port == UPLINK_PORT && !is_service {
            return Outcome::Untouched;
        }
        let drops_before = self.drops();
        let mut seen: Vec<Outcome> = Vec::new();
        let mut backends = BTreeSet::new();
        for sport in CONNECTIONS {
            // Not so fast that ICMP errors would be held back.
            self.engine.now.seconds += 1;
            let tuple = Tuple { src: source, dst: target, sport, dport: flow.target.port() };
            let to = if port == UPLINK_PORT { UPLINK_MAC } else { GATEWAY_MAC };
            let sent = self.engine.send(port, &opening(to, flow.protocol, &tuple));
            let one = match sent.map(|(_, frame)| look(&frame)) {
                None => Outcome::Dropped,
                Some(None) => Outcome::Refused,
                Some(Some(left)) if left.dst == target => Outcome::Untouched,
                Some(Some(left)) => {
                    backends.insert(SocketAddr::new(left.dst.into(), left.dport));
                    let masqueraded = left.src != source;
                    assert!(!masqueraded || self.is_mine(left.src), "'{}': {left:?}", flow.name);
                    Outcome::Forwarded { backends: BTreeSet::new(), masqueraded }
                }
            };
            if !seen.contains(&one) {
                seen.push(one);
            }
        }
        assert_eq!(seen.len(), 1, "'{}' is not always treated alike: {seen:?}", flow.name);
        let dropped = if seen[0] == Outcome::Dropped { CONNECTIONS.len() as u64 } else { 0 };
        assert_eq!(self.drops() - drops_before, dropped, "'{}': dropped for another reason", flow.name);
        match seen.remove(0) {
            Outcome::Forwarded { masqueraded, .. } => Outcome::Forwarded { backends, masqueraded },
            other => other,
        }
    }

    /// Packets that the service stage dropped without refusing them.
    fn drops(&self) -> u64 {
        let counters = &self.engine.worker.counters;
        counters.drops(DropReason::SourceRange) + counters.drops(DropReason::NoLocalBackend)
    }

    fn service(&self, flow: &Flow, target: Ip) -> Option<fairway_tables::ServiceView<'_>> {
        self.engine.writer.publisher().view().service(&ServiceKey::new(
            target,
            flow.target.port(),
            flow.protocol,
        ))
    }

    /// Whether the node answers a health check on this port.
    pub(crate) fn answers_health_check(&self, port: u16) -> bool {
        self.engine.writer.health_checks().by_port.contains_key(&port)
    }

    /// Whether this is one of the addresses with which the node stands in for clients.
    fn is_mine(&self, ip: Ip) -> bool {
        let settings = self.engine.writer.publisher().view().settings();
        [settings.router_ip, settings.router_ip6, settings.outside_ip, settings.outside_ip6].contains(&ip)
    }

    /// Checks that no frame and no packet is missing (I1, I2).
    pub(crate) fn finish(self) {
        self.engine.finish();
    }
}

fn options(case: &Case) -> Options {
    let node_port_addresses = case.node_port_addresses.clone();
    Options { node_port_addresses, ..Options::alone(Path::new("/nowhere"), &case.node, 64) }
}

fn node(name: &str) -> Value {
    let addresses = ["192.168.0.2", "2001:db8::1"].map(|ip| json!({"type": "InternalIP", "address": ip}));
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDRs": RANGES},
        "status": {"addresses": addresses},
    })
}

fn pod_name(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

fn pod(node: &str, ip: IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod_name(ip), "namespace": "default"},
        "spec": {"nodeName": node, "containers": []}, "status": {"podIPs": [{"ip": ip}]},
    })
}

/// What the kernel of such a node says.
fn kernel(case: &Case, pods: &BTreeSet<IpAddr>) -> Vec<Update> {
    let link = |ifindex: u32, name: &str| {
        KernelEvent::Link(Link {
            ifindex,
            name: name.into(),
            mac: Mac([2, 0, 0, 0, 0, ifindex as u8]),
            mtu: 1500,
            up: true,
        })
    };
    let mut events = vec![link(2, "eth0"), link(3, HOST_KERNEL_IF), link(4, HOST_ENGINE_IF)];
    for (range, router, any) in
        [("192.168.0.0/24", ROUTERS[0], "0.0.0.0/0"), ("2001:db8::/64", ROUTERS[1], "::/0")]
    {
        let router: Ip = router.parse::<IpAddr>().expect("an address").into();
        let mut add = |prefix: &str, route| {
            events.push(KernelEvent::Route(prefix.parse().expect("a range"), 0, route, Place::Last));
        };
        add(range, KernelRoute::direct(2));
        add(any, KernelRoute::via(2, router));
        events.push(KernelEvent::Neighbour(2, router, Some(Mac([2, 9, 9, 9, 9, 9]))));
    }
    events.extend(case.node_ips.iter().map(|ip| KernelEvent::Address(2, (*ip).into())));
    let veths = pods.iter().enumerate();
    events.extend(veths.map(|(n, ip)| link(10 + n as u32, &host_veth("default", &pod_name(*ip)))));
    let mut facts = Facts::default();
    events.iter().for_each(|event| facts.apply(event));
    vec![Update::Listing(facts, vec![])]
}

#[derive(Clone, Copy, Debug)]
struct Tuple {
    src: Ip,
    dst: Ip,
    sport: u16,
    dport: u16,
}

/// The first packet of a connection.
fn opening(to: Mac, protocol: u8, tuple: &Tuple) -> Vec<u8> {
    let Tuple { src, dst, sport, dport } = *tuple;
    let src_mac = pod_mac(src);
    match (src.as_v4(), dst.as_v4()) {
        (Some(src), Some(dst)) => {
            let headers = Headers { dst_mac: to, src_mac, src, dst, ttl: 64 };
            match protocol {
                proto::TCP => headers.tcp(sport, dport, tcp_flags::SYN, &[]),
                proto::UDP => headers.udp(sport, dport, b"x"),
                _ => headers.around(protocol, &association(sport, dport)),
            }
        }
        _ => {
            let headers = Headers6 { dst_mac: to, src_mac, src: src.0, dst: dst.0, hop_limit: 64 };
            match protocol {
                proto::TCP => headers.tcp(sport, dport, tcp_flags::SYN, &[]),
                proto::UDP => headers.udp(sport, dport, b"x"),
                _ => headers.around(protocol, &association(sport, dport)),
            }
        }
    }
}

/// An SCTP packet with a chunk that says nothing.
fn association(sport: u16, dport: u16) -> Vec<u8> {
    let mut packet = [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &[0; 8], &[1, 0, 0, 4]].concat();
    let sum = sctp::checksum(&packet);
    packet[sctp::CHECKSUM..sctp::LEN].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// What a packet that left says, or that it is an ICMP error.
fn look(frame: &[u8]) -> Option<Tuple> {
    let packet = SlicedPacket::from_ethernet(frame).expect("a well-formed frame");
    let (src, dst): (Ip, Ip) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => (Ip::v4(ip.header().source()), Ip::v4(ip.header().destination())),
        Some(NetSlice::Ipv6(ip)) => (Ip(ip.header().source()), Ip(ip.header().destination())),
        _ => panic!("no IP packet"),
    };
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            Some(Tuple { src, dst, sport: tcp.source_port(), dport: tcp.destination_port() })
        }
        Some(TransportSlice::Udp(udp)) => {
            Some(Tuple { src, dst, sport: udp.source_port(), dport: udp.destination_port() })
        }
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) => None,
        _ => {
            let at = |n: usize| u16::from_be_bytes([frame[34 + n], frame[35 + n]]);
            Some(Tuple { src, dst, sport: at(0), dport: at(2) })
        }
    }
}
