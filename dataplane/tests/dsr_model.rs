//! Random Services with DSR, clients and changes, at two nodes that leave connections to each other (docs/dsr.md), against a
//! model of a few lines: a client's packets go to a backend of the node that they came to, or as they are to the other node
//! and there to one of its own; the backend sees the client, its answer leaves its own node with the address that was asked;
//! nothing is sent on by the second node; and what is established stays where it is. The nodes may know different backends.

mod common;

use common::tuples::{Place, Step, ip, send};
use fairway_dataplane::conntrack::Tuple;
use fairway_dataplane::testkit::{World, WorldConfig, addr};
use fairway_dataplane::wire::proto;
use fairway_tables::{
    Backend, DropReason, Ip, NextHop, NextHopKind, Op, PortId, Service, ServiceKey, Targets,
};
use proptest::prelude::*;
use std::collections::BTreeSet;

const BACKEND_PORT: u16 = 8080;
const NODE_PORT: u16 = 30_000;

/// A backend: node 0 or 1, and one of its pods.
type At = (usize, u16);

/// A backend's address as a node calls it: in each world the node itself has pods 10.244.16.x, the other is its remote 0.
fn address(at: At, seen_by: usize, is_v4: bool) -> Ip {
    let (node, pod) = at;
    match node == seen_by {
        true => ip(addr::pod(pod), addr::pod6(pod), is_v4),
        false => ip(addr::remote_pod(0, 10 + pod as u8), addr::remote_pod6(0, 10 + pod as u8), is_v4),
    }
}

#[derive(Clone, Debug)]
struct Front {
    is_v4: bool,
    proto: u8,
    node_port: bool,
    maglev: bool,
    affinity: bool,
}

#[derive(Clone, Debug)]
enum Change {
    /// A client asks a service at a node.
    Ask { front: usize, node: usize, client: u8, sport: u16 },
    /// More packets of a connection.
    Talk { nth: usize },
    /// A node learns of other backends of a service; the other may not have heard of it.
    Learn { front: usize, nodes: [bool; 2], backends: BTreeSet<At> },
    /// Packets of a connection come to the other node from now on.
    Move { nth: usize },
}

fn backends() -> impl Strategy<Value = BTreeSet<At>> {
    prop::collection::btree_set((0usize..2, 0u16..3), 0..5)
}

fn front() -> impl Strategy<Value = Front> {
    let transport = prop::sample::select(vec![proto::TCP, proto::UDP, proto::SCTP]);
    (any::<bool>(), transport, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(is_v4, proto, node_port, maglev, affinity)| Front { is_v4, proto, node_port, maglev, affinity },
    )
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (any::<usize>(), 0usize..2, 1u8..5, 4000u16..4004)
            .prop_map(|(front, node, client, sport)| Change::Ask { front, node, client, sport }),
        3 => any::<usize>().prop_map(|nth| Change::Talk { nth }),
        2 => (any::<usize>(), any::<[bool; 2]>(), backends())
            .prop_map(|(front, nodes, backends)| Change::Learn { front, nodes, backends }),
        1 => any::<usize>().prop_map(|nth| Change::Move { nth }),
    ]
}

/// A connection of the model: the node that its packets come to, and the backend that has it.
#[derive(Clone, Copy, Debug)]
struct Live {
    front: usize,
    node: usize,
    asked: Tuple,
    server: At,
}

struct Run {
    worlds: [World; 2],
    fronts: Vec<Front>,
    /// What each node knows of each service.
    known: [Vec<BTreeSet<At>>; 2],
    live: Vec<Live>,
}

/// Why a second node may drop what it is left: it has no backend, or as far as it knows there is none at all.
const WITHOUT_BACKENDS: [DropReason; 2] = [DropReason::NoLocalBackend, DropReason::NoBackend];

impl Run {
    fn new(fronts: &[Front], first: &BTreeSet<At>) -> Run {
        let world = || {
            let mut world = World::new(WorldConfig { frames: 512, nodes: 2, ..WorldConfig::default() });
            world.open_outside();
            world
        };
        let known = [vec![first.clone(); fronts.len()], vec![first.clone(); fronts.len()]];
        let mut run = Run { worlds: [world(), world()], fronts: fronts.to_vec(), known, live: Vec::new() };
        for node in 0..2 {
            (0..fronts.len()).for_each(|front| run.publish(front, node));
        }
        run
    }

