//! The world around the engines, in one thread: it polls the stacks, carries frames between them and the
//! engines' ports and over the wire between the nodes, records each, and hands manifests to the nodes.
//!
//! ```text
//!  stack ──memory port── engine of node-1 ──uplink0── wire ──uplink0── engine of node-2 ──memory port── stack
//! ```

use super::capture::Capture;
use super::error::{MemoryError, Result};
use super::feed::Feed;
use super::http::{Exchange, Reply};
use super::node::{Device, Far, Node, NodeAddress, OpenPort};
use super::stack::Stack;
use fairway_control::names;
use fairway_dataplane::crew::Tally;
use fairway_pmd::pcap::Direction;
use fairway_pmd::{Frame, FrameCache, Umem, UmemConfig};
use fairway_tables::stats::{Counter, StatsSnapshot};
use fairway_tables::{Ip, Mac};
use fairway_tests::manifests::Manifests;
use fairway_tests::node::{UPLINK, UPLINK_MTU};
use fairway_tests::{Error, sys};
use smoltcp::time::Instant as StackTime;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

/// Frames of both nodes and everything between them.
const FRAMES: u32 = 8192;
/// How long the simulation sleeps when nothing moves.
const IDLE: Duration = Duration::from_micros(20);
/// Nothing moves for this long: everything has arrived.
const STILL: Duration = Duration::from_millis(50);
const STILL_DEADLINE: Duration = Duration::from_secs(10);
const REPLY_DEADLINE: Duration = Duration::from_secs(30);
/// Until a ping counts as lost.
const ECHO_DEADLINE: Duration = Duration::from_secs(2);

/// A stack to be made: a pod, or a node's own network.
pub(super) struct StackSpec {
    /// Number of its node.
    pub(super) node: usize,
    /// Its name.
    pub(super) name: String,
    /// Its address.
    pub(super) ip: Ipv4Addr,
    /// Device of the node that it is behind.
    pub(super) ifname: String,
    /// What the capture calls it.
    pub(super) label: String,
}

/// What a run of echo requests found.
pub(super) struct Pings {
    /// Requests sent.
    pub(super) sent: u16,
    /// Requests answered with what was sent.
    pub(super) received: u16,
    /// Mean round trip of those.
    pub(super) mean: Duration,
}

/// See the module's head.
pub(super) struct Simulation {
    epoch: Instant,
    umem: Umem,
    cache: FrameCache,
    pub(super) nodes: Vec<Node>,
    pub(super) stacks: Vec<Stack>,
    pub(super) capture: Capture,
    feed: Feed,
    /// Frames on the wire.
    wire: Vec<Frame>,
    /// Frames that the wire had no room or no receiver for.
    lost: u64,
    echo_seq: u16,
}

