//! The engine's own workers over the memory driver, in this process: no kernel, no copy, no second process.
//! Tables are as large as the scenario asks, and change while packets flow if it asks for that.

use super::churn::{Orders, Pace};
use super::{Device, DeviceError};
use crate::pktgen::paths::{
    Around, BACKEND_PORT, NODE_PORT, NODE_PORTS, REMOTE_SERVICES, SERVICE_PORT, Site,
};
use crate::pktgen::ranges::{Addresses, Ports};
use crate::pktgen::scenario::{Scenario, TableSizes};
use crate::pktgen::trial::{End, Ends};
use core_affinity::CoreId;
use fairway_dataplane::affinity::Affinity;
use fairway_dataplane::conntrack::{Conntrack, Timeouts};
use fairway_dataplane::crew::{Crew, Plan};
use fairway_dataplane::testkit::{World, WorldConfig, addr};
use fairway_dataplane::wire::proto;
use fairway_dataplane::worker::PollMode;
use fairway_pmd::{Umem, UmemConfig, memory};
use fairway_tables::stats::StatsWriter;
use fairway_tables::{
    Backend, Capacities, DropReason, Ip, NextHop, NextHopKind, Op, PortId, PortKind, Prefix, Service,
    ServiceKey, Targets,
};
use std::fmt::Write as _;
use std::thread::JoinHandle;
use std::time::Duration;

/// The sink's pod, and the generator's, one for each sender.
const SERVER: u16 = 0;
const CLIENT: u16 = 1;
/// Other nodes, the first of which have the pods of paths between nodes.
const NODES: u8 = 64;
const VXLAN: u8 = 0;
const IPIP: u8 = 1;
const DIRECT: u8 = 2;
/// Clients of services with session affinity; the paths have none.
const CLIENTS: usize = 64;
/// Frames on their way into, or out of, a port.
const RING: usize = 1024;
/// Frames: what all rings hold, and as much on the way.
const FRAMES: u32 = 16_384;
/// First Service address, and the first of IPv6.
const SERVICES: u32 = 0x0a60_000a; // 10.96.0.10
const SERVICES6: [u8; 16] = [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10];
/// First Services with backends on another node.
const REMOTE: u32 = 0x0a61_000a; // 10.97.0.10
const REMOTE6: [u8; 16] = [0xfd, 0, 0, 0x97, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10];
/// Services of the tables for each of the scenario's: by cluster address and node port, and with backends on another node,
/// IPv4 and IPv6, UDP and TCP.
const OF_EACH: u32 = 12;
/// Routes per change of the tables, when they are filled.
const ROUTES_AT_ONCE: u32 = 50_000;
/// First of the further routes, all /24.
const ROUTES: u32 = 0x0b00_0000; // 11.0.0.0

/// The engine over memory.
pub struct MemoryDevice {
    crew: Crew,
    umem: Umem,
    ends: Ends,
    tables: TableSizes,
    /// Owns the world; changes it while packets flow, if asked to.
    keeper: JoinHandle<(World, [u64; 2])>,
    orders: Orders,
}

impl MemoryDevice {
    /// Starts one worker on `core`.
    ///
    /// # Errors
    /// If memory or threads cannot be had.
    pub fn start(scenario: &Scenario, core: Option<CoreId>) -> Result<MemoryDevice, DeviceError> {
        let flows: u32 = scenario.streams.iter().map(|stream| stream.flows).sum();
        let pods = CLIENT + scenario.senders as u16;
        let ports = usize::from(pods) + 2;
        let world = world(&scenario.tables, pods);
        let umem = Umem::new(UmemConfig { frames: FRAMES, frame_size: 2048, huge_pages: true })?;
        // One source may have an eighth of the openings, and nobody answers the generator's flows: room for all of them, as
        // long as that costs little.
        let connections = (flows + flows / 8).max(9 * flows.min(65_536)) + 4096;
        let conntrack = Conntrack::heap(connections, Timeouts::default())
            .map_err(DeviceError::io("allocate the connection table"))?;
        let affinity = Affinity::heap(CLIENTS).map_err(DeviceError::io("allocate the table of clients"))?;
        let stats = StatsWriter::heap(1, ports as u32);
        let cores = [core];
        let plan = Plan {
            cores: &cores,
            poll: PollMode::Busy,
            flows: flows as usize,
            ports,
            umem: &umem,
            conntrack: &conntrack,
            affinity: &affinity,
            stats: &stats,
        };
        let crew = Crew::start(&plan, || Ok(world.readers.reader()))?;
        let open = |id: PortId, kind| {
            let (engine, ours) = memory::pair(RING, id.0, id.0);
            crew.open_port(id, kind, vec![Box::new(engine)]);
            End { queue: Box::new(ours), cache: umem.cache() }
        };
        let uplink = open(addr::UPLINK, PortKind::Uplink);
        let server = open(addr::pod_port(SERVER), PortKind::Pod);
        let clients = (CLIENT..pods).map(|pod| open(addr::pod_port(pod), PortKind::Pod)).collect();
        let (tables, orders) = (scenario.tables, Orders::new());
        let heard = orders.clone();
        let keeper = std::thread::Builder::new()
            .name("pktgen-tables".to_owned())
            .spawn(move || keep(world, &tables, &heard))
            .map_err(DeviceError::io("start a thread"))?;
        let ends = Ends { clients, sinks: vec![server, uplink], wire: Some(1) };
        Ok(MemoryDevice { crew, umem, ends, tables: scenario.tables, keeper, orders })
    }
}

