//! The engine's heart: one function from a received burst to batches to send, without I/O.
//!
//! Cost tiers, and what each may do:
//! 1. **Flow hit** (nearly every packet): parse, hash, one cache line of flow table, one of template, rewrite.
//!    No allocation, no lock, no table of control's, no other worker's memory; the connection table hears of
//!    the flow every four seconds, and of TCP control bits.
//! 2. **Flow miss**: the [`walk`](crate::walk) through control's tables and the connection table. May take the
//!    connection table's chain locks when it inserts. Its result is the flow entry that the next packet hits.
//! 3. **Exceptions**: ARP and echo requests are answered in place; some drops are told to the sender by an ICMP
//!    error made of the dropped packet's own frame, within a limit; everything else here is a counted drop.
//!
//! A burst goes through each step as a whole (parse all and prefetch all, look up all, rewrite all), so that
//! cache misses of different packets overlap. Every frame taken from `rx` ends in exactly one of `tx` or,
//! with a reason counted, `cache` (invariants I1 and I2).

use crate::clock::Now;
use crate::conntrack::Conntrack;
use crate::exception::{self, Answer};
use crate::flow::{self, Binding, Flow, FlowEntry, FlowTable};
use crate::freshness::Freshness;
use crate::icmp_error;
use crate::parse::{Class, Parsed, parse};
use crate::state::WorkerState;
use crate::tx::TxBatches;
use crate::walk::{self, Outcome};
use crate::wire::tcp_flags;
use arrayvec::ArrayVec;
use fairway_pmd::{Burst, Frame, FrameCache, MAX_BURST};
use fairway_tables::stats::{Counter, Stage};
use fairway_tables::{DropReason, PortId, View};

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
    let mut packets: ArrayVec<(Class, u64), MAX_BURST> = ArrayVec::new();
    for frame in rx.iter() {
        let class = parse(frame.bytes(), &port);
        let mut hash = 0;
        if let Class::Flow(parsed) = &class {
            hash = parsed.key.hash(worker.flows.seed());
            worker.flows.prefetch(hash);
        }
        packets.push((class, hash));
    }
    worker.stages.lap(Stage::Parse, count);

    let mut slots: ArrayVec<Option<usize>, MAX_BURST> = ArrayVec::new();
    for (class, hash) in &packets {
        slots.push(match class {
            Class::Flow(parsed) => worker.flows.find(*hash, &parsed.key),
            _ => None,
        });
    }
    worker.stages.lap(Stage::FlowLookup, count);

    let mut hits = 0;
    for ((mut frame, (class, hash)), slot) in rx.drain(..).zip(&packets).zip(&slots) {
        let verdict = match class {
            Class::Flow(parsed) => match *slot {
                Some(slot) if serves(worker, slot, parsed, now) => {
                    hits += 1;
                    let entry = worker.flows.entry(slot);
                    forward(worker, &mut frame, parsed, entry)
                }
                _ => miss(worker, tables, &port, parsed, *hash, now, &mut frame),
            },
            Class::Single(parsed) => single(worker, tables, &port, *parsed, now, &mut frame),
            Class::Arp => exception::answer_arp(&mut frame, &port).map(|Answer| ingress.0),
            Class::Drop(reason) => Err(*reason),
        };
        let verdict = match (verdict, class) {
            (Err(reason), Class::Flow(parsed)) => {
                icmp_error::answer(worker, tables, &port, parsed, *hash, reason, &mut frame, now)
            }
            (verdict, _) => verdict,
        };
        finish(worker, ingress, verdict, frame, cache, tx);
    }
    worker.stages.lap(Stage::Rewrite, count);
    worker.stages.since(Stage::Burst, burst_start);
    worker.counters.add(Counter::FlowHits, hits);
}

/// Whether a found flow may serve this packet: the tables still say so, and its connection is alive.
#[inline(always)]
fn hit<F: Flow>(
    flows: &mut FlowTable<F>,
    conntrack: &Conntrack,
    freshness: &Freshness,
    slot: usize,
    packet: &Arrival<'_, F>,
    now: Now,
) -> bool {
    let entry = flows.entry(slot);
    // An insert earlier in this burst may have put another flow into this place.
    if !freshness.is_fresh(entry.binding()) || entry.key() != packet.key {
        return false;
    }
    let control = packet.tcp_flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST);
    if control != 0 || entry.binding().touched != now.tick() {
        return refresh(flows.entry_mut(slot).binding_mut(), conntrack, packet.proto, packet.tcp_flags, now);
    }
    true
}

