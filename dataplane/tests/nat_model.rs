//! Random Services, clients and packets through several workers with one connection table, against a model of a few lines:
//! how each connection leaves, that its replies come back from whom the client asked, that no two live connections share
//! a translated tuple, and that ports run out exactly when they are all taken (docs/nat.md).

mod common;

use common::tuples::{Place, Step, ip, send};
use fairway_dataplane::WorkerState;
use fairway_dataplane::conntrack::Tuple;
use fairway_dataplane::testkit::{World, WorldConfig, addr};
use fairway_dataplane::wire::proto;
use fairway_tables::{DropReason, Ip, Op, Service, ServiceKey, Settings};
use proptest::prelude::*;

const WORKERS: usize = 3;
/// Few, so that they run out.
const PORTS: std::ops::RangeInclusive<u16> = 61_000..=61_004;

/// Somebody with an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Party {
    Pod(u16),
    Remote(u8),
    Outside(u8),
    Node,
}

impl Party {
    fn ip(self, is_v4: bool) -> Ip {
        match self {
            Party::Pod(n) => ip(addr::pod(n), addr::pod6(n), is_v4),
            Party::Remote(n) => ip(addr::remote_pod(n, 7), addr::remote_pod6(n, 7), is_v4),
            Party::Outside(n) => ip(addr::outside(n), addr::outside6(n), is_v4),
            Party::Node => ip(addr::NODE, addr::NODE6, is_v4),
        }
    }

    /// What it sends from. The node's stack speaks from its address among the pods.
    fn source(self, is_v4: bool) -> Ip {
        match self {
            Party::Node => router(is_v4),
            _ => self.ip(is_v4),
        }
    }

    fn place(self) -> Place {
        match self {
            Party::Pod(n) => Place::Pod(n),
            Party::Remote(n) => Place::Node(n),
            Party::Outside(_) => Place::Wire,
            Party::Node => Place::Host,
        }
    }
}

fn router(is_v4: bool) -> Ip {
    ip(addr::ROUTER, addr::ROUTER6, is_v4)
}

/// A service: under a cluster address; or under the node's own, and then it masquerades.
#[derive(Clone, Debug)]
struct Front {
    is_v4: bool,
    proto: u8,
    external: bool,
    backends: Vec<Party>,
}

impl Front {
    fn key(&self, n: usize) -> ServiceKey {
        let n = n as u8;
        if self.external {
            return ServiceKey::new(Party::Node.ip(self.is_v4), 30_000 + u16::from(n), self.proto);
        }
        let vip = ip([10, 96, 0, n], [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n], self.is_v4);
        ServiceKey::new(vip, 80, self.proto)
    }
}

const BACKEND_PORT: u16 = 8080;

#[derive(Clone, Debug)]
enum Op1 {
    /// A client asks a service.
    Ask { client: Party, front: usize, sport: u16 },
    /// A client asks a party directly, by TCP, UDP or an echo.
    Direct { is_v4: bool, client: Party, server: Party, sport: u16, proto: u8 },
    /// A connection is forgotten.
    Forget { nth: usize },
    /// Further packets of a connection, both ways.
    Talk { nth: usize },
    /// A service loses its backends but one.
    Shrink { front: usize, keep: usize },
}

fn party() -> impl Strategy<Value = Party> {
    prop_oneof![
        4 => (0u16..4).prop_map(Party::Pod),
        2 => (0u8..3).prop_map(Party::Remote),
        2 => (1u8..4).prop_map(Party::Outside),
        1 => Just(Party::Node),
    ]
}

fn transport() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![proto::TCP, proto::UDP])
}

fn front() -> impl Strategy<Value = Front> {
    (any::<bool>(), transport(), any::<bool>(), prop::collection::vec(party(), 1..4))
        .prop_map(|(is_v4, proto, external, backends)| Front { is_v4, proto, external, backends })
}

fn operation() -> impl Strategy<Value = Op1> {
    let sport = || prop::sample::select(vec![40_000u16, 40_001, 61_002]);
    prop_oneof![
        6 => (party(), any::<usize>(), sport()).prop_map(|(client, front, sport)| Op1::Ask { client, front, sport }),
        4 => (any::<bool>(), party(), party(), sport(), prop::sample::select(vec![proto::TCP, proto::UDP, proto::ICMP]))
            .prop_map(|(is_v4, client, server, sport, proto)| Op1::Direct { is_v4, client, server, sport, proto }),
        1 => any::<usize>().prop_map(|nth| Op1::Forget { nth }),
        3 => any::<usize>().prop_map(|nth| Op1::Talk { nth }),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(front, keep)| Op1::Shrink { front, keep }),
    ]
}

/// A connection of the model.
#[derive(Clone, Copy, Debug)]
struct Live {
    client: Party,
    server: Party,
    arrives: Tuple,
    leaves: Tuple,
}