fn world(tables: &TableSizes, pods: u16) -> World {
    let config = WorldConfig { pods, nodes: NODES, ..WorldConfig::default() };
    let backends = OF_EACH * tables.services.saturating_mul(tables.backends + 1);
    let capacities = Capacities {
        routes: tables.routes + 65_536,
        services: OF_EACH * tables.services + 1024,
        backends: backends + 65_536,
        ..Capacities::default()
    };
    let mut world = World::with_capacities(config, capacities);
    world.set_way(IPIP, NextHopKind::Ipip);
    world.set_way(DIRECT, NextHopKind::Gateway);
    // IPv6 without encapsulation goes to the same neighbour as IPv4.
    let pods6 = Prefix::new(Ip(addr::remote_pod6(DIRECT, 0)), 64).expect("64 is a length");
    let neighbour = Ip::v4(addr::node(DIRECT));
    world.apply(Op::SetRoute(pods6, NextHop::new(NextHopKind::Gateway, neighbour, addr::UPLINK)));
    world.open_outside();
    for n in 0..tables.services {
        set_service(&mut world, n, tables.backends);
    }
    for n in 0..tables.services.min(REMOTE_SERVICES) {
        set_remote_service(&mut world, n);
    }
    let mut routes = (0..tables.routes).map(|n| route(n, n)).peekable();
    while routes.peek().is_some() {
        let part: Vec<Op> = routes.by_ref().take(ROUTES_AT_ONCE as usize).collect();
        world.writer.apply(&part).expect("the capacities were chosen for these routes");
    }
    world
}

/// Further route number `n`, to one of the other nodes.
fn route(n: u32, node: u32) -> Op {
    let prefix = Ip::v4((ROUTES + (n << 8)).to_be_bytes());
    let node = Ip::v4(addr::node((node % u32::from(NODES)) as u8));
    let hop = NextHop::new(NextHopKind::Tunnel, node, PortId::NONE);
    Op::SetRoute(Prefix::new(prefix, 24).expect("24 is a length"), hop)
}

/// Sets Service number `n`, by its cluster addresses and, as far as there are any, node ports. All its backends are the
/// server's pod, on different ports.
fn set_service(world: &mut World, n: u32, backends: u32) {
    let backends_at = |server: Ip| -> Vec<_> {
        (0..backends).map(|b| (server, BACKEND_PORT + (b % 1000) as u16)).collect()
    };
    let families = [
        (Ip::v4((SERVICES + n).to_be_bytes()), Ip::v4(addr::NODE), Ip::v4(addr::pod(SERVER))),
        (nth6(SERVICES6, n), Ip(addr::NODE6), Ip(addr::pod6(SERVER))),
    ];
    let mut id = OF_EACH * n;
    for (cluster, node, server) in families {
        let backends = backends_at(server);
        for proto in [proto::UDP, proto::TCP] {
            world.set_service_at(ServiceKey::new(cluster, SERVICE_PORT, proto), id, &backends);
            if n < NODE_PORTS {
                let node_port = ServiceKey::new(node, NODE_PORT + n as u16, proto);
                set_node_port(world, node_port, id + 1, &backends);
            }
            id += 2;
        }
    }
}

/// Sets a node port of policy Local, as control does: the node's own backends serve stations outside, who keep their
/// addresses.
fn set_node_port(world: &mut World, key: ServiceKey, id: u32, backends: &[(Ip, u16)]) {
    let service = Service { id, flags: Service::EXTERNAL | Service::LOCAL, affinity_timeout_s: 0 };
    let mut all: Vec<Backend> =
        backends.iter().map(|(ip, port)| Backend { ip: *ip, port: *port, flags: 0 }).collect();
    all.sort_unstable();
    let targets = Targets { cluster: all.clone(), local: all, ..Targets::default() };
    world.apply(Op::SetService(key, service, targets));
}

/// Sets the Service number `n` of those with a backend on another node.
fn set_remote_service(world: &mut World, n: u32) {
    let mut id = OF_EACH * n + 8;
    let host = 2 + (n % 250) as u8;
    let families = [
        (Ip::v4((REMOTE + n).to_be_bytes()), Ip::v4(addr::remote_pod(VXLAN, host))),
        (nth6(REMOTE6, n), Ip(addr::remote_pod6(VXLAN, host))),
    ];
    for (cluster, pod) in families {
        for proto in [proto::UDP, proto::TCP] {
            world.set_service_at(ServiceKey::new(cluster, SERVICE_PORT, proto), id, &[(pod, BACKEND_PORT)]);
            id += 1;
        }
    }
}

