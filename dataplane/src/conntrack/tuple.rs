//! What identifies one direction of a connection.

#[cfg(not(loom))]
use crate::flow::{FlowKey, FlowKey6};
use crate::hash::fold_multiply;
#[cfg(not(loom))]
use crate::wire::raw_to_ports;
use fairway_tables::Ip;
use std::fmt;

/// Addresses, ports and protocol of one direction. ICMP echo has its identifier as both ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// IP protocol number.
    pub proto: u8,
}

impl Tuple {
    /// The tuple of packets with this key.
    #[cfg(not(loom))]
    pub fn of(key: &FlowKey) -> Tuple {
        let (sport, dport) = raw_to_ports(key.ports);
        Tuple {
            src: Ip::v4(key.src.to_ne_bytes()),
            dst: Ip::v4(key.dst.to_ne_bytes()),
            sport,
            dport,
            proto: key.proto(),
        }
    }

    /// The tuple of IPv6 packets with this key.
    #[cfg(not(loom))]
    pub fn of6(key: &FlowKey6) -> Tuple {
        let (sport, dport) = raw_to_ports(key.ports);
        Tuple { src: Ip(key.src), dst: Ip(key.dst), sport, dport, proto: key.proto() }
    }

    /// The tuple of packets that answer this one's, untranslated.
    pub fn reversed(&self) -> Tuple {
        Tuple { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, proto: self.proto }
    }

    /// What chooses among several next hops: the same in every process, so that a restart moves no flow.
    pub(crate) fn path_hash(&self) -> u64 {
        self.to_words().chunks_exact(2).fold(0x9e37_79b9_7f4a_7c15, |hash, pair| {
            let word = u64::from(pair[0]) << 32 | u64::from(pair[1]);
            fold_multiply(hash ^ word, 0xd6e8_feb8_6659_fd93)
        })
    }

    pub(super) fn to_words(self) -> [u32; 10] {
        let mut words = [0; 10];
        for (i, part) in self.src.0.chunks_exact(4).chain(self.dst.0.chunks_exact(4)).enumerate() {
            words[i] = u32::from_ne_bytes([part[0], part[1], part[2], part[3]]);
        }
        words[8] = u32::from(self.sport) << 16 | u32::from(self.dport);
        words[9] = u32::from(self.proto);
        words
    }

    pub(super) fn from_words(words: [u32; 10]) -> Tuple {
        let ip = |at: usize| {
            let mut bytes = [0; 16];
            for i in 0..4 {
                bytes[4 * i..4 * i + 4].copy_from_slice(&words[at + i].to_ne_bytes());
            }
            Ip(bytes)
        };
        Tuple {
            src: ip(0),
            dst: ip(4),
            sport: (words[8] >> 16) as u16,
            dport: words[8] as u16,
            proto: words[9] as u8,
        }
    }

    /// A well-mixed hash.
    pub(crate) fn hash(&self, seed: u64) -> u64 {
        let words = self.to_words();
        let mut hash = seed;
        for pair in words.chunks_exact(2) {
            let word = u64::from(pair[0]) | u64::from(pair[1]) << 32;
            hash = fold_multiply(hash ^ word, 0x9e37_79b9_7f4a_7c15) ^ seed;
        }
        hash
    }
}

impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}:{} > {}:{}", self.proto, self.src, self.sport, self.dst, self.dport)
    }
}

/// Which way a packet of a connection goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// As the first packet.
    Original,
    /// Back.
    Reply,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_hold_a_whole_tuple(src: [u8; 16], dst: [u8; 16], sport: u16, dport: u16, proto: u8) {
            let tuple = Tuple { src: Ip(src), dst: Ip(dst), sport, dport, proto };
            prop_assert_eq!(Tuple::from_words(tuple.to_words()), tuple);
            prop_assert_eq!(tuple.reversed().reversed(), tuple);
        }
    }
}
