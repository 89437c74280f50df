//! What `process` and the walk ask of a packet, so that one code serves both address families. Everything here is
//! resolved at compile time.

use crate::clock::Now;
use crate::conntrack::{Conntrack, Tuple};
use crate::exception::{self, Answer};
use crate::flow::{self, Flow, FlowEntry, FlowEntry6, FlowTable, Template, Templates};
use crate::fragment::{self, DatagramKey, Piece, Stored, Transport};
use crate::freshness::Freshness;
use crate::icmp_error::{self, Problem};
use crate::parse::{Ingress, Parsed, Part};
use crate::parse6::Parsed6;
use crate::process::Run;
use crate::state::WorkerState;
use crate::walk::{self, Bound, Way};
use crate::wire::tcp::Segment;
use crate::wire::{ETH_LEN, TCP_LEN, be16, ipv4, ipv6, proto, tcp};
use fairway_pmd::Frame;
use fairway_tables::{DropReason, Ip, Settings, View};

/// A parsed packet of one family.
pub(crate) trait Parcel: Copy + Into<Stored> {
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
    /// What its TCP header says; `None` if it is not TCP, or has none since it is a later fragment.
    fn segment(&self, frame: &Frame) -> Option<Segment>;
    /// Length of the IP packet in bytes.
    fn ip_len(&self) -> u16;
    /// Whether it came from a tunnel.
    fn is_tunnelled(&self) -> bool;
    /// The underlay address of the node that it came from, of a packet from a tunnel.
    fn sender(&self, tables: View<'_>) -> Option<Ip>;
    /// Whether it is a fragment.
    fn part(&self) -> Part;

    /// What the fragment header says, of a fragment.
    fn piece(&self, frame: &[u8]) -> Piece;
    /// The datagram of a fragment with this identification.
    fn datagram(&self, id: u32, from_pod: bool) -> DatagramKey;
    /// Protocol and ports, of a first fragment.
    fn transport(&self) -> Transport {
        Transport { proto: self.proto(), ports: self.ports() }
    }
    /// Raw ports, as in the key.
    fn ports(&self) -> u32;
    /// Lowers the segment size that a SYN announces to what packets of at most `mtu` bytes carry.
    fn clamp_mss(&self, frame: &mut Frame, mtu: u16);
    /// Gives a later fragment the protocol and ports of the first.
    fn set_transport(&mut self, transport: Transport);
    /// The key's hash.
    fn hash(&self, worker: &WorkerState) -> u64;
    /// Whether routers may fragment it.
    fn may_be_fragmented(&self, frame: &[u8]) -> bool;
    /// Fragments it, as [`fragment::split`] does.
    fn fragment(&self, run: &mut Run<'_>, frame: &mut Frame, entry: &Self::Entry) -> Result<u16, DropReason>;

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
    /// Of an ICMP error, the tuple of the packets that those answered which it speaks of.
    fn about(&self, frame: &Frame) -> Option<Tuple>;
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

    fn segment(&self, frame: &Frame) -> Option<Segment> {
        (self.proto() == proto::TCP).then_some(())?;
        segment(frame, self.l2, self.ip_header_len, self.ip_len, self.part)
    }

    #[inline(always)]
    fn ip_len(&self) -> u16 {
        self.ip_len
    }

    fn is_tunnelled(&self) -> bool {
        self.key.is_tunnelled()
    }

    fn sender(&self, tables: View<'_>) -> Option<Ip> {
        sender(tables, self.key.ingress(), self.key.outer)
    }

    #[inline(always)]
    fn part(&self) -> Part {
        self.part
    }

    fn piece(&self, frame: &[u8]) -> Piece {
        let ip = usize::from(self.l2) + ETH_LEN;
        let word = be16(frame, ip + ipv4::FRAGMENT);
        Piece {
            id: be16(frame, ip + ipv4::IDENTIFICATION).into(),
            offset: word & ipv4::OFFSET,
            len: self.ip_len - self.ip_header_len,
            more: word & ipv4::MF != 0,
        }
    }

    fn datagram(&self, id: u32, from_pod: bool) -> DatagramKey {
        let Tuple { src, dst, proto, .. } = self.tuple();
        DatagramKey { src, dst, id, outer: self.key.outer, ingress: self.key.ingress(), proto, from_pod }
    }

    fn ports(&self) -> u32 {
        self.key.ports
    }

    #[cold]
    fn clamp_mss(&self, frame: &mut Frame, mtu: u16) {
        clamp_mss(frame, self.l2, self.ip_header_len, self.ip_len, mtu.saturating_sub(ipv4::LEN as u16));
    }

    /// The protocol is in every header.
    fn set_transport(&mut self, transport: Transport) {
        self.key.ports = transport.ports;
    }

    fn hash(&self, worker: &WorkerState) -> u64 {
        self.key.hash(worker.flows.seed())
    }

    fn may_be_fragmented(&self, frame: &[u8]) -> bool {
        fragment::is_allowed(frame, self)
    }

    fn fragment(&self, run: &mut Run<'_>, frame: &mut Frame, entry: &FlowEntry) -> Result<u16, DropReason> {
        fragment::split(run, self, frame, entry)
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

    fn about(&self, frame: &Frame) -> Option<Tuple> {
        walk::about(frame, self)
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

    fn segment(&self, frame: &Frame) -> Option<Segment> {
        (self.proto() == proto::TCP).then_some(())?;
        segment(frame, self.l2, self.l4, self.ip_len, self.part)
    }

    #[inline(always)]
    fn ip_len(&self) -> u16 {
        self.ip_len
    }

    fn is_tunnelled(&self) -> bool {
        self.key.is_tunnelled()
    }

    fn sender(&self, tables: View<'_>) -> Option<Ip> {
        sender(tables, self.key.ingress(), self.key.outer)
    }

    #[inline(always)]
    fn part(&self) -> Part {
        self.part
    }

    fn piece(&self, frame: &[u8]) -> Piece {
        let header = usize::from(self.l2) + ETH_LEN + usize::from(self.fragment);
        let word = be16(frame, header + 2);
        Piece {
            id: u32::from(be16(frame, header + 4)) << 16 | u32::from(be16(frame, header + 6)),
            offset: (word & ipv6::FRAGMENT_OFFSET) / 8,
            len: self.ip_len - self.fragment - ipv6::FRAGMENT_LEN as u16,
            more: word & ipv6::MORE_FRAGMENTS != 0,
        }
    }

    fn datagram(&self, id: u32, from_pod: bool) -> DatagramKey {
        let (src, dst) = (Ip(self.key.src), Ip(self.key.dst));
        DatagramKey { src, dst, id, outer: self.key.outer, ingress: self.key.ingress(), proto: 0, from_pod }
    }

    fn ports(&self) -> u32 {
        self.key.ports
    }

    #[cold]
    fn clamp_mss(&self, frame: &mut Frame, mtu: u16) {
        clamp_mss(frame, self.l2, self.l4, self.ip_len, mtu.saturating_sub(ipv6::LEN as u16));
    }

    fn set_transport(&mut self, Transport { proto, ports }: Transport) {
        let flow::FlowKey6 { src, dst, outer, .. } = self.key;
        self.key = flow::FlowKey6::new(src, dst, ports, proto, self.key.ingress(), outer);
    }

    fn hash(&self, worker: &WorkerState) -> u64 {
        FlowEntry6::hash(&self.key, worker.flows6.seed())
    }

    /// RFC 8200 section 5: only their sender may.
    fn may_be_fragmented(&self, _: &[u8]) -> bool {
        false
    }

    fn fragment(&self, _: &mut Run<'_>, _: &mut Frame, _: &FlowEntry6) -> Result<u16, DropReason> {
        Err(DropReason::TooBig)
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

    fn about(&self, frame: &Frame) -> Option<Tuple> {
        walk::about6(frame, self)
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

/// The node that a flow key's `outer` stands for.
fn sender(tables: View<'_>, ingress: u16, outer: u32) -> Option<Ip> {
    match ingress {
        flow::FlowKey::TUNNEL => Some(Ip::v4(outer.to_ne_bytes())),
        flow::FlowKey::TUNNEL6 => tables.numbered_tunnel(outer).map(|(node, _)| node),
        _ => None,
    }
}

/// Reads the TCP segment at `l4` of the IP packet of `ip_len` bytes.
fn segment(frame: &Frame, l2: u16, l4: u16, ip_len: u16, part: Part) -> Option<Segment> {
    if part == Part::Later {
        return None;
    }
    let ip = usize::from(l2) + ETH_LEN;
    let bytes = frame.bytes().get(ip + usize::from(l4)..ip + usize::from(ip_len));
    Some(bytes.map_or(Segment::NONSENSE, |bytes| Segment::parse(bytes, part == Part::Whole)))
}

/// Clamps the TCP segment at `l4` of the IP packet of `ip_len` bytes; `payload_len` is what an IP packet carries. Options
/// are not subtracted (RFC 6691).
fn clamp_mss(frame: &mut Frame, l2: u16, l4: u16, ip_len: u16, payload_len: u16) {
    let ip = usize::from(l2) + ETH_LEN;
    let segment = &mut frame.bytes_mut()[ip + usize::from(l4)..ip + usize::from(ip_len)];
    tcp::clamp_mss(segment, payload_len.saturating_sub(TCP_LEN as u16));
}
