//! ICMP for IPv4 (RFC 792).

use super::{be16, checksum, ipv4, proto, put_raw16, put_raw32, raw16, raw32, sctp};

/// Type of an echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Type of "destination unreachable".
pub const UNREACHABLE: u8 = 3;
/// Type of an echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Type of "time exceeded".
pub const TIME_EXCEEDED: u8 = 11;
/// Type of "parameter problem".
pub const PARAMETER_PROBLEM: u8 = 12;
/// Codes of "destination unreachable" (RFC 792, RFC 1191).
pub mod unreachable {
    /// No route to the network.
    pub const NET: u8 = 0;
    /// The host is not there.
    pub const HOST: u8 = 1;
    /// Nobody listens on the port.
    pub const PORT: u8 = 3;
    /// Too large, and not to be fragmented; the next hop's MTU follows.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
}
/// Length of the fixed header.
pub const LEN: usize = 8;

/// Whether an ICMP message of this type carries an identifier that names a conversation.
#[inline]
pub fn is_echo(kind: u8) -> bool {
    kind == ECHO_REQUEST || kind == ECHO_REPLY
}

/// Whether an ICMP message of this type quotes the packet that it speaks of.
#[inline]
pub fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// Writes the eight bytes before the quoted packet of an error message, and the checksum over all of it.
/// `mtu` is the next hop's where the message speaks of it, else zero (RFC 1191 section 4).
pub fn write_error(message: &mut [u8], kind: u8, code: u8, mtu: u16) {
    message[..LEN].fill(0);
    message[0] = kind;
    message[1] = code;
    message[6..8].copy_from_slice(&mtu.to_be_bytes());
    finish(message);
}

/// Writes the checksum over a whole message.
pub fn finish(message: &mut [u8]) {
    put_raw16(message, 2, 0);
    let sum = checksum::checksum(message);
    put_raw16(message, 2, sum);
}

/// The packet that an error message quotes, as far as it tells which flow it was of. Fields are raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Length of its IP header in bytes.
    pub header_len: usize,
    /// Source address.
    pub src: u32,
    /// Destination address.
    pub dst: u32,
    /// IP protocol number.
    pub proto: u8,
    /// Source and destination port; of an echo message its identifier twice, of other protocols zero.
    pub ports: u32,
}

impl Quoted {
    /// Reads the quoted packet: at least its header and eight bytes more (RFC 792). `None` if that is not there, or if
    /// it is a fragment that holds no ports.
    pub fn parse(quoted: &[u8]) -> Option<Quoted> {
        let header_len = usize::from(quoted.first()? & 0xf) * 4;
        if quoted[0] >> 4 != 4 || header_len < ipv4::LEN || quoted.len() < header_len + 8 {
            return None;
        }
        if be16(quoted, 6) & 0x1fff != 0 {
            return None;
        }
        let proto = quoted[9];
        let l4 = &quoted[header_len..];
        let ports = match proto {
            proto::TCP | proto::UDP | proto::SCTP => raw32(l4, 0),
            proto::ICMP if is_echo(l4[0]) => u32::from_ne_bytes([l4[4], l4[5], l4[4], l4[5]]),
            _ => 0,
        };
        let (src, dst) = (raw32(quoted, ipv4::SRC), raw32(quoted, ipv4::DST));
        Some(Quoted { header_len, src, dst, proto, ports })
    }

    /// Rewrites the quoted packet, which `self` was read from, to other addresses and ports; its checksums follow as
    /// far as they are quoted.
    pub fn rewrite(&self, quoted: &mut [u8], src: u32, dst: u32, ports: u32) {
        let addresses = checksum::delta32(self.src, src) + checksum::delta32(self.dst, dst);
        put_raw32(quoted, ipv4::SRC, src);
        put_raw32(quoted, ipv4::DST, dst);
        update(quoted, ipv4::CHECKSUM, checksum::fold(addresses));
        let delta = checksum::fold(addresses + checksum::delta32(self.ports, ports));
        let total_len = be16(quoted, 2);
        let l4 = &mut quoted[self.header_len..];
        match self.proto {
            proto::TCP => {
                put_raw32(l4, 0, ports);
                if l4.len() >= 18 {
                    update(l4, 16, delta);
                }
            }
            proto::UDP => {
                put_raw32(l4, 0, ports);
                if raw16(l4, 6) != 0 {
                    update(l4, 6, delta);
                }
            }
            proto::SCTP => {
                let whole_len = usize::from(total_len).saturating_sub(self.header_len);
                sctp::rewrite_quoted(l4, whole_len, self.ports, ports);
            }
            proto::ICMP if is_echo(l4[0]) => {
                rewrite_echo(l4, ports, checksum::fold(checksum::delta_echo(self.ports, ports)))
            }
            _ => {}
        }
    }
}

/// Writes an echo message's identifier, given as raw ports; its checksum follows by `delta`.
#[inline(always)]
pub fn rewrite_echo(message: &mut [u8], ports: u32, delta: u16) {
    put_raw16(message, 4, raw16(&ports.to_ne_bytes(), 0));
    update(message, 2, delta);
}

#[inline(always)]
fn update(bytes: &mut [u8], at: usize, delta: u16) {
    let sum = checksum::update(raw16(bytes, at), delta);
    put_raw16(bytes, at, sum);
}

/// Whether the message's checksum, over all of its bytes, is right.
pub fn checksum_ok(message: &[u8]) -> bool {
    checksum::fold(checksum::sum(message)) == 0xffff
}

/// Turns an echo request (at least [`LEN`] bytes) into its reply.
pub fn make_echo_reply(message: &mut [u8]) {
    let old = u16::from_ne_bytes([message[0], message[1]]);
    message[0] = ECHO_REPLY;
    let new = u16::from_ne_bytes([message[0], message[1]]);
    let delta = checksum::fold(u64::from(!old) + u64::from(new));
    let field = u16::from_ne_bytes([message[2], message[3]]);
    message[2..4].copy_from_slice(&checksum::update(field, delta).to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_keeps_data_and_a_right_checksum() {
        let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1, b'h', b'i', b'!'];
        let sum = checksum::checksum(&message);
        message[2..4].copy_from_slice(&sum.to_ne_bytes());
        assert!(checksum_ok(&message));
        make_echo_reply(&mut message);
        assert_eq!(message[0], ECHO_REPLY);
        assert_eq!(message[4..], [0x12, 0x34, 0, 1, b'h', b'i', b'!']);
        assert!(checksum_ok(&message));
    }
}
