//! As [`entry`](super::entry), for IPv6: two cache lines.

use super::entry::{Binding, Flow};
use crate::hash::fold_multiply;
use bytemuck::{Pod, Zeroable};

/// What identifies an IPv6 flow on this worker.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct FlowKey6 {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Source and destination port, raw; ICMPv6 echo has its identifier twice, other protocols zero.
    pub ports: u32,
    /// Protocol, ingress port, and a bit that is always set: zero is no key.
    meta: u32,
    /// As in [`FlowKey`](super::FlowKey).
    pub outer: u32,
}

impl FlowKey6 {
    /// A key from raw fields and what [`FlowKey`](super::FlowKey) has as its ingress.
    #[inline(always)]
    pub fn new(src: [u8; 16], dst: [u8; 16], ports: u32, proto: u8, ingress: u16, outer: u32) -> FlowKey6 {
        FlowKey6 { src, dst, ports, meta: 1 << 31 | u32::from(ingress) << 8 | u32::from(proto), outer }
    }

    /// IP protocol number.
    #[inline]
    pub fn proto(&self) -> u8 {
        self.meta as u8
    }

    /// As [`FlowKey::ingress`](super::FlowKey::ingress).
    #[inline]
    pub fn ingress(&self) -> u16 {
        (self.meta >> 8) as u16
    }

    /// Whether the packet came through a tunnel.
    #[inline]
    pub fn is_tunnelled(&self) -> bool {
        self.ingress() >= super::FlowKey::TUNNEL6
    }
}

/// What to do with the packets of one IPv6 flow.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct FlowEntry6 {
    /// The flow; an empty slot has an all-zero key.
    pub key: FlowKey6,
    /// Ports to write.
    pub new_ports: u32,
    /// Source address to write.
    pub new_src: [u8; 16],
    /// Destination address to write.
    pub new_dst: [u8; 16],
    /// What to add to the TCP, UDP or ICMPv6 checksum (RFC 1624).
    pub l4_delta: u16,
    /// Zero.
    pub reserved: [u16; 9],
    /// The rest.
    pub binding: Binding,
}

const _: () = assert!(size_of::<FlowEntry6>() == 128);

impl Flow for FlowEntry6 {
    type Key = FlowKey6;

    #[inline(always)]
    fn key(&self) -> &FlowKey6 {
        &self.key
    }

    /// Three 64×64-bit multiplications, folded, under a seed drawn per process.
    #[inline(always)]
    fn hash(key: &FlowKey6, seed: u64) -> u64 {
        let words = |bytes: &[u8; 16]| {
            let number = u128::from_ne_bytes(*bytes);
            (number as u64, (number >> 64) as u64)
        };
        let ((src_low, src_high), (dst_low, dst_high)) = (words(&key.src), words(&key.dst));
        let rest = u64::from(key.ports) | u64::from(key.meta) << 32;
        let outer = u64::from(key.outer).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let first = fold_multiply(src_low ^ seed, src_high ^ 0xa076_1d64_78bd_642f);
        let second = fold_multiply(first ^ dst_low, dst_high ^ 0x8ebc_6af0_9c88_c6e3);
        fold_multiply(second ^ outer, rest ^ 0xe703_7ed1_a0b4_28db)
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
