//! The engine's heart: one function from a received burst to batches to send, without I/O.
//!
//! Cost tiers, and what each may do:
//! 1. **Flow hit** (nearly every packet): parse, hash, one cache line of flow table, one of template, rewrite.
//!    No allocation, no lock, no table of control's, no other worker's memory; the connection table hears of
//!    the flow every four seconds, and of TCP control bits.
//! 2. **Flow miss**: the [`walk`](crate::walk) through control's tables and the connection table. May take the
//!    connection table's chain locks when it inserts. Its result is the flow entry that the next packet hits.
//! 3. **Exceptions**: ARP and echo requests are answered in place; fragments are joined to their datagram's flow, and
//!    packets too large for their way cut up ([`fragment`](crate::fragment)); some drops are told to the sender by an
//!    ICMP error made of the dropped packet's own frame, within a limit; everything else here is a counted drop.
//!
//! A burst goes through each step as a whole (parse all and prefetch all, look up all, rewrite all), so that
//! cache misses of different packets overlap. Every frame taken from `rx` ends in exactly one of `tx`, for a bounded
//! time the worker's store of early fragments or, with a reason counted, `cache` (invariants I1 and I2).

use crate::clock::Now;
use crate::exception::{self, Answer};
use crate::family::Parcel;
use crate::flow::{Binding, Flow, FlowEntry6, FlowKey, Templates};
use crate::icmp_error;
use crate::parse::{Class, Ingress, Parsed, parse, parse_unusual, parse_usual};
use crate::parse6::{Class6, parse6};
use crate::serve::serves;
use crate::state::WorkerState;
use crate::tx::TxBatches;
use crate::walk::{self, Outcome};
use crate::wire::{ETH_LEN, ecn, ipv6, tcp_flags};
use arrayvec::ArrayVec;
use fairway_pmd::{Burst, Frame, FrameCache, MAX_BURST};
use fairway_tables::stats::{Counter, Stage};
use fairway_tables::{DropReason, Ip, PortId, PortKind, View};

/// How many packets ahead of the parser the second line of a tunnel's packet is fetched: before it asks for their flows'
/// entries, behind which a line that is not in the first-level cache would have to wait.
const AHEAD: usize = 8;
/// A byte of that line: where the header inside a tunnel is.
const SECOND_LINE: usize = 64;

