//! What `process` and the walk ask of a packet, so that one code serves both address families. Everything here is
//! resolved at compile time.

use crate::clock::Now;
use crate::conntrack::{Conntrack, Tuple};
use crate::exception::{self, Answer};
use crate::flow::{self, Flow, FlowEntry, FlowEntry6, FlowTable, Template, Templates};
use crate::freshness::Freshness;
use crate::icmp_error::{self, Problem};
use crate::parse::{Ingress, Parsed};
use crate::parse6::Parsed6;
use crate::state::WorkerState;
use crate::walk::{self, Bound, Way};
use fairway_pmd::Frame;
use fairway_tables::{DropReason, Settings};

/// A parsed packet of one family.
pub(crate) trait Parcel: Copy {
    /// What its family's flow table holds.
    type Entry: Flow;

    /// What identifies its flow.
    fn key(&self) -> &<Self::Entry as Flow>::Key;
    /// Addresses, ports and protocol as they arrived.
    fn tuple(&self) -> Tuple;
    /// IP protocol number.
    fn proto(&self) -> u8;
    /// TCP control bits, 0 for other protocols.
    fn tcp_flags(&self) -> u8;
    /// TTL or hop limit.
    fn ttl(&self) -> u8;
    /// Length of the IP packet in bytes.
    fn ip_len(&self) -> u16;
    /// Raw outer source address, of a packet from a tunnel.
    fn outer(&self) -> Option<u32>;
    /// Whether it is a fragment, which has no ports or cannot speak for those that have none.
    fn is_fragment(&self) -> bool;

    /// The parts of a worker that decide about a hit: flows of the family, connections, what is fresh.
    fn parts(worker: &mut WorkerState) -> (&mut FlowTable<Self::Entry>, &Conntrack, &Freshness);
    /// The worker's flows of the family.
    fn flows(worker: &mut WorkerState) -> &mut FlowTable<Self::Entry> {
        Self::parts(worker).0
    }

    /// The parts that a rewrite needs.
    fn for_rewrite(worker: &WorkerState) -> (&FlowTable<Self::Entry>, &Templates);

    /// Rewrites the packet as an entry says.
    fn apply(&self, frame: &mut Frame, entry: &Self::Entry, template: &Template) -> Result<(), DropReason>;
    /// The entry that says what the walk found.
    fn compile(
        &self,
        worker: &mut WorkerState,
        bound: &Bound,
        way: &Way,
        now: Now,
    ) -> Result<Self::Entry, DropReason>;
    /// Translates an ICMP error about a translated packet.
    fn translate(&mut self, worker: &mut WorkerState, frame: &mut Frame) -> Result<(), DropReason>;
    /// Answers what was sent to the gateway's own address.
    fn answer_gateway(&self, frame: &mut Frame, ingress: &Ingress) -> Result<Answer, DropReason>;
    /// Turns the packet into an ICMP error about itself; `None` if there is none to be made.
    fn complain(&self, frame: &mut Frame, settings: &Settings, problem: Problem) -> Option<Self>;
}

impl Parcel for Parsed {
    type Entry = FlowEntry;

    #[inline(always)]
    fn key(&self) -> &flow::FlowKey {
        &self.key
    }

    fn tuple(&self) -> Tuple {
        Tuple::of(&self.key)
    }

    #[inline(always)]
    fn proto(&self) -> u8 {
        self.key.proto()
    }

    #[inline(always)]
    fn tcp_flags(&self) -> u8 {
        self.tcp_flags
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn ip_len(&self) -> u16 {
        self.ip_len
    }

    fn outer(&self) -> Option<u32> {
        self.key.is_tunnelled().then_some(self.key.outer)
    }

    fn is_fragment(&self) -> bool {
        self.key.is_fragment()
    }

    #[inline(always)]
    fn parts(worker: &mut WorkerState) -> (&mut FlowTable<FlowEntry>, &Conntrack, &Freshness) {
        (&mut worker.flows, &worker.conntrack, &worker.freshness)
    }

    #[inline(always)]
    fn for_rewrite(worker: &WorkerState) -> (&FlowTable<FlowEntry>, &Templates) {
        (&worker.flows, &worker.templates)
    }

    #[inline(always)]
    fn apply(&self, frame: &mut Frame, entry: &FlowEntry, template: &Template) -> Result<(), DropReason> {
        flow::apply(frame, self, entry, template)
    }

    fn compile(
        &self,
        worker: &mut WorkerState,
        bound: &Bound,
        way: &Way,
        now: Now,
    ) -> Result<FlowEntry, DropReason> {
        walk::compile(worker, self, bound, way, now)
    }

    fn translate(&mut self, worker: &mut WorkerState, frame: &mut Frame) -> Result<(), DropReason> {
        walk::translate(worker, frame, self)
    }

    fn answer_gateway(&self, frame: &mut Frame, ingress: &Ingress) -> Result<Answer, DropReason> {
        exception::answer_echo(frame, self, ingress)
    }

    fn complain(&self, frame: &mut Frame, settings: &Settings, problem: Problem) -> Option<Parsed> {
        icmp_error::complain(frame, self, icmp_error::speaker(settings, self.tuple().dst), problem)
    }
}

impl Parcel for Parsed6 {
    type Entry = FlowEntry6;

    #[inline(always)]
    fn key(&self) -> &flow::FlowKey6 {
        &self.key
    }

    fn tuple(&self) -> Tuple {
        Tuple::of6(&self.key)
    }

    #[inline(always)]
    fn proto(&self) -> u8 {
        self.key.proto()
    }

    #[inline(always)]
    fn tcp_flags(&self) -> u8 {
        self.tcp_flags
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn ip_len(&self) -> u16 {
        self.ip_len
    }

    fn outer(&self) -> Option<u32> {
        self.key.is_tunnelled().then_some(self.key.outer)
    }

    fn is_fragment(&self) -> bool {
        false
    }

    #[inline(always)]
    fn parts(worker: &mut WorkerState) -> (&mut FlowTable<FlowEntry6>, &Conntrack, &Freshness) {
        (&mut worker.flows6, &worker.conntrack, &worker.freshness)
    }

    #[inline(always)]
    fn for_rewrite(worker: &WorkerState) -> (&FlowTable<FlowEntry6>, &Templates) {
        (&worker.flows6, &worker.templates)
    }

    #[inline(always)]
    fn apply(&self, frame: &mut Frame, entry: &FlowEntry6, template: &Template) -> Result<(), DropReason> {
        flow::apply6(frame, self, entry, template)
    }

    fn compile(
        &self,
        worker: &mut WorkerState,
        bound: &Bound,
        way: &Way,
        now: Now,
    ) -> Result<FlowEntry6, DropReason> {
        walk::compile6(worker, self, bound, way, now)
    }

    fn translate(&mut self, worker: &mut WorkerState, frame: &mut Frame) -> Result<(), DropReason> {
        walk::translate6(worker, frame, self)
    }

    /// The gateway's address is link-local, and so no walk ends there.
    fn answer_gateway(&self, _: &mut Frame, _: &Ingress) -> Result<Answer, DropReason> {
        Err(DropReason::NotForUs)
    }

    fn complain(&self, frame: &mut Frame, settings: &Settings, problem: Problem) -> Option<Parsed6> {
        icmp_error::complain6(frame, self, icmp_error::speaker(settings, self.tuple().dst), problem)
    }
}