    fn publish(&mut self, n: usize, node: usize) {
        let Front { is_v4, proto, node_port, maglev, affinity } = self.fronts[n];
        let way = |at: &At| match at.0 == node {
            true => NextHop::new(NextHopKind::Local, Ip::UNSPECIFIED, PortId::NONE),
            false => NextHop::new(NextHopKind::Tunnel, Ip::v4(addr::node(0)), PortId::NONE),
        };
        let backend = |at: &At| Backend { ip: address(*at, node, is_v4), port: BACKEND_PORT, flags: 0 };
        let mut all: Vec<(Backend, NextHop)> =
            self.known[node][n].iter().map(|at| (backend(at), way(at))).collect();
        all.sort_unstable();
        let mut local: Vec<Backend> =
            self.known[node][n].iter().filter(|at| at.0 == node).map(backend).collect();
        local.sort_unstable();
        let mut flags = Service::EXTERNAL | Service::MASQUERADE | Service::DSR;
        flags |= if maglev { Service::MAGLEV } else { 0 };
        flags |= if local.is_empty() && !all.is_empty() { Service::ENDPOINTS_ELSEWHERE } else { 0 };
        let (cluster, ways) = all.into_iter().unzip();
        let targets = Targets { cluster, local, ways, source_ranges: vec![] };
        let service = Service { id: n as u32, flags, affinity_timeout_s: if affinity { 600 } else { 0 } };
        let port = NODE_PORT + n as u16;
        let keys = match (node_port, is_v4) {
            (false, _) => vec![self.key(n, node)],
            (true, true) => vec![self.key(n, node), ServiceKey::new(ServiceKey::NODE_PORTS, port, proto)],
            (true, false) => vec![self.key(n, node), ServiceKey::new(ServiceKey::NODE_PORTS6, port, proto)],
        };
        for key in keys {
            self.worlds[node].apply(Op::SetService(key, service, targets.clone()));
        }
    }

    /// Where a service is asked at a node, in that node's own words.
    fn key(&self, n: usize, _: usize) -> ServiceKey {
        let Front { is_v4, proto, node_port, .. } = self.fronts[n];
        if node_port {
            return ServiceKey::new(ip(addr::NODE, addr::NODE6, is_v4), NODE_PORT + n as u16, proto);
        }
        let vip = [0x20, 1, 0x0d, 0xb8, 0x51, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n as u8];
        ServiceKey::new(ip([198, 51, 100, n as u8], vip, is_v4), 80, proto)
    }

    /// A tuple of one node in the other's words: the first one's own address is that of its remote node.
    fn translated(&self, tuple: Tuple) -> Tuple {
        let is_v4 = tuple.dst.is_v4();
        let (own, other) = (ip(addr::NODE, addr::NODE6, is_v4), ip(addr::node(0), addr::node6(0), is_v4));
        if tuple.dst == own { Tuple { dst: other, ..tuple } } else { tuple }
    }

    fn without_backends(&self, node: usize) -> u64 {
        WITHOUT_BACKENDS.iter().map(|reason| self.worlds[node].worker.counters.drops(*reason)).sum()
    }