/// Processes a burst that one port received. `rx` is empty afterwards.
pub fn process(
    rx: &mut Burst,
    ingress: PortId,
    tables: View<'_>,
    worker: &mut WorkerState,
    now: Now,
    cache: &mut FrameCache,
    tx: &mut TxBatches,
) {
    let count = rx.len();
    if count == 0 {
        return;
    }
    worker.sync(tables);
    worker.counters.received(ingress.0, count as u64, rx.iter().map(|frame| frame.len() as u64).sum());
    let Some(port) = worker.ingress(ingress) else {
        for frame in rx.drain(..) {
            worker.counters.dropped(DropReason::PortDown, ingress.0);
            cache.free(frame);
        }
        return;
    };

    worker.stages.begin();
    let burst_start = worker.stages.start();
    let mut scratch = worker.scratch.take().unwrap_or_default();
    let packets = &mut scratch.0[..count];
    let mut sixes = Sixes::new();
    let fetch = |later: &[Frame]| {
        if port.kind == PortKind::Uplink {
            later.iter().take(AHEAD).for_each(|frame| frame.prefetch(SECOND_LINE));
        }
    };
    fetch(rx);
    let mut rest = rx.as_mut_slice();
    for group in packets.chunks_mut(AHEAD) {
        let (frames, later) = rest.split_at_mut(group.len());
        fetch(later);
        for (frame, packet) in frames.iter_mut().zip(group) {
            if let Some(key) = parse_usual(frame.bytes(), &port, &mut packet.parsed) {
                packet.class = Class::Flow;
                packet.hash = key.hash(worker.flows.seed());
                worker.flows.prefetch(packet.hash);
            } else {
                unusual(frame, &port, packet, worker, tables, &mut sixes);
            }
        }
        rest = later;
    }
    worker.stages.lap(Stage::Parse, count);

    for packet in &mut *packets {
        packet.slot = match packet.class {
            Class::Flow => {
                worker.flows.find(packet.hash, &packet.parsed.key).map_or(NOT_FOUND, |slot| slot as u32)
            }
            _ => NOT_FOUND,
        };
    }
    if worker.conntrack.is_strict() {
        load_connections(worker, packets);
    }
    worker.stages.lap(Stage::FlowLookup, count);

    let mut run = Run { worker, tables, port: &port, now, cache, tx, hits: 0 };
    // Hits first, in place: what a miss changes, it changes when no look-up of this burst is needed any more. And a
    // frame moves to its batch when what was written to its handle has long left the store buffer.
    for (frame, packet) in rx.iter_mut().zip(&mut *packets) {
        packet.fate = if packet.slot == NOT_FOUND {
            run.announce(packet);
            Fate::Open
        } else {
            run.first_pass(packet, frame)
        };
    }
    let mut sixes = sixes.0.iter();
    let mut frames = rx.drain(..);
    for packet in &*packets {
        // A frame is taken where it is put and nowhere before: in between it would be stored in halves and loaded whole.
        if packet.fate == Fate::Leaves
            && let Some(batch) = run.tx.room(packet.out_port)
        {
            batch.extend(frames.next());
        } else if let Some(frame) = frames.next() {
            run.other(packet, &mut sixes, frame);
        }
    }
    drop(frames);
    let hits = run.hits;
    worker.scratch = Some(scratch);
    worker.stages.lap(Stage::Rewrite, count);
    worker.stages.since(Stage::Burst, burst_start);
    worker.counters.add(Counter::FlowHits, hits);
}

/// Loads what the connection table has of a burst's flows, before the first packet has to wait for it.
#[cold]
fn load_connections(worker: &WorkerState, packets: &[Packet]) {
    let found = packets.iter().filter(|packet| packet.slot != NOT_FOUND);
    worker.conntrack.load(found.map(|packet| worker.flows.entry(packet.slot as usize).binding().conn));
}

/// Carries a tunnel's congestion mark over to the packet inside, which is then like any other.
#[cold]
fn unmark(frame: &mut Frame, port: &Ingress, parsed: &mut Parsed) -> Class {
    match ecn::carry_over(frame.bytes_mut(), usize::from(parsed.l2) + ETH_LEN) {
        Ok(()) => parse(frame.bytes(), port, parsed),
        Err(reason) => Class::Drop(reason),
    }
}

/// Classifies a packet that does not look like most.
#[cold]
fn unusual(
    frame: &mut Frame,
    port: &Ingress,
    packet: &mut Packet,
    worker: &WorkerState,
    tables: View<'_>,
    sixes: &mut Sixes,
) {
    packet.class = parse_unusual(frame.bytes(), port, &mut packet.parsed);
    if packet.class == Class::Marked {
        packet.class = unmark(frame, port, &mut packet.parsed);
    }
    let has_key = matches!(packet.class, Class::Flow | Class::Single | Class::Fragment | Class::Ipv6);
    if has_key && packet.parsed.key.ingress() == FlowKey::TUNNEL6 {
        match sender_number(frame.bytes(), tables) {
            Some(number) => packet.parsed.key.outer = number,
            None => packet.class = Class::Drop(DropReason::UnknownVtep),
        }
    }
    if packet.class == Class::Flow {
        packet.hash = packet.parsed.key.hash(worker.flows.seed());
        worker.flows.prefetch(packet.hash);
    } else if packet.class == Class::Ipv6 {
        packet.hash = sixes.parse(worker, frame, &packet.parsed);
    }
}

/// The number of the tunnel by which an IPv6 packet came: a flow key has no room for the whole address.
fn sender_number(frame: &[u8], tables: View<'_>) -> Option<u32> {
    let src = frame.get(ETH_LEN + ipv6::SRC..)?.first_chunk()?;
    tables.tunnel_number(Ip(*src))
}

