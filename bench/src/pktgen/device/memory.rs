//! The engine's own workers over the memory driver, in this process: no kernel, no copy, no second process.
//! Tables are as large as the scenario asks, and change while packets flow if it asks for that.

use super::{Device, DeviceError};
use crate::pktgen::paths::{BACKEND_PORT, SERVICE_PORT, Site};
use crate::pktgen::ranges::Addresses;
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
use fairway_tables::{Capacities, Ip, NextHop, NextHopKind, Op, PortId, PortKind, Prefix};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The generator's pod, and the sink's.
const CLIENT: u16 = 0;
const SERVER: u16 = 1;
const PODS: u16 = 2;
/// Other nodes; the paths use the first one's pods.
const NODES: u8 = 64;
const PORTS: usize = PODS as usize + 2;
/// Clients of services with session affinity; the paths have none.
const CLIENTS: usize = 64;
/// Frames on their way into, or out of, a port.
const RING: usize = 1024;
/// Frames: what all rings hold, and as much on the way.
const FRAMES: u32 = 16_384;
/// First Service address.
const SERVICES: u32 = 0x0a60_000a; // 10.96.0.10
/// Routes per change of the tables, when they are filled.
const ROUTES_AT_ONCE: u32 = 50_000;
/// First of the further routes, all /24.
const ROUTES: u32 = 0x0b00_0000; // 11.0.0.0

/// The engine over memory.
pub struct MemoryDevice {
    crew: Crew,
    umem: Umem,
    ends: Ends,
    services: u32,
    /// Owns the world; changes it while packets flow, if asked to.
    keeper: JoinHandle<(World, u64)>,
    stop: Arc<AtomicBool>,
}

impl MemoryDevice {
    /// Starts one worker on `core`.
    ///
    /// # Errors
    /// If memory or threads cannot be had.
    pub fn start(scenario: &Scenario, core: Option<CoreId>) -> Result<MemoryDevice, DeviceError> {
        let flows: u32 = scenario.streams.iter().map(|stream| stream.flows).sum();
        let world = world(&scenario.tables);
        let umem = Umem::new(UmemConfig { frames: FRAMES, frame_size: 2048, huge_pages: true })?;
        let conntrack = Conntrack::heap(flows + flows / 8 + 4096, Timeouts::default())
            .map_err(DeviceError::io("allocate the connection table"))?;
        let affinity = Affinity::heap(CLIENTS).map_err(DeviceError::io("allocate the table of clients"))?;
        let stats = StatsWriter::heap(1, PORTS as u32);
        let cores = [core];
        let plan = Plan {
            cores: &cores,
            poll: PollMode::Busy,
            flows: flows as usize,
            ports: PORTS,
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
        let client = open(addr::pod_port(CLIENT), PortKind::Pod);
        let server = open(addr::pod_port(SERVER), PortKind::Pod);
        let stop = Arc::new(AtomicBool::new(false));
        let (tables, stopped) = (scenario.tables, stop.clone());
        let keeper = std::thread::Builder::new()
            .name("pktgen-tables".to_owned())
            .spawn(move || keep(world, &tables, &stopped))
            .map_err(DeviceError::io("start a thread"))?;
        let ends = Ends { tx: client, rx: vec![server, uplink] };
        Ok(MemoryDevice { crew, umem, ends, services: scenario.tables.services, keeper, stop })
    }
}

fn world(tables: &TableSizes) -> World {
    let config = WorldConfig { pods: PODS, nodes: NODES, ..WorldConfig::default() };
    let backends = 2 * tables.services.saturating_mul(tables.backends + 1);
    let capacities = Capacities {
        routes: tables.routes + 65_536,
        services: 2 * tables.services + 1024,
        backends: backends + 65_536,
        ..Capacities::default()
    };
    let mut world = World::with_capacities(config, capacities);
    for n in 0..tables.services {
        set_service(&mut world, n, tables.backends);
    }
    let mut routes = (0..tables.routes).map(route).peekable();
    while routes.peek().is_some() {
        let part: Vec<Op> = routes.by_ref().take(ROUTES_AT_ONCE as usize).collect();
        world.writer.apply(&part).expect("the capacities were chosen for these routes");
    }
    world
}

/// Further route number `n`, to one of the other nodes.
fn route(n: u32) -> Op {
    let prefix = Ip::v4((ROUTES + (n << 8)).to_be_bytes());
    let node = Ip::v4(addr::node((n % u32::from(NODES)) as u8));
    let hop = NextHop::new(NextHopKind::Tunnel, node, PortId::NONE);
    Op::SetRoute(Prefix::new(prefix, 24).expect("24 is a length"), hop)
}

/// Sets Service number `n`. All its backends are the server's pod, on different ports.
fn set_service(world: &mut World, n: u32, backends: u32) {
    let backends: Vec<_> =
        (0..backends).map(|b| (addr::pod(SERVER), BACKEND_PORT + (b % 1000) as u16)).collect();
    let ip = (SERVICES + n).to_be_bytes();
    world.set_service(ip, SERVICE_PORT, proto::UDP, 2 * n, &backends);
    world.set_service(ip, SERVICE_PORT, proto::TCP, 2 * n + 1, &backends);
}

/// Keeps the world until the end, and takes and gives back a backend of one Service after the other.
fn keep(mut world: World, tables: &TableSizes, stop: &AtomicBool) -> (World, u64) {
    let start = Instant::now();
    let mut changes = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() * f64::from(tables.changes_per_s)) as u64;
        while changes < due && !stop.load(Ordering::Relaxed) {
            let (service, more) = ((changes / 2) as u32 % tables.services, changes.is_multiple_of(2));
            set_service(&mut world, service, tables.backends + u32::from(more));
            changes += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    (world, changes)
}

impl Device for MemoryDevice {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn site(&self) -> Site {
        Site {
            client: addr::pod(CLIENT),
            client_mac: addr::pod_mac(CLIENT),
            server: addr::pod(SERVER),
            server_mac: addr::pod_mac(SERVER),
            gateway_mac: addr::GATEWAY_MAC,
            remote_pods: Addresses { first: u32::from_be_bytes(addr::remote_pod(0, 2)), count: 250 },
            services: Addresses { first: SERVICES, count: self.services },
        }
    }

    fn ends(&mut self) -> &mut Ends {
        &mut self.ends
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
        self.stop.store(true, Ordering::Relaxed);
        let tally = self.crew.stop()?;
        self.ends.close();
        drop(self.ends);
        let (world, changes) =
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
        Ok(vec![format!(
            "every frame is home, every packet accounted for; the engine dropped {drops}; {changes} changes of tables"
        )])
    }
}