    /// Sends a client's packet to a node; the backend that gets it, if one does. Checks all on the way.
    fn ask(&mut self, front: usize, node: usize, asked: &Tuple, step: Step) -> Option<At> {
        let before = self.without_backends(node);
        let (mut at, mut tuple) = (node, *asked);
        let mut out = send(&mut self.worlds[node], Place::Wire, asked, step);
        if let Some((Place::Node(0), same)) = out {
            assert_eq!(same, *asked, "as the client sent it");
            at = 1 - node;
            tuple = self.translated(*asked);
            let before = self.without_backends(at);
            out = send(&mut self.worlds[at], Place::Node(0), &tuple, step);
            if !matches!(out, Some((Place::Pod(_), _))) {
                // Dropped, or refused in the service's name.
                assert_eq!(self.without_backends(at), before + 1, "{out:?}");
                return None;
            }
        }
        let Some((Place::Pod(pod), seen)) = out else {
            assert_eq!(self.without_backends(node), before + 1, "{out:?}");
            return None;
        };
        let is_v4 = self.fronts[front].is_v4;
        // Another port only where the same client asks the same backend under several addresses by one.
        let sport = if (61_000..).contains(&seen.sport) { seen.sport } else { tuple.sport };
        let dst = address((at, pod), at, is_v4);
        assert_eq!(seen, Tuple { sport, dst, dport: BACKEND_PORT, ..tuple });
        let answer = send(&mut self.worlds[at], Place::Pod(pod), &seen.reversed(), Step::Answer);
        assert_eq!(answer, Some((Place::Wire, tuple.reversed())), "the client hears whom it asked");
        Some((at, pod))
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Ask { front, node, client, sport } => {
                let front = front % self.fronts.len();
                let key = self.key(front, *node);
                let src = ip(addr::outside(*client), addr::outside6(*client), self.fronts[front].is_v4);
                let asked = Tuple { src, dst: key.ip, sport: *sport, dport: key.port, proto: key.proto };
                // At whichever node: a load balancer's address is one and the same service.
                let is_shared = !self.fronts[front].node_port;
                let same = |live: &Live| live.asked == asked && (is_shared || live.node == *node);
                if self.live.iter().any(same) {
                    return;
                }
                // Nobody is refused who could be served; but where nodes disagree, the second may have nothing.
                let agreed = self.known[0][front] == self.known[1][front] && !self.known[0][front].is_empty();
                match self.ask(front, *node, &asked, Step::Open) {
                    Some(server) => {
                        assert!(self.known[server.0][front].contains(&server), "{server:?}");
                        self.live.push(Live { front, node: *node, asked, server });
                    }
                    None => assert!(!agreed, "{asked:?} was dropped"),
                }
            }
            Change::Talk { nth } => {
                if !self.live.is_empty() {
                    self.talk(nth % self.live.len());
                }
            }
            Change::Learn { front, nodes, backends } => {
                let front = front % self.fronts.len();
                for node in (0..2).filter(|node| nodes[*node]) {
                    self.known[node][front].clone_from(backends);
                    self.publish(front, node);
                }
                // A flow whose connection is bound anew asks after it every four seconds; replies do not ask the service.
                self.worlds.iter_mut().for_each(|world| world.now.seconds += 4);
            }
            Change::Move { nth } => {
                if self.live.is_empty() {
                    return;
                }
                let nth = nth % self.live.len();
                let Live { front, node, asked, server } = self.live[nth];
                // A node port's address is one node's alone; and only the backend's node knows the connection for sure.
                if self.fronts[front].node_port || server.0 == node || self.fronts[front].proto != proto::TCP
                {
                    return;
                }
                let found = self.ask(front, server.0, &asked, Step::More);
                assert_eq!(found, Some(server), "at its backend's node it is known");
                self.live[nth].node = server.0;
            }
        }
    }

    /// More of a connection: TCP stays at its backend; a conversation whose backend is not the service's any more is
    /// bound anew, if there is one.
    fn talk(&mut self, nth: usize) {
        let Live { front, node, asked, server } = self.live[nth];
        let found = self.ask(front, node, &asked, Step::More);
        if self.fronts[front].proto == proto::TCP {
            assert_eq!(found, Some(server), "TCP stays: {:?}", self.live[nth]);
            return;
        }
        let listed = |node: usize| self.known[node][front].contains(&server);
        if listed(node) && listed(server.0) {
            assert_eq!(found, Some(server), "a conversation stays while its backend does");
        }
        match found {
            Some(server) => {
                self.live[nth].server = server;
            }
            None => drop(self.live.swap_remove(nth)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn two_nodes_serve_clients_outside_as_the_model_says(
        fronts in prop::collection::vec(front(), 1..4),
        first in backends(),
        changes in prop::collection::vec(change(), 1..100),
    ) {
        let mut run = Run::new(&fronts, &first);
        for change in &changes {
            run.apply(change);
        }
        for nth in (0..run.live.len()).rev() {
            run.talk(nth);
        }
        run.worlds.into_iter().for_each(World::finish);
    }
}
