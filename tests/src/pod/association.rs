//! SCTP as far as translation sees it, over raw sockets, since a kernel may have none of its own: a client's INIT (RFC
//! 9260 section 3.3.2), and its answer, which carries what the witness says. Nothing follows.

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use tokio::net::UdpSocket;

/// SCTP's protocol number.
const SCTP: i32 = 132;
/// Ports, verification tag and checksum.
const HEADER_LEN: usize = 12;
/// Type, flags and length.
const CHUNK_LEN: usize = 4;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const IPV4_LEN: usize = 20;
/// Longest packet with its IPv4 header.
pub(crate) const PACKET_LEN: usize = 512;

/// CRC-32C, bit by bit (RFC 9260 appendix A).
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(byte), step))
}

/// A packet of one chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    kind: u8,
    pub(crate) data: Vec<u8>,
}

impl Packet {
    pub(crate) fn init(sport: u16, dport: u16, data: &[u8]) -> Packet {
        Packet { sport, dport, kind: INIT, data: data.to_vec() }
    }

    /// The answer to this one.
    pub(crate) fn answer(&self, data: Vec<u8>) -> Packet {
        Packet { sport: self.dport, dport: self.sport, kind: INIT_ACK, data }
    }

    pub(crate) fn is_init(&self) -> bool {
        self.kind == INIT
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let chunk_len = (CHUNK_LEN + self.data.len()) as u16;
        let mut out = [&self.sport.to_be_bytes()[..], &self.dport.to_be_bytes(), &[0; 8]].concat();
        out.extend([self.kind, 0]);
        out.extend(chunk_len.to_be_bytes());
        out.extend(&self.data);
        let sum = crc32c(out.iter().copied());
        out[8..HEADER_LEN].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads a packet; `None` if it is none, or its checksum is wrong.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Packet> {
        let (header, chunk) = bytes.split_at_checked(HEADER_LEN)?;
        let (head, rest) = chunk.split_at_checked(CHUNK_LEN)?;
        let zeroed =
            bytes.iter().enumerate().map(|(at, byte)| if (8..HEADER_LEN).contains(&at) { 0 } else { *byte });
        let at = |n: usize| u16::from_be_bytes([header[n], header[n + 1]]);
        let len = usize::from(u16::from_be_bytes([head[2], head[3]])).checked_sub(CHUNK_LEN)?;
        if header[8..] != crc32c(zeroed).to_le_bytes() {
            return None;
        }
        Some(Packet { sport: at(0), dport: at(2), kind: head[0], data: rest.get(..len)?.to_vec() })
    }

    /// Reads what a raw socket of the family receives: over IPv4 with the IP header.
    pub(crate) fn received(is_v4: bool, bytes: &[u8]) -> Option<Packet> {
        Packet::parse(if is_v4 { bytes.get(IPV4_LEN..)? } else { bytes })
    }
}

/// A raw socket for SCTP with this address of its own. As a type it is one for datagrams, which it is: it has addresses
/// where that has addresses and ports.
pub(crate) fn open(local: IpAddr) -> io::Result<UdpSocket> {
    let domain = if local.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::from(libc::SOCK_RAW), Some(Protocol::from(SCTP)))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address(local).into())?;
    UdpSocket::from_std(socket.into())
}

/// An address as raw sockets take it, without port.
pub(crate) fn address(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_crc32c() {
        // RFC 3720 appendix B.4: 32 bytes of zeroes, of ones, counted up.
        assert_eq!(crc32c([0; 32].into_iter()), 0x8a91_36aa);
        assert_eq!(crc32c([0xff; 32].into_iter()), 0x62a8_ab43);
        assert_eq!(crc32c(0..32), 0x46dd_794e);
    }

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_not() {
        let packet = Packet::init(5000, 80, b"who answers?");
        let mut bytes = packet.bytes();
        assert_eq!(Packet::parse(&bytes), Some(packet));
        for cut in 0..bytes.len() {
            assert_eq!(Packet::parse(&bytes[..cut]), None, "{cut} bytes");
        }
        bytes[1] ^= 1;
        assert_eq!(Packet::parse(&bytes), None, "another port");
    }
}