/// The `n`th address after this one.
fn nth6(first: [u8; 16], n: u32) -> Ip {
    let [high @ .., a, b, c, d] = first;
    let low = (u32::from_be_bytes([a, b, c, d]) + n).to_be_bytes();
    let mut ip = [0; 16];
    ip[..12].copy_from_slice(&high);
    ip[12..].copy_from_slice(&low);
    Ip(ip)
}

/// Keeps the world until the end; takes and gives back a backend of one Service after the other, and moves one further
/// route after the other (or the first, if there is none) to another node.
fn keep(mut world: World, tables: &TableSizes, orders: &Orders) -> (World, [u64; 2]) {
    let (mut services, mut routes) = (Pace::new(tables.changes_per_s), Pace::new(tables.route_changes_per_s));
    while !orders.stopped() {
        // The world's own reader reads nothing; the writer must not wait for it.
        world.reader.quiescent();
        for change in services.due(orders) {
            let (service, more) = ((change / 2) as u32 % tables.services, change.is_multiple_of(2));
            set_service(&mut world, service, tables.backends + u32::from(more));
        }
        for change in routes.due(orders) {
            let n = change as u32 % tables.routes.max(1);
            world.apply(route(n, n + 1 + (change / u64::from(tables.routes.max(1))) as u32));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    (world, [services.made, routes.made])
}

impl Device for MemoryDevice {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn site(&self) -> Site {
        let remote = |n| Addresses::v4(u32::from_be_bytes(addr::remote_pod(n, 2)), 250);
        let remote6 = |n| Addresses::v6(addr::remote_pod6(n, 2), 250);
        let TableSizes { services, .. } = self.tables;
        Site {
            client_mac: addr::pod_mac(CLIENT),
            server_mac: addr::pod_mac(SERVER),
            gateway_mac: addr::GATEWAY_MAC,
            station_mac: addr::EXIT_MAC,
            node_mac: addr::UPLINK_MAC,
            node_ports: Ports { first: NODE_PORT, count: services.min(NODE_PORTS) },
            ipv4: Around {
                client: Addresses::one(addr::pod(CLIENT)),
                server: Addresses::one(addr::pod(SERVER)),
                node: Addresses::one(addr::NODE),
                vxlan_pods: remote(VXLAN),
                ipip_pods: remote(IPIP),
                direct_pods: remote(DIRECT),
                outside: Addresses::v4(u32::from_be_bytes(addr::outside(1)), 200),
                services: Addresses::v4(SERVICES, services),
                remote_services: Addresses::v4(REMOTE, services.min(REMOTE_SERVICES)),
            },
            ipv6: Around {
                client: Addresses::v6(addr::pod6(CLIENT), 1),
                server: Addresses::v6(addr::pod6(SERVER), 1),
                node: Addresses::v6(addr::NODE6, 1),
                vxlan_pods: remote6(VXLAN),
                ipip_pods: remote6(IPIP),
                direct_pods: remote6(DIRECT),
                outside: Addresses::v6(addr::outside6(1), 200),
                services: Addresses::v6(SERVICES6, services),
                remote_services: Addresses::v6(REMOTE6, services.min(REMOTE_SERVICES)),
            },
        }
    }

    fn ends(&mut self) -> &mut Ends {
        &mut self.ends
    }

    fn set_churn(&mut self, on: bool) -> bool {
        self.orders.set(on);
        self.tables.changes_per_s + self.tables.route_changes_per_s > 0
    }

    fn hint(&mut self) -> String {
        match self.crew.dead() {
            Some(worker) => format!("worker {worker} has stopped by a fault"),
            None => "the workers run; do streams overwrite addresses with some that the tables do not have?"
                .to_owned(),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<String>, DeviceError> {
        let broken = |what: String| DeviceError::Broken { device: "memory".to_owned(), what };
        self.orders.stop();
        let tally = self.crew.stop()?;
        self.ends.close();
        drop(self.ends);
        let (world, [services, routes]) =
            self.keeper.join().map_err(|_| broken("the thread that changes tables has died".to_owned()))?;
        let missing = self.umem.pool().missing();
        if missing > 0 {
            return Err(broken(format!("{missing} frames are missing (invariant I1)")));
        }
        if tally.packets_unaccounted != 0 {
            return Err(broken(format!("{} packets are unaccounted for (I2)", tally.packets_unaccounted)));
        }
        world.finish();
        let drops: u64 = tally.counters.iter().map(|counters| counters.all_drops()).sum();
        let mut reasons = String::new();
        for reason in DropReason::ALL {
            let count: u64 = tally.counters.iter().map(|counters| counters.drops(*reason)).sum();
            if count > 0 {
                // Writing to a String cannot fail.
                let _ = write!(reasons, " ({count} {})", reason.label());
            }
        }
        Ok(vec![format!(
            "every frame is home, every packet accounted for; the engine dropped {drops}{reasons}; {services} changes of \
             Services, {routes} of routes"
        )])
    }
}
