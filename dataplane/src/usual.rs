//! The usual shape of a packet: IPv4 without options, whole, TCP or UDP, bare or in the VXLAN network of most tunnels.
//!
//! Nearly every packet has it, so all its fields lie at fixed places. They are compared with what they ought to be without
//! a branch between them, and one branch at the end decides: a packet that differs anywhere goes the long way through
//! [`parse`](crate::parse), which says what it is. What is accepted here, the long way accepts with the same result.

use crate::flow::FlowKey;
use crate::parse::{Parsed, Part};
use crate::wire::{
    ETH_LEN, TCP_LEN, UDP_LEN, checksum, ecn, ipv4, proto, raw16, raw32, raw64, tcp_flags, vxlan,
};
use fairway_tables::{Mac, Vxlan};

/// Ethernet, IPv4 and as much of the transport header as a TCP header has without options. Frames of less, which a wire
/// does not have but a veth may, go the long way.
const HEAD: usize = ETH_LEN + ipv4::LEN + TCP_LEN;
/// The same inside VXLAN.
const TUNNELLED: usize = vxlan::OVERHEAD + HEAD;
/// Where the EtherType is.
const ETHERTYPE: usize = ETH_LEN - 2;
/// Where the IPv4 header begins.
const IP: usize = ETH_LEN;

/// What the fields of usual packets on one port are compared with, as they are loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usual {
    macs: [u64; 2],
    node_ip: u32,
    vtep_mac: u64,
    vxlan: u64,
    /// UDP ports of tunnels to this node; the first is that of `vxlan`.
    tunnel_ports: [u16; 3],
}

/// The bytes of a 64-bit load that are an Ethernet address.
const MAC: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
/// The bits of a VXLAN header that count: the I flag and the network.
const VXLAN: u64 = u64::from_ne_bytes([0x08, 0, 0, 0, 0xff, 0xff, 0xff, 0]);

fn load(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}

impl Usual {
    /// For a port whose packets are addressed to one of `macs`.
    pub(crate) fn new(macs: [Mac; 2], node_ip: u32, network: &Vxlan, other_udp_ports: [u16; 2]) -> Usual {
        let [_, high, middle, low] = network.vni.to_be_bytes();
        let [second, third] = other_udp_ports;
        Usual {
            macs: macs.map(load),
            node_ip,
            vtep_mac: load(network.vtep_mac),
            vxlan: u64::from_ne_bytes([0x08, 0, 0, 0, high, middle, low, 0]),
            tunnel_ports: [network.udp_port, second, third].map(u16::to_be),
        }
    }

    /// Reads a usual packet received on a port of either kind. `None`: it is none, and `parsed` holds nothing.
    ///
    /// The key is returned beside, for its hash: read back from `parsed`, it would have to wait until what was stored
    /// there in other portions has left the processor's store buffer.
    #[inline(always)]
    pub(crate) fn read(
        &self,
        frame: &[u8],
        is_uplink: bool,
        context: u16,
        parsed: &mut Parsed,
    ) -> Option<FlowKey> {
        let head = frame.first_chunk::<HEAD>()?;
        let ip = Ip::of(head);
        let mac = raw64(head, 0) & MAC;
        if !(((mac == self.macs[0]) | (mac == self.macs[1])) & ip.is_usual(head, frame.len())) {
            return None;
        }
        if is_uplink && ip.destination() == self.node_ip && ip.proto() == proto::UDP {
            let udp_port = raw16(head, IP + ipv4::LEN + 2);
            if self.tunnel_ports.contains(&udp_port) {
                return self.read_tunnelled(frame, ip, udp_port, parsed);
            }
        }
        Some(fill(head, ip, 0, 0, context, parsed))
    }

