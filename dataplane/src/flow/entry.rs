//! A flow's key and what to do with its packets: plain data, one cache line.

use crate::conntrack::{ConnRef, Direction};
use crate::freshness::Dependency;
use crate::hash::fold_multiply;
use bytemuck::{Pod, Zeroable};

/// What a flow table holds: one flow of either address family.
pub trait Flow: Pod {
    /// What identifies it.
    type Key: Copy + Eq;

    /// The flow's key.
    fn key(&self) -> &Self::Key;

    /// A well-mixed hash of a key.
    fn hash(key: &Self::Key, seed: u64) -> u64;

    /// Whether the slot is free.
    fn is_empty(&self) -> bool;

    /// Its validity and its connection.
    fn binding(&self) -> &Binding;

    /// As [`Flow::binding`], to be changed.
    fn binding_mut(&mut self) -> &mut Binding;
}

/// What an entry of either family says beside addresses and ports: where its packets go, under what it was compiled,
/// and whose it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Binding {
    /// The [`Freshness`](crate::Freshness) stamp under which the entry was compiled.
    pub stamp: u32,
    /// [`Binding::NAT`], [`Binding::REPLY`], [`Binding::CLAMP_MSS`], [`Binding::WINDOWS`], at most one encapsulation, perhaps over IPv6; in the upper half the [`Dependency`].
    pub flags: u32,
    /// The connection in the connection table.
    pub conn: u32,
    /// That connection's generation, to notice that its place was given to another.
    pub conn_generation: u32,
    /// Tick of the last time that the connection was told that it lives.
    pub touched: u32,
    /// Index into the worker's [`Templates`](super::Templates).
    pub template: u16,
    /// Output port.
    pub out_port: u16,
    /// Largest IP packet that the output takes.
    pub mtu: u16,
    /// Source port of the encapsulation.
    pub entropy: u16,
}

impl Binding {
    /// Addresses or ports change.
    pub const NAT: u32 = 1;
    /// Encapsulated in VXLAN.
    pub const VXLAN: u32 = 2;
    /// The flow is its connection's reply direction.
    pub const REPLY: u32 = 4;
    /// Encapsulated in IP.
    pub const IPIP: u32 = 8;
    /// Encapsulated in UDP without further header.
    pub const UDP_TUNNEL: u32 = 16;
    /// A SYN may announce no larger segments than the way takes.
    pub const CLAMP_MSS: u32 = 32;
    /// The outer header of the encapsulation is IPv6.
    pub const OVER_IPV6: u32 = 64;
    /// The connection's TCP windows are tracked: every packet is shown to the connection table, for which `touched` is never
    /// the present tick.
    pub const WINDOWS: u32 = 128;
    /// All that says how packets are encapsulated.
    pub const ENCAPSULATIONS: u32 = Self::VXLAN | Self::IPIP | Self::UDP_TUNNEL | Self::OVER_IPV6;
    /// No connection stands behind the flow.
    pub const NO_CONNECTION: u32 = u32::MAX;

    /// The flags for what an entry depends on.
    pub fn depends_on(dependency: Dependency) -> u32 {
        u32::from(dependency.bits()) << 16
    }

    /// Bits of what the entry depends on.
    #[inline(always)]
    pub fn dependency(&self) -> u16 {
        (self.flags >> 16) as u16
    }

    /// The connection behind the flow, and the flow's direction in it.
    #[inline(always)]
    pub fn connection(&self) -> Option<(ConnRef, Direction)> {
        let direction = if self.flags & Self::REPLY != 0 { Direction::Reply } else { Direction::Original };
        let conn = ConnRef { index: self.conn, generation: self.conn_generation };
        (self.conn != Self::NO_CONNECTION).then_some((conn, direction))
    }
}