/// What the steps of a burst learn about its packets. It stays from burst to burst, since to clear it would cost a small
/// burst more than to use it.
pub(crate) struct Scratch([Packet; MAX_BURST]);

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch([Packet::default(); MAX_BURST])
    }
}

/// What the steps of a burst learn about a packet, one after the other.
#[derive(Clone, Copy)]
struct Packet {
    class: Class,
    parsed: Parsed,
    /// Of the flow's key, whatever the family; 0 where there is none.
    hash: u64,
    /// Where its flow was found, or [`NOT_FOUND`].
    slot: u32,
    fate: Fate,
    /// The port through which it leaves, if it does.
    out_port: u16,
}

/// No slot: flow tables have fewer entries.
const NOT_FOUND: u32 = u32::MAX;

/// What the first pass over the hits made of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Nothing: it is no hit.
    Open,
    /// It is ready to leave.
    Leaves,
    /// It cannot go as it is.
    Refused(DropReason),
}

impl Default for Packet {
    fn default() -> Packet {
        Packet {
            class: Class::Arp,
            parsed: Parsed::default(),
            hash: 0,
            slot: NOT_FOUND,
            fate: Fate::Open,
            out_port: 0,
        }
    }
}

/// The burst's IPv6 packets, apart from the rest because they are large to carry about.
struct Sixes(ArrayVec<Class6, MAX_BURST>);

impl Sixes {
    fn new() -> Sixes {
        Sixes(ArrayVec::new())
    }

    /// Classifies one more packet; returns its hash.
    #[inline(never)]
    fn parse(&mut self, worker: &WorkerState, frame: &Frame, found: &Parsed) -> u64 {
        let class = parse6(frame.bytes(), found.l2, found.key.outer, found.key.ingress());
        let mut hash = 0;
        if let Class6::Flow(parsed) = &class {
            hash = FlowEntry6::hash(&parsed.key, worker.flows6.seed());
            worker.flows6.prefetch(hash);
        }
        self.0.push(class);
        hash
    }
}

/// One burst on its way: what a packet's way is found with, and where its frame ends.
pub(crate) struct Run<'a> {
    pub(crate) worker: &'a mut WorkerState,
    pub(crate) tables: View<'a>,
    pub(crate) port: &'a Ingress,
    pub(crate) now: Now,
    pub(crate) cache: &'a mut FrameCache,
    tx: &'a mut TxBatches,
    hits: u64,
}