impl Simulation {
    /// Starts both nodes, with every device in place and no manifest read yet.
    pub(super) fn start(
        addresses: &[NodeAddress],
        specs: &[StackSpec],
        manifests: &Manifests,
        mut capture: Capture,
    ) -> Result<Simulation> {
        let epoch = Instant::now();
        let umem = Umem::new(UmemConfig { frames: FRAMES, frame_size: 2048, huge_pages: false })?;
        let mtu = names::pod_mtu(UPLINK_MTU) as usize;
        let mut nodes = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            let mut device = |ifname: &str, far, label: &str| {
                let interface = capture.interface(&format!("{} {label}", address.name))?;
                Ok::<_, MemoryError>(Device { ifname: ifname.to_owned(), far, interface })
            };
            let mut devices = vec![device(UPLINK, Far::Wire, UPLINK)?];
            let mut host_mac = Mac::ZERO;
            for (stack, spec) in specs.iter().enumerate().filter(|(_, spec)| spec.node == number) {
                devices.push(device(&spec.ifname, Far::Stack(stack), &spec.label)?);
                if spec.ifname == names::HOST_ENGINE_IF {
                    host_mac = names::pod_mac(Ip::v4(spec.ip.octets()));
                }
            }
            nodes.push(Node::start(address.clone(), addresses, host_mac, devices, &umem)?);
        }
        let now = StackTime::from_micros(0);
        let stacks = specs.iter().map(|spec| Stack::new(&spec.name, spec.ip, mtu, now)).collect();
        let feed = Feed::start(manifests.folder())?;
        let cache = umem.cache();
        Ok(Simulation {
            epoch,
            umem,
            cache,
            nodes,
            stacks,
            capture,
            feed,
            wire: Vec::new(),
            lost: 0,
            echo_seq: 0,
        })
    }

    /// Moves everything one step on; whether anything moved.
    fn turn(&mut self) -> Result<bool> {
        while let Some(scan) = self.feed.next() {
            let look = scan.map_err(|error| MemoryError::check("manifests", error.to_string()))?;
            for node in &mut self.nodes {
                node.take(look.clone())?;
            }
        }
        let now = StackTime::from_micros(self.epoch.elapsed().as_micros() as i64);
        for stack in &mut self.stacks {
            stack.poll(now);
        }
        let mut moved = false;
        for number in 0..self.nodes.len() {
            moved |= self.carry(number);
        }
        self.cross_the_wire();
        for node in &self.nodes {
            if node.engine.is_dead() {
                return Err(MemoryError::WorkerDied { node: node.address().name.clone() });
            }
            // A worker that was about to sleep when the frames came needs another call.
            if node.ports.values().any(|port| port.peer.unread() > 0) {
                node.engine.wake();
            }
        }
        Ok(moved)
    }

    /// Carries frames between a node's ports and the stacks, and from its uplink onto the wire.
    fn carry(&mut self, number: usize) -> bool {
        let Simulation { nodes, stacks, capture, cache, wire, .. } = self;
        let Node { ports, given, taken, .. } = &mut nodes[number];
        let before = *given + *taken;
        for OpenPort { far, interface, peer } in ports.values_mut() {
            if let Far::Stack(stack) = *far {
                let outbox = &mut stacks[stack].cable.outbox;
                // What the port has no room for waits in the stack.
                while let Some(frame) = outbox.front().filter(|frame| peer.send(cache, frame)) {
                    capture.frame(*interface, Direction::In, frame);
                    *given += 1;
                    outbox.pop_front();
                }
            }
            while let Some(frame) = peer.recv() {
                capture.frame(*interface, Direction::Out, frame.bytes());
                *taken += 1;
                match *far {
                    Far::Wire => wire.push(frame),
                    Far::Stack(stack) => {
                        stacks[stack].cable.inbox.push_back(frame.bytes().to_vec());
                        cache.free(frame);
                    }
                }
            }
        }
        *given + *taken > before
    }

    /// Gives each frame on the wire to the node with its destination address, as a switch would.
    fn cross_the_wire(&mut self) {
        let Simulation { nodes, capture, cache, wire, lost, .. } = self;
        for frame in wire.drain(..) {
            let to = frame.bytes().get(..6);
            let node = nodes.iter_mut().find(|node| Some(&node.address().mac.0[..]) == to);
            let uplink = node.and_then(|Node { ports, given, .. }| {
                let port = ports.values_mut().find(|port| port.far == Far::Wire)?;
                Some((port, given))
            });
            let Some((OpenPort { interface, peer, .. }, given)) = uplink else {
                *lost += 1;
                cache.free(frame);
                continue;
            };
            capture.frame(*interface, Direction::In, frame.bytes());
            match peer.send_frame(frame) {
                Ok(()) => *given += 1,
                Err(frame) => {
                    *lost += 1;
                    cache.free(frame);
                }
            }
        }
    }

    /// Goes on until `look` finds what it looks for.
    pub(super) fn wait<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut look: impl FnMut(&mut Simulation) -> Result<Option<T>>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            if sys::interrupted() {
                return Err(Error::Interrupted.into());
            }
            let moved = self.turn()?;
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            if start.elapsed() > deadline {
                let (what, waited_ms) = (what.to_owned(), start.elapsed().as_millis() as u64);
                return Err(Error::Timeout { what, waited_ms, last: "nothing yet".to_owned() }.into());
            }
            if !moved {
                std::thread::sleep(IDLE);
            }
        }
    }

    /// Goes on for so long.
    pub(super) fn pause(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        self.wait("a pause is over", time * 2 + REPLY_DEADLINE, |_| Ok((Instant::now() >= end).then_some(())))
    }

    /// One request from a stack, answered in full.
    pub(super) fn get(&mut self, stack: usize, host: SocketAddrV4, path: &str) -> Result<Reply> {
        let what = format!("GET http://{host}{path} from {}", self.stacks[stack].name());
        let Some(mut exchange) = Exchange::begin(&mut self.stacks[stack], host, path) else {
            return Err(MemoryError::check(what, "no address to connect to"));
        };
        let outcome = self.wait(&format!("{what} is answered"), REPLY_DEADLINE, |simulation| {
            exchange
                .poll(&mut simulation.stacks[stack])
                .map_err(|reason| MemoryError::check(what.as_str(), reason))
        });
        self.stacks[stack].forget(exchange.handle());
        outcome
    }

    /// One echo request; its round trip, or `None` if no answer came in time.
    pub(super) fn echo(
        &mut self,
        stack: usize,
        target: Ipv4Addr,
        packet_bytes: usize,
    ) -> Result<Option<Duration>> {
        self.echo_seq = self.echo_seq.wrapping_add(1);
        let (seq, start) = (self.echo_seq, Instant::now());
        if !self.stacks[stack].send_echo(target, seq, packet_bytes) {
            return Err(MemoryError::check(format!("ping {target}"), "the socket has no room"));
        }
        self.wait("an echo request is answered or given up", ECHO_DEADLINE * 2, |simulation| {
            while let Some(reply) = simulation.stacks[stack].receive_echo() {
                if reply == (target, seq) {
                    return Ok(Some(Some(start.elapsed())));
                }
            }
            Ok((start.elapsed() > ECHO_DEADLINE).then_some(None))
        })
    }

    /// Pings until the first answer, and then so many times more. A stack drops its reply while it resolves
    /// the address, so the first few requests may go unanswered.
    pub(super) fn ping(
        &mut self,
        stack: usize,
        target: Ipv4Addr,
        count: u16,
        packet_bytes: usize,
    ) -> Result<Pings> {
        let tries = 5;
        let mut reached = false;
        for _ in 0..tries {
            reached |= self.echo(stack, target, packet_bytes)?.is_some();
            if reached {
                break;
            }
        }
        if !reached {
            return Err(MemoryError::check(format!("ping {target}"), format!("0/{tries} answered")));
        }
        let mut times = Vec::new();
        for _ in 0..count {
            times.extend(self.echo(stack, target, packet_bytes)?);
        }
        let received = times.len() as u16;
        let mean = times.iter().sum::<Duration>() / u32::from(received.max(1));
        Ok(Pings { sent: count, received, mean })
    }

    /// Goes on until nothing moves any more, signal or not.
    fn settle(&mut self) -> Result<()> {
        let start = Instant::now();
        let (mut still_since, mut before) = (start, 0);
        while still_since.elapsed() < STILL {
            if start.elapsed() > STILL_DEADLINE {
                return Err(MemoryError::check("waiting for every frame to arrive", "frames go on moving"));
            }
            self.turn()?;
            let nodes = &self.nodes;
            let moved: u64 = nodes.iter().map(|node| node.given + node.taken).sum();
            let unread = nodes.iter().flat_map(|node| node.ports.values()).any(|port| port.peer.unread() > 0);
            if moved != before || unread {
                (before, still_since) = (moved, Instant::now());
            }
            std::thread::sleep(IDLE);
        }
        Ok(())
    }

    /// Stops everything, brings every frame home, and checks invariants I1 and I2: I2 by the worker's own
    /// counts, and those against what the simulation has given and taken.
    pub(super) fn finish(mut self) -> Result<Finished> {
        let settled = self.settle();
        let Simulation { umem, mut cache, nodes, capture, lost, mut wire, .. } = self;
        let (mut counters, mut stopped) = (Vec::new(), Vec::new());
        for node in nodes {
            let address = node.address().clone();
            let Node { engine, ports, given, taken, .. } = node;
            let (tally, snapshot) = engine.stop()?;
            counters.push((address.name, snapshot));
            stopped.push((tally, ports, given, taken));
        }
        let mut packets = 0;
        for (tally, ports, given, mut taken) in stopped {
            for mut port in ports.into_values() {
                while let Some(frame) = port.peer.recv() {
                    taken += 1;
                    cache.free(frame);
                }
                port.peer.close(&mut cache);
            }
            packets += unaccounted(&tally, given, taken);
        }
        wire.drain(..).for_each(|frame| cache.free(frame));
        drop(cache);
        let capture = capture.finish()?;
        let frames = umem.pool().missing();
        let outcome = match (frames, packets) {
            (0, 0) if lost > 0 => {
                Err(MemoryError::check("the wire", format!("{lost} frames had nowhere to go")))
            }
            (0, 0) => settled,
            _ => Err(MemoryError::Invariant { frames, packets }),
        };
        Ok(Finished { counters, capture, outcome })
    }
}

/// Packets that the worker's counts miss: among themselves, and against what went into its ports and came out.
fn unaccounted(tally: &Tally, given: u64, taken: u64) -> u64 {
    let count = |counter| -> u64 { tally.counters.iter().map(|counters| counters.get(counter)).sum() };
    let sent = count(Counter::TxPackets) + count(Counter::HostPackets);
    let own = u64::try_from(tally.packets_unaccounted.unsigned_abs()).unwrap_or(u64::MAX);
    own + count(Counter::RxPackets).abs_diff(given) + sent.abs_diff(taken)
}

/// What the end of the simulation leaves.
pub(super) struct Finished {
    /// Each node's last counts.
    pub(super) counters: Vec<(String, StatsSnapshot)>,
    /// What the capture holds, in words.
    pub(super) capture: String,
    /// Whether frames and packets are conserved.
    pub(super) outcome: Result<()>,
}