    /// The same for one in VXLAN, whose outer header was checked.
    #[inline(always)]
    fn read_tunnelled(&self, frame: &[u8], outer: Ip, udp_port: u16, parsed: &mut Parsed) -> Option<FlowKey> {
        let all = frame.first_chunk::<TUNNELLED>()?;
        let head = all.last_chunk::<HEAD>()?;
        let ip = Ip::of(head);
        // What is behind a tunnel's headers is inside the outer packet, not in what pads its frame.
        let len = (ETH_LEN + outer.total_len()).saturating_sub(vxlan::OVERHEAD);
        let ok = (udp_port == self.tunnel_ports[0])
            & (udp_port != 0)
            & !ecn::may_change_inner(outer.tos())
            & (raw64(all, vxlan::OVERHEAD - vxlan::LEN) & VXLAN == self.vxlan)
            & (raw64(head, 0) & MAC == self.vtep_mac)
            & ip.is_usual(head, len);
        ok.then(|| fill(head, ip, vxlan::OVERHEAD, outer.source(), FlowKey::TUNNEL, parsed))
    }
}

/// An IPv4 header without options as three loads, first byte lowest.
#[derive(Clone, Copy)]
struct Ip {
    /// Version to total length.
    first: u32,
    /// Identification to checksum.
    middle: u64,
    addresses: u64,
}

impl Ip {
    #[inline(always)]
    fn of(head: &[u8; HEAD]) -> Ip {
        Ip {
            first: (raw64(head, ETHERTYPE).to_le() >> 16) as u32,
            middle: raw64(head, IP + ipv4::IDENTIFICATION).to_le(),
            addresses: raw64(head, IP + ipv4::SRC).to_le(),
        }
    }

    /// Whether what begins with `head` is a usual packet that ends within `len` bytes.
    #[inline(always)]
    fn is_usual(self, head: &[u8; HEAD], len: usize) -> bool {
        // Of TCP or else UDP: protocol, and the least that its packets have.
        const OF_TCP: usize = (ipv4::LEN + TCP_LEN) << 8 | proto::TCP as usize;
        const OF_UDP: usize = (ipv4::LEN + UDP_LEN) << 8 | proto::UDP as usize;
        let expected = if self.proto() == proto::TCP { OF_TCP } else { OF_UDP };
        const IPV4: u64 = u64::from_ne_bytes([0x08, 0x00, 0x45, 0, 0, 0, 0, 0]);
        const MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0, 0, 0, 0, 0]);
        (raw64(head, ETHERTYPE) & MASK == IPV4)
            & (self.middle & Ip::FRAGMENT == 0)
            & (self.proto() == expected as u8)
            & (self.total_len() >= expected >> 8)
            & (self.total_len() <= len.saturating_sub(ETH_LEN))
            & self.is_sound()
    }

    /// Offset and "more fragments".
    const FRAGMENT: u64 = (0xff3f) << 16;

    /// Whether the checksum is right. A one's-complement sum of 16-bit words is the same as one of 64-bit words modulo
    /// 0xffff, whatever their byte order (RFC 1071 section 2), and right if it is a multiple of that; it cannot be plus
    /// zero, since the version is not.
    #[inline(always)]
    fn is_sound(self) -> bool {
        let (sum, carry) = self.middle.overflowing_add(self.addresses);
        let (sum, carry) = sum.overflowing_add(u64::from(self.first) + u64::from(carry));
        checksum::is_zero(sum + u64::from(carry))
    }

    #[inline(always)]
    fn total_len(self) -> usize {
        usize::from(((self.first >> 16) as u16).swap_bytes())
    }

    #[inline(always)]
    fn tos(self) -> u8 {
        (self.first >> 8) as u8
    }

    #[inline(always)]
    fn ttl(self) -> u8 {
        (self.middle >> 32) as u8
    }

    #[inline(always)]
    fn proto(self) -> u8 {
        (self.middle >> 40) as u8
    }

    /// Raw source address.
    #[inline(always)]
    fn source(self) -> u32 {
        u32::from_le(self.addresses as u32)
    }

    /// Raw destination address.
    #[inline(always)]
    fn destination(self) -> u32 {
        u32::from_le((self.addresses >> 32) as u32)
    }
}