/// What identifies a flow on this worker: the IPv4 5-tuple and where it came in. Fields are raw.
#[repr(C)]
#[derive(Clone, Copy, Eq, Debug, Default, Pod, Zeroable)]
pub struct FlowKey {
    /// Source address.
    pub src: u32,
    /// Destination address.
    pub dst: u32,
    /// Source and destination port; ICMP echo has its identifier twice, other protocols zero.
    pub ports: u32,
    /// Protocol, ingress port, and a bit that is always set: zero is no key.
    meta: u32,
    /// Of a packet from a tunnel the node it came from, for which the entry vouches: the outer IPv4 source address, or over
    /// IPv6 the number of the node's [`Tunnel`](fairway_tables::View::tunnel_number).
    pub outer: u32,
}

impl PartialEq for FlowKey {
    /// All fields at once, in as few loads as they take.
    #[inline(always)]
    fn eq(&self, other: &FlowKey) -> bool {
        let (a, b) = (self.words(), other.words());
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | u64::from(self.outer ^ other.outer) == 0
    }
}

impl FlowKey {
    /// Ingress of packets that came through a tunnel over IPv4, whatever the uplink.
    pub const TUNNEL: u16 = u16::MAX;
    /// The same of tunnels over IPv6. No port has this number or a higher one.
    pub const TUNNEL6: u16 = u16::MAX - 1;

    /// A key from raw fields and an ingress port (or [`FlowKey::TUNNEL`], [`FlowKey::TUNNEL6`]).
    #[inline(always)]
    pub fn new(src: u32, dst: u32, ports: u32, proto: u8, ingress: u16, outer: u32) -> FlowKey {
        FlowKey { src, dst, ports, meta: 1 << 31 | u32::from(ingress) << 8 | u32::from(proto), outer }
    }

    /// IP protocol number.
    #[inline]
    pub fn proto(&self) -> u8 {
        self.meta as u8
    }

    /// The ingress port, [`FlowKey::TUNNEL`] or [`FlowKey::TUNNEL6`].
    #[inline]
    pub fn ingress(&self) -> u16 {
        (self.meta >> 8) as u16
    }

    /// Whether the packet came through a tunnel.
    #[inline]
    pub fn is_tunnelled(&self) -> bool {
        self.ingress() >= FlowKey::TUNNEL6
    }

    /// Addresses, then the rest but the outer source.
    #[inline(always)]
    fn words(&self) -> [u64; 2] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [pair(self.src, self.dst), pair(self.ports, self.meta)]
    }

    /// A well-mixed hash: two 64×64-bit multiplications, folded. The seed is drawn per process, so that
    /// nobody outside can aim at one chain.
    #[inline(always)]
    pub fn hash(&self, seed: u64) -> u64 {
        let [addresses, rest] = self.words();
        let outer = u64::from(self.outer).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let first = fold_multiply(addresses ^ seed, 0xa076_1d64_78bd_642f);
        fold_multiply(first ^ outer, rest ^ 0xe703_7ed1_a0b4_28db)
    }
}

/// What to do with the packets of one flow.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct FlowEntry {
    /// The flow; an empty slot has an all-zero key.
    pub key: FlowKey,
    /// Source address to write.
    pub new_src: u32,
    /// Destination address to write.
    pub new_dst: u32,
    /// Ports to write.
    pub new_ports: u32,
    /// What to add to the IPv4 header checksum (RFC 1624): addresses and the TTL.
    pub ip_delta: u16,
    /// What to add to the TCP, UDP or ICMP checksum.
    pub l4_delta: u16,
    /// The rest.
    pub binding: Binding,
}

impl Flow for FlowEntry {
    type Key = FlowKey;

    #[inline(always)]
    fn key(&self) -> &FlowKey {
        &self.key
    }

    #[inline(always)]
    fn hash(key: &FlowKey, seed: u64) -> u64 {
        key.hash(seed)
    }

    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.key.meta == 0
    }

    #[inline(always)]
    fn binding(&self) -> &Binding {
        &self.binding
    }

    #[inline(always)]
    fn binding_mut(&mut self) -> &mut Binding {
        &mut self.binding
    }
}

const _: () = assert!(size_of::<FlowEntry>() == 64);