impl Run<'_> {
    /// An IPv6 packet.
    #[inline(never)]
    fn six(&mut self, class: Option<&Class6>, hash: u64, mut frame: Frame) {
        let verdict = match class {
            Some(Class6::Flow(parsed)) => {
                let slot = self.worker.flows6.find(hash, &parsed.key);
                self.flow(parsed, hash, slot, &mut frame)
            }
            Some(Class6::Single(parsed)) => self.single(*parsed, &mut frame),
            Some(Class6::Fragment(parsed)) => return self.fragment(*parsed, frame),
            Some(Class6::Link(parsed)) => {
                exception::answer_link(&mut frame, parsed, self.port, &self.tables.settings())
                    .map(|Answer| self.port.port.0)
            }
            Some(Class6::Drop(reason)) => Err(*reason),
            // There is one for each.
            None => Err(DropReason::BadIpHeader),
        };
        self.finish(verdict, frame);
    }

    /// A packet of a flow, found in `slot` or not; the result is the port through which `frame` leaves.
    #[inline(always)]
    pub(crate) fn flow<P: Parcel>(
        &mut self,
        packet: &P,
        hash: u64,
        slot: Option<usize>,
        frame: &mut Frame,
    ) -> Result<u16, DropReason> {
        let hit = slot.and_then(|slot| self.hit(packet, slot, frame));
        match hit.unwrap_or_else(|| self.miss(packet, hash, frame)) {
            Err(reason) => self.refused(packet, hash, reason, frame),
            ok => ok,
        }
    }

    /// A packet that is no hit of an IPv4 flow, or one that cannot go as it is.
    #[inline(never)]
    fn other(&mut self, packet: &Packet, sixes: &mut std::slice::Iter<'_, Class6>, mut frame: Frame) {
        let Packet { class, parsed, hash, fate, out_port, .. } = packet;
        let verdict = match class {
            Class::Flow => match fate {
                Fate::Leaves => Ok(*out_port),
                Fate::Refused(reason) => self.refused(parsed, *hash, *reason, &mut frame),
                Fate::Open => self.flow(parsed, *hash, None, &mut frame),
            },
            Class::Ipv6 => return self.six(sixes.next(), *hash, frame),
            Class::Single => self.single(*parsed, &mut frame),
            Class::Fragment => return self.fragment(*parsed, frame),
            Class::Arp => exception::answer_arp(&mut frame, self.port).map(|Answer| self.port.port.0),
            Class::Drop(reason) => Err(*reason),
            // Carried over above; one that still bears its mark was not.
            Class::Marked => Err(DropReason::EcnLost),
        };
        self.finish(verdict, frame);
    }

    /// Rewrites a packet whose flow was found in `slot`; `None` if it needs the walk all the same.
    #[inline(always)]
    fn hit<P: Parcel>(
        &mut self,
        packet: &P,
        slot: usize,
        frame: &mut Frame,
    ) -> Option<Result<u16, DropReason>> {
        match serves(self.worker, slot, packet, frame, self.now) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(reason) => return Some(Err(reason)),
        }
        self.hits += 1;
        Some(forward_by(self.worker, frame, packet, slot))
    }

    /// Rewrites a packet whose flow was found, as [`Run::hit`] does, and notes where it leaves.
    #[inline(always)]
    fn first_pass(&mut self, packet: &mut Packet, frame: &mut Frame) -> Fate {
        let slot = packet.slot as usize;
        match serves(self.worker, slot, &packet.parsed, frame, self.now) {
            Ok(true) => {}
            Ok(false) => return Fate::Open,
            Err(reason) => return Fate::Refused(reason),
        }
        self.hits += 1;
        let entry = self.worker.flows.entry(slot);
        match forward(&self.worker.templates, frame, &packet.parsed, entry) {
            Ok(()) => {
                packet.out_port = entry.binding.out_port;
                Fate::Leaves
            }
            Err(reason) => Fate::Refused(reason),
        }
    }

    /// Has the route of a flow's first packet fetched: the walks of a burst come later, one after the other.
    #[cold]
    fn announce(&self, packet: &Packet) {
        if packet.class == Class::Flow {
            self.tables.prefetch_route(Ip::v4(packet.parsed.key.dst.to_ne_bytes()));
        }
    }

    /// A packet that cannot go as it is: it is cut up if that is all it takes, or its sender told, where that is due.
    #[cold]
    fn refused<P: Parcel>(
        &mut self,
        packet: &P,
        hash: u64,
        reason: DropReason,
        frame: &mut Frame,
    ) -> Result<u16, DropReason> {
        if reason == DropReason::TooBig && packet.may_be_fragmented(frame.bytes()) {
            let flows = P::flows(self.worker);
            let slot = flows.find(hash, packet.key()).ok_or(reason)?;
            let entry = *flows.entry(slot);
            return packet.fragment(self, frame, &entry);
        }
        icmp_error::answer(self.worker, self.tables, self.port, packet, hash, reason, frame, self.now)
    }

    /// Walks a flow's packet through the tables, and remembers the result.
    #[cold]
    fn miss<P: Parcel>(&mut self, packet: &P, hash: u64, frame: &mut Frame) -> Result<u16, DropReason> {
        let worker = &mut *self.worker;
        if let Some(slot) = P::flows(worker).find(hash, packet.key()) {
            if serves(worker, slot, packet, frame, self.now)? {
                // An earlier packet of this burst has just walked.
                worker.counters.add(Counter::FlowHits, 1);
                return forward_by(worker, frame, packet, slot);
            }
            let (flows, _, freshness) = P::parts(worker);
            if !freshness.is_fresh(flows.entry(slot).binding()) {
                worker.counters.add(Counter::TableWalks, 1);
            }
        }
        worker.counters.add(Counter::FlowMisses, 1);
        let start = worker.stages.start();
        let segment = if worker.conntrack.is_strict() { packet.segment(frame) } else { None };
        let outcome = walk::walk(worker, self.tables, self.port, packet, segment.as_ref(), self.now);
        worker.stages.since(Stage::SlowPath, start);
        match outcome? {
            Outcome::Forward(entry) => {
                let slot = P::flows(worker).insert(entry);
                forward_by(worker, frame, packet, slot)
            }
            Outcome::Once(entry) => self.forward_once(packet, frame, &entry),
            Outcome::Gateway => packet.answer_gateway(frame, self.port).map(|Answer| self.port.port.0),
        }
    }

    /// Walks a packet that belongs to no flow.
    #[cold]
    fn single<P: Parcel>(&mut self, mut packet: P, frame: &mut Frame) -> Result<u16, DropReason> {
        let worker = &mut *self.worker;
        worker.counters.add(Counter::FlowMisses, 1);
        let start = worker.stages.start();
        let outcome = walk::walk_single(worker, self.tables, self.port, &mut packet, frame, self.now);
        worker.stages.since(Stage::SlowPath, start);
        match outcome? {
            Outcome::Forward(entry) | Outcome::Once(entry) => self.forward_once(&packet, frame, &entry),
            Outcome::Gateway => Err(DropReason::NotForUs),
        }
    }

    /// Sends one packet as an entry says that is not remembered.
    fn forward_once<P: Parcel>(
        &mut self,
        packet: &P,
        frame: &mut Frame,
        entry: &P::Entry,
    ) -> Result<u16, DropReason> {
        match forward(&self.worker.templates, frame, packet, entry) {
            Err(DropReason::TooBig) if packet.may_be_fragmented(frame.bytes()) => {
                packet.fragment(self, frame, entry)
            }
            verdict => verdict.map(|()| entry.binding().out_port),
        }
    }

    /// Puts a frame into the batch of its output port, or counts why it is dropped.
    pub(crate) fn finish(&mut self, verdict: Result<u16, DropReason>, frame: Frame) {
        let (reason, frame) = match verdict {
            Ok(port) => match self.tx.push(port, frame) {
                Ok(()) => return,
                Err(frame) if self.tx.is_open(PortId(port)) => (DropReason::TxFull, frame),
                Err(frame) => (DropReason::PortDown, frame),
            },
            Err(reason) => (reason, frame),
        };
        self.worker.counters.dropped(reason, self.port.port.0);
        self.cache.free(frame);
    }
}

/// Rewrites a packet as the flow in a slot says; returns the output port.
#[inline(always)]
fn forward_by<P: Parcel>(
    worker: &mut WorkerState,
    frame: &mut Frame,
    packet: &P,
    slot: usize,
) -> Result<u16, DropReason> {
    let (flows, templates) = P::for_rewrite(worker);
    let entry = flows.entry(slot);
    forward(templates, frame, packet, entry).map(|()| entry.binding().out_port)
}

/// Rewrites a packet as an entry says.
#[inline(always)]
fn forward<P: Parcel>(
    templates: &Templates,
    frame: &mut Frame,
    packet: &P,
    entry: &P::Entry,
) -> Result<(), DropReason> {
    if packet.ttl() <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let binding = entry.binding();
    if packet.ip_len() > binding.mtu {
        return Err(DropReason::TooBig);
    }
    if packet.tcp_flags() & tcp_flags::SYN != 0 && binding.flags & Binding::CLAMP_MSS != 0 {
        packet.clamp_mss(frame, binding.mtu);
    }
    let Some(template) = templates.get(binding.template) else { return Err(DropReason::NoRoute) };
    packet.apply(frame, entry, template)
}