struct Run {
    world: World,
    others: Vec<WorkerState>,
    fronts: Vec<Front>,
    live: Vec<Live>,
    turn: usize,
}

impl Run {
    fn new(fronts: &[Front]) -> Run {
        let config = WorldConfig::default();
        let mut world = World::new(config);
        world.open_outside();
        let settings = world.reader.view().settings();
        let (snat_first, snat_last) = (*PORTS.start(), *PORTS.end());
        world.apply(Op::SetSettings(Settings { snat_first, snat_last, ..settings }));
        let WorkerState { conntrack, affinity, .. } = &world.worker;
        let ports = usize::from(config.pods) + 2;
        let worker = |_| WorkerState::new(64, ports, conntrack.clone(), affinity.clone());
        let others = (1..WORKERS).map(worker).collect();
        let mut run = Run { world, others, fronts: fronts.to_vec(), live: Vec::new(), turn: 0 };
        (0..run.fronts.len()).for_each(|n| run.publish(n));
        run
    }

    fn publish(&mut self, n: usize) {
        let front = &self.fronts[n];
        let flags = if front.external { Service::MASQUERADE } else { 0 };
        let backends: Vec<_> =
            front.backends.iter().map(|party| (party.ip(front.is_v4), BACKEND_PORT)).collect();
        let service = Service { id: n as u32, flags, affinity_timeout_s: 0 };
        self.world.set_service_record(front.key(n), service, &backends);
    }

    /// Each packet goes through the next worker.
    fn send(&mut self, from: Party, tuple: &Tuple, step: Step) -> Option<(Place, Tuple)> {
        let at = self.turn % WORKERS;
        self.turn += 1;
        if at > 0 {
            std::mem::swap(&mut self.world.worker, &mut self.others[at - 1]);
        }
        let result = send(&mut self.world, from.place(), tuple, step);
        if at > 0 {
            std::mem::swap(&mut self.world.worker, &mut self.others[at - 1]);
        }
        result
    }

    fn drops(&self, reason: DropReason) -> u64 {
        let workers = self.others.iter().chain([&self.world.worker]);
        workers.map(|worker| worker.counters.drops(reason)).sum()
    }

    /// The address that the server sees, and whether the client's port may stay.
    fn source(client: Party, server: Party, dnat: bool, masquerade: bool, is_v4: bool) -> (Ip, bool) {
        let hairpin = dnat && client == server && client != Party::Node;
        match server {
            Party::Node if dnat && matches!(client, Party::Node | Party::Outside(_)) => {
                (ip(addr::GATEWAY, addr::HOST6, is_v4), true)
            }
            Party::Node => (client.source(is_v4), true),
            Party::Outside(_) if masquerade || hairpin || matches!(client, Party::Pod(_) | Party::Node) => {
                (Party::Node.ip(is_v4), false)
            }
            Party::Pod(_) | Party::Remote(_) if masquerade || hairpin => (router(is_v4), true),
            _ => (client.source(is_v4), true),
        }
    }

    fn taken(&self, back: &Tuple) -> bool {
        self.live.iter().any(|live| live.arrives == *back || live.leaves.reversed() == *back)
    }

    /// Checks that a connection began as it must; `servers` are those among which the engine may choose.
    fn begin(&mut self, client: Party, arrives: Tuple, servers: &[Party], front: Option<&Front>) {
        if self.live.iter().any(|live| live.arrives == arrives || live.leaves.reversed() == arrives) {
            return;
        }
        let is_v4 = arrives.src.is_v4();
        let exhausted = self.drops(DropReason::SnatPortsExhausted);
        let outcome = self.send(client, &arrives, Step::Open);
        let dport = front.map_or(arrives.dport, |_| BACKEND_PORT);
        let expect = |server: &Party| {
            let masquerade = front.is_some_and(|front| front.external);
            let (src, keeps) = Run::source(client, *server, front.is_some(), masquerade, is_v4);
            (Tuple { src, dst: server.ip(is_v4), dport, ..arrives }, keeps)
        };
        let free = |run: &Run, tuple: &Tuple| !run.taken(&tuple.reversed()) && tuple.reversed() != arrives;
        let is_echo = front.is_none() && !matches!(arrives.proto, proto::TCP | proto::UDP);
        let with = |tuple: Tuple, port: u16| Tuple {
            sport: port,
            dport: if is_echo { port } else { tuple.dport },
            ..tuple
        };
        let Some((place, leaves)) = outcome else {
            assert_eq!(self.drops(DropReason::SnatPortsExhausted), exhausted + 1, "{arrives:?} was dropped");
            let full = |server: &Party| {
                let (tuple, keeps) = expect(server);
                let own = (keeps || PORTS.contains(&tuple.sport)) && free(self, &tuple);
                !own && PORTS.clone().all(|port| !free(self, &with(tuple, port)))
            };
            assert!(servers.iter().any(full), "ports were left for {arrives:?}: {:#?}", self.live);
            return;
        };
        let server =
            *servers.iter().find(|server| server.ip(is_v4) == leaves.dst).expect("one of the backends");
        assert_eq!(place, server.place());
        let (tuple, keeps) = expect(&server);
        assert!(free(self, &leaves), "{leaves:?} is another connection's");
        let own = keeps || PORTS.contains(&tuple.sport);
        if own && free(self, &tuple) {
            assert_eq!(leaves, tuple, "the port stays where it may");
        } else {
            assert_eq!(leaves, with(tuple, leaves.sport));
            assert!(PORTS.contains(&leaves.sport));
        }
        let live = Live { client, server, arrives, leaves };
        self.live.push(live);
        self.talk(live);
    }