#[inline(always)]
fn fill(head: &[u8; HEAD], ip: Ip, l2: usize, outer: u32, context: u16, parsed: &mut Parsed) -> FlowKey {
    const L4: usize = IP + ipv4::LEN;
    const _: () = assert!(proto::TCP & 1 == 0 && proto::UDP & 1 == 1);
    const FLAGS: u8 = tcp_flags::FIN | tcp_flags::SYN | tcp_flags::RST | tcp_flags::ACK;
    let key = FlowKey::new(ip.source(), ip.destination(), raw32(head, L4), ip.proto(), context, outer);
    parsed.key = key;
    parsed.l2 = l2 as u16;
    parsed.ip_header_len = ipv4::LEN as u16;
    parsed.ip_len = ip.total_len() as u16;
    // It is one or the other, and TCP's number is even.
    parsed.tcp_flags = head[L4 + 13] & FLAGS & (ip.proto() & 1).wrapping_sub(1);
    parsed.ttl = ip.ttl();
    parsed.part = Part::Whole;
    key
}

#[cfg(test)]
mod tests {
    use crate::parse::{Class, Ingress, Parsed, parse_unusual, parse_usual};
    use crate::testkit::{World, WorldConfig, addr, fuzz, packet};
    use crate::wire::{ETH_LEN, ipv4, put_raw16, tcp_flags, vxlan};
    use proptest::prelude::*;
    use std::sync::OnceLock;

    fn ingresses() -> &'static [Ingress] {
        static INGRESSES: OnceLock<Vec<Ingress>> = OnceLock::new();
        INGRESSES.get_or_init(|| {
            let world = World::new(WorldConfig::default());
            let ingresses = fuzz::ingresses(&world);
            world.finish();
            ingresses
        })
    }

    fn read(frame: &[u8], ingress: &Ingress) -> Option<Parsed> {
        let mut parsed = Parsed::default();
        parse_usual(frame, ingress, &mut parsed).map(|_| parsed)
    }

    fn packets() -> Vec<Vec<u8>> {
        let data = b"as much as a TCP header takes";
        let inner = addr::from_remote(addr::remote_pod(0, 7), addr::pod(0));
        vec![
            addr::from_pod(0, addr::pod(1)).udp(1, 2, data),
            addr::from_pod(0, addr::pod(1)).tcp(1, 2, tcp_flags::SYN, data),
            addr::directly_from(0, addr::remote_pod(0, 7), addr::pod(0)).udp(1, 2, data),
            addr::directly_from(0, addr::remote_pod(0, 7), addr::NODE).tcp(1, 2, tcp_flags::FIN, data),
            packet::encapsulate(&addr::encap_from(0), &inner.udp(1, 2, data), 50_000),
            packet::encapsulate(&addr::encap_from(0), &inner.tcp(1, 2, tcp_flags::RST, data), 50_000),
        ]
    }

    #[test]
    fn what_most_packets_look_like_goes_the_short_way() {
        let ingresses = ingresses();
        for (index, frame) in packets().iter().enumerate() {
            assert!(
                ingresses.iter().any(|ingress| read(frame, ingress).is_some()),
                "packet {index} goes the long way"
            );
        }
    }

    /// Makes the checksum of the IPv4 header at `at` right again, so that other fields' checks decide.
    fn mend(frame: &mut [u8], at: usize) {
        if let Some(header) = frame.get_mut(at..at + ipv4::LEN) {
            header[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].fill(0);
            let sum = crate::wire::checksum::checksum(header);
            put_raw16(header, ipv4::CHECKSUM, sum);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_short_way_and_the_long_agree(
            which in 0usize..6,
            changes in proptest::collection::vec((0usize..110, any::<u8>(), any::<bool>()), 0..4),
            cut in proptest::option::of(0usize..140),
            mended: bool,
        ) {
            let mut frame = packets().swap_remove(which);
            for (at, value, flip) in changes {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = if flip { *byte ^ (1 << (value & 7)) } else { value };
                }
            }
            if mended {
                mend(&mut frame, ETH_LEN);
                mend(&mut frame, vxlan::OVERHEAD + ETH_LEN);
            }
            frame.truncate(cut.unwrap_or(frame.len()));
            for ingress in ingresses() {
                if let Some(usual) = read(&frame, ingress) {
                    let mut unusual = Parsed::default();
                    prop_assert_eq!(parse_unusual(&frame, ingress, &mut unusual), Class::Flow);
                    prop_assert_eq!(unusual, usual);
                }
            }
        }
    }
}