/// What tells whether a flow may serve a packet.
struct Arrival<'a, F: Flow> {
    key: &'a F::Key,
    proto: u8,
    tcp_flags: u8,
}

/// Tells the connection table of a control bit, or that the flow lives. `false` if the packet must be walked.
#[cold]
fn refresh(binding: &mut Binding, conntrack: &Conntrack, proto: u8, flags: u8, now: Now) -> bool {
    let opens = flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN;
    if opens {
        // May begin a new connection on an old tuple: the walk decides.
        return false;
    }
    if let Some((conn, direction)) = binding.connection()
        && !conntrack.update(conn, proto, direction, flags, now.seconds)
    {
        return false;
    }
    binding.touched = now.tick();
    true
}

impl Parsed {
    fn arrival(&self) -> Arrival<'_, FlowEntry> {
        Arrival { key: &self.key, proto: self.key.proto(), tcp_flags: self.tcp_flags }
    }
}

#[inline(always)]
fn serves(worker: &mut WorkerState, slot: usize, parsed: &Parsed, now: Now) -> bool {
    let WorkerState { flows, conntrack, freshness, .. } = worker;
    hit(flows, conntrack, freshness, slot, &parsed.arrival(), now)
}

/// Rewrites a packet as its flow says; returns the output port.
#[inline(always)]
fn forward(
    worker: &WorkerState,
    frame: &mut Frame,
    parsed: &Parsed,
    entry: &FlowEntry,
) -> Result<u16, DropReason> {
    if parsed.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    if parsed.ip_len > entry.mtu {
        return Err(DropReason::TooBig);
    }
    let Some(template) = worker.templates.get(entry.template) else { return Err(DropReason::NoRoute) };
    flow::apply(frame, parsed, entry, template)?;
    Ok(entry.out_port)
}

/// Walks a flow's packet through the tables, and remembers the result.
#[cold]
#[allow(clippy::too_many_arguments)]
fn miss(
    worker: &mut WorkerState,
    tables: View<'_>,
    port: &crate::parse::Ingress,
    parsed: &Parsed,
    hash: u64,
    now: Now,
    frame: &mut Frame,
) -> Result<u16, DropReason> {
    if let Some(slot) = worker.flows.find(hash, &parsed.key) {
        if serves(worker, slot, parsed, now) {
            // An earlier packet of this burst has just walked.
            worker.counters.add(Counter::FlowHits, 1);
            let entry = worker.flows.entry(slot);
            return forward(worker, frame, parsed, entry);
        }
        if !worker.freshness.is_fresh(&worker.flows.entry(slot).binding) {
            worker.counters.add(Counter::TableWalks, 1);
        }
    }
    worker.counters.add(Counter::FlowMisses, 1);
    let start = worker.stages.start();
    let outcome = walk::walk(worker, tables, port, parsed, now);
    worker.stages.since(Stage::SlowPath, start);
    match outcome? {
        Outcome::Forward(entry) => {
            let slot = worker.flows.insert(entry);
            let entry = worker.flows.entry(slot);
            forward(worker, frame, parsed, entry)
        }
        Outcome::Gateway => exception::answer_echo(frame, parsed, port).map(|Answer| port.port.0),
    }
}

/// Walks a packet that belongs to no flow.
#[cold]
fn single(
    worker: &mut WorkerState,
    tables: View<'_>,
    port: &crate::parse::Ingress,
    mut parsed: Parsed,
    now: Now,
    frame: &mut Frame,
) -> Result<u16, DropReason> {
    worker.counters.add(Counter::FlowMisses, 1);
    let start = worker.stages.start();
    let outcome = walk::walk_single(worker, tables, port, &mut parsed, frame, now);
    worker.stages.since(Stage::SlowPath, start);
    match outcome? {
        Outcome::Forward(entry) => forward(worker, frame, &parsed, &entry),
        Outcome::Gateway => Err(DropReason::NotForUs),
    }
}

#[inline(always)]
fn finish(
    worker: &mut WorkerState,
    ingress: PortId,
    verdict: Result<u16, DropReason>,
    frame: Frame,
    cache: &mut FrameCache,
    tx: &mut TxBatches,
) {
    let (reason, frame) = match verdict {
        Ok(port) => match tx.push(port, frame) {
            Ok(()) => return,
            Err(frame) if tx.is_open(PortId(port)) => (DropReason::TxFull, frame),
            Err(frame) => (DropReason::PortDown, frame),
        },
        Err(reason) => (reason, frame),
    };
    worker.counters.dropped(reason, ingress.0);
    cache.free(frame);
}
