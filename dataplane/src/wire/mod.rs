//! Headers as they lie on the wire: field offsets, checked views, emission. Nothing here decides anything.
//!
//! Multi-byte fields that are only compared or copied are loaded in memory order ("raw"): comparing two raw
//! values compares the network bytes, and the Internet checksum is the same sum in either order (RFC 1071
//! section 2(B)). Only fields that are calculated with are swapped.

pub mod arp;
pub mod checksum;
pub mod ecn;
pub mod icmp;
pub mod icmpv6;
pub mod ipip;
pub mod ipv4;
pub mod ipv6;
pub mod over_ipv6;
pub mod sctp;
pub mod tcp;
pub mod udp_tunnel;
pub mod vxlan;

/// Length of an Ethernet header without VLAN tag.
pub const ETH_LEN: usize = 14;
/// Length of a UDP header (RFC 768).
pub const UDP_LEN: usize = 8;
/// Least length of a TCP header (RFC 9293 section 3.1).
pub const TCP_LEN: usize = 20;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// IP protocol numbers (IANA).
pub mod proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP (RFC 2003).
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP (RFC 2473, RFC 4213).
    pub const IPV6: u8 = 41;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP control bits (RFC 9293 section 3.1).
pub mod tcp_flags {
    /// No more data from sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgment field is significant.
    pub const ACK: u8 = 0x10;
}

/// Reads a 16-bit big-endian field. The caller has checked that the bytes are there.
#[inline(always)]
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    raw16(bytes, at).to_be()
}

/// Reads a 16-bit field in memory order.
#[inline(always)]
pub fn raw16(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(field(bytes, at))
}

/// Reads a 32-bit field in memory order.
#[inline(always)]
pub fn raw32(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(field(bytes, at))
}

/// Reads a 64-bit field in memory order.
#[inline(always)]
pub fn raw64(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(field(bytes, at))
}

/// The bytes of a field, in one load: an array of single bytes often becomes as many loads.
#[inline(always)]
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Writes a 16-bit big-endian field.
#[inline(always)]
pub fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes a 16-bit field in memory order.
#[inline(always)]
pub fn put_raw16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}

/// Writes a 32-bit field in memory order.
#[inline(always)]
pub fn put_raw32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

/// Two 16-bit port numbers in host order as one raw 32-bit field, source first.
#[inline]
pub fn ports_to_raw(src: u16, dst: u16) -> u32 {
    let ([a, b], [c, d]) = (src.to_be_bytes(), dst.to_be_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// The inverse of [`ports_to_raw`].
#[inline]
pub fn raw_to_ports(raw: u32) -> (u16, u16) {
    let [a, b, c, d] = raw.to_ne_bytes();
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}