    /// Both ways, twice: through walks and through flows.
    fn talk(&mut self, live: Live) {
        let Live { client, server, arrives, leaves } = live;
        for _ in 0..2 * WORKERS {
            let answer = self.send(server, &leaves.reversed(), Step::Answer);
            assert_eq!(answer, Some((client.place(), arrives.reversed())), "the answer of {live:?}");
            let more = self.send(client, &arrives, Step::More);
            assert_eq!(more, Some((server.place(), leaves)), "more of {live:?}");
        }
    }

    fn apply(&mut self, op: &Op1) {
        match *op {
            Op1::Ask { client, front, sport } => {
                let n = front % self.fronts.len();
                let front = self.fronts[n].clone();
                // From outside only the node's own addresses are reached.
                if client == Party::Node && front.external
                    || matches!(client, Party::Outside(_)) && !front.external
                {
                    return;
                }
                let key = front.key(n);
                // Remote pods reach this node's addresses, and the outside, through their own node.
                let leads_outside = front.backends.iter().any(|party| matches!(party, Party::Outside(_)));
                if matches!(client, Party::Remote(_)) && (front.external || leads_outside) {
                    return;
                }
                let src = client.source(front.is_v4);
                let arrives = Tuple { src, dst: key.ip, sport, dport: key.port, proto: key.proto };
                self.begin(client, arrives, &front.backends, Some(&front));
            }
            Op1::Direct { is_v4, client, server, sport, proto } => {
                let from_pod = matches!(client, Party::Pod(_));
                if !from_pod || client == server {
                    return;
                }
                let proto = if proto == proto::ICMP && !is_v4 { proto::ICMPV6 } else { proto };
                let is_echo = !matches!(proto, proto::TCP | proto::UDP);
                let dport = if is_echo { sport } else { BACKEND_PORT };
                let (src, dst) = (client.source(is_v4), server.ip(is_v4));
                self.begin(client, Tuple { src, dst, sport, dport, proto }, &[server], None);
            }
            Op1::Forget { nth } => {
                if self.live.is_empty() {
                    return;
                }
                let live = self.live.swap_remove(nth % self.live.len());
                let found = self.world.worker.conntrack.lookup(&live.arrives).expect("it lives");
                assert!(self.world.worker.conntrack.remove(found.conn));
                // Flows ask after their connection every four seconds.
                self.world.now.seconds += 4;
            }
            Op1::Talk { nth } => {
                if let Some(live) = self.live.get(nth % self.live.len().max(1)).copied() {
                    self.talk(live);
                }
            }
            Op1::Shrink { front, keep } => {
                let n = front % self.fronts.len();
                let backends = &mut self.fronts[n].backends;
                let kept = backends[keep % backends.len()];
                *backends = vec![kept];
                let (is_v4, key) = (self.fronts[n].is_v4, self.fronts[n].key(n));
                // Conversations without an end of their own are bound anew; here they are forgotten first.
                let lost = |live: &Live| {
                    (live.arrives.dst, live.arrives.dport, live.arrives.proto)
                        == (key.ip, key.port, key.proto)
                        && live.server.ip(is_v4) != kept.ip(is_v4)
                };
                let lost: Vec<usize> = (0..self.live.len()).filter(|i| lost(&self.live[*i])).rev().collect();
                for i in lost.into_iter().filter(|_| key.proto == proto::UDP) {
                    self.apply(&Op1::Forget { nth: i });
                }
                self.publish(n);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn the_engine_translates_as_the_model_says(
        fronts in prop::collection::vec(front(), 1..5),
        ops in prop::collection::vec(operation(), 1..120),
    ) {
        let mut run = Run::new(&fronts);
        for op in &ops {
            run.apply(op);
        }
        // In the end every connection that was not forgotten still is what it was.
        for live in run.live.clone() {
            run.talk(live);
        }
        let Run { world, others, .. } = run;
        for worker in others {
            prop_assert_eq!(worker.counters.unaccounted(), 0, "I2");
        }
        world.finish();
    }
}
