//! ICMPv6 (RFC 4443) and what is needed of neighbour discovery (RFC 4861).

use super::{be16, checksum, icmp, icmp::Quoted, ipv6, proto, put_raw16, raw16, raw32, sctp};
use fairway_tables::Mac;

/// Length of the fixed header.
pub const LEN: usize = 8;
/// Type of "destination unreachable".
pub const UNREACHABLE: u8 = 1;
/// Type of "packet too big".
pub const PACKET_TOO_BIG: u8 = 2;
/// Type of "time exceeded".
pub const TIME_EXCEEDED: u8 = 3;
/// Type of an echo request.
pub const ECHO_REQUEST: u8 = 128;
/// Type of an echo reply.
pub const ECHO_REPLY: u8 = 129;
/// Type of a neighbour solicitation.
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// Type of a neighbour advertisement.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Codes of "destination unreachable".
pub mod unreachable {
    /// No route.
    pub const NO_ROUTE: u8 = 0;
    /// The address is not there.
    pub const ADDRESS: u8 = 3;
    /// Nobody listens on the port.
    pub const PORT: u8 = 4;
}

/// Whether a message of this type carries an identifier that names a conversation.
#[inline]
pub fn is_echo(kind: u8) -> bool {
    kind == ECHO_REQUEST || kind == ECHO_REPLY
}

/// Whether a message of this type quotes the packet that it speaks of.
#[inline]
pub fn is_error(kind: u8) -> bool {
    (UNREACHABLE..=4).contains(&kind)
}

/// Whether a message is about the link itself: multicast listeners and neighbour discovery (130–137, and 143).
#[inline]
pub fn is_of_the_link(kind: u8) -> bool {
    (130..=137).contains(&kind) || kind == 143
}

/// Sum of pseudo-header and message (RFC 8200 section 8.1).
fn sum(src: &[u8; 16], dst: &[u8; 16], message: &[u8]) -> u64 {
    checksum::pseudo_header_v6(src, dst, proto::ICMPV6, message.len() as u16) + checksum::sum(message)
}

/// Whether the message's checksum is right.
pub fn checksum_ok(src: &[u8; 16], dst: &[u8; 16], message: &[u8]) -> bool {
    checksum::fold(sum(src, dst, message)) == 0xffff
}

/// Writes the checksum over a whole message.
pub fn finish(src: &[u8; 16], dst: &[u8; 16], message: &mut [u8]) {
    put_raw16(message, 2, 0);
    let sum = !checksum::fold(sum(src, dst, message));
    put_raw16(message, 2, sum);
}

/// Writes the eight bytes before the quoted packet of an error message, and the checksum. `mtu` is the next
/// hop's where the message speaks of it, else zero.
pub fn write_error(src: &[u8; 16], dst: &[u8; 16], message: &mut [u8], kind: u8, code: u8, mtu: u16) {
    message[..LEN].fill(0);
    message[0] = kind;
    message[1] = code;
    message[4..8].copy_from_slice(&u32::from(mtu).to_be_bytes());
    finish(src, dst, message);
}

/// Turns an echo request into its reply.
pub fn make_echo_reply(src: &[u8; 16], dst: &[u8; 16], message: &mut [u8]) {
    message[0] = ECHO_REPLY;
    finish(src, dst, message);
}

/// Length of a solicitation or advertisement without options.
pub const NEIGHBOUR_LEN: usize = 24;
/// Length of an advertisement with the option that names an Ethernet address.
pub const ADVERTISEMENT_LEN: usize = NEIGHBOUR_LEN + 8;

/// The address that a neighbour solicitation asks for; `None` if the message is none, or not valid (RFC 4861 section
/// 7.1.1; the caller has checked the hop limit of 255).
pub fn solicited(src: &[u8; 16], dst: &[u8; 16], message: &[u8]) -> Option<[u8; 16]> {
    let target: [u8; 16] = message.get(8..NEIGHBOUR_LEN)?.try_into().ok()?;
    let valid = message[0] == NEIGHBOUR_SOLICITATION
        && message[1] == 0
        && checksum_ok(src, dst, message)
        && !ipv6::is_multicast(&target);
    valid.then_some(target)
}

/// Writes an advertisement "`target` is at `mac`", from `target` to `dst`: solicited, from a router, and not to override
/// what the asker knows, as RFC 4861 section 7.2.8 asks of proxies.
pub fn write_advertisement(target: &[u8; 16], dst: &[u8; 16], mac: Mac, out: &mut [u8; ADVERTISEMENT_LEN]) {
    out.fill(0);
    out[0] = NEIGHBOUR_ADVERTISEMENT;
    // R and S.
    out[4] = 0xc0;
    out[8..24].copy_from_slice(target);
    // Target Link-layer Address, one unit of eight bytes.
    out[24..26].copy_from_slice(&[2, 1]);
    out[26..32].copy_from_slice(&mac.0);
    finish(target, dst, out);
}

/// Reads the packet that an error message quotes: its headers and eight bytes more. `None` if that is not there, or if
/// it is a fragment that holds no ports. Extension headers are not gone through.
pub fn quoted(quoted: &[u8]) -> Option<([u8; 16], [u8; 16], Quoted)> {
    let header = quoted.first_chunk::<{ ipv6::LEN }>()?;
    if header[0] >> 4 != 6 || quoted.len() < ipv6::LEN + 8 {
        return None;
    }
    let l4 = &quoted[ipv6::LEN..];
    let proto = header[6];
    let ports = match proto {
        proto::TCP | proto::UDP | proto::SCTP => raw32(l4, 0),
        proto::ICMPV6 if is_echo(l4[0]) => u32::from_ne_bytes([l4[4], l4[5], l4[4], l4[5]]),
        _ => 0,
    };
    let mut addresses = [[0; 16]; 2];
    addresses[0].copy_from_slice(&header[ipv6::SRC..ipv6::DST]);
    addresses[1].copy_from_slice(&header[ipv6::DST..]);
    let [src, dst] = addresses;
    Some((src, dst, Quoted { header_len: ipv6::LEN, src: 0, dst: 0, proto, ports }))
}

/// Rewrites a quoted packet, which [`quoted`] has read, to other addresses and ports; its checksum follows as far as it
/// is quoted.
pub fn rewrite_quoted(packet: &mut [u8], was: &Quoted, src: &[u8; 16], dst: &[u8; 16], ports: u32) {
    let addresses = checksum::delta(&packet[ipv6::SRC..ipv6::LEN], &[*src, *dst].concat());
    packet[ipv6::SRC..ipv6::DST].copy_from_slice(src);
    packet[ipv6::DST..ipv6::LEN].copy_from_slice(dst);
    let whole_len = usize::from(be16(packet, 4));
    let l4 = &mut packet[ipv6::LEN..];
    let at = match was.proto {
        proto::SCTP => return sctp::rewrite_quoted(l4, whole_len, was.ports, ports),
        proto::TCP => 16,
        proto::UDP => 6,
        proto::ICMPV6 if is_echo(l4[0]) => {
            let delta = checksum::fold(addresses + checksum::delta_echo(was.ports, ports));
            return icmp::rewrite_echo(l4, ports, delta);
        }
        _ => return,
    };
    super::put_raw32(l4, 0, ports);
    if l4.len() >= at + 2 {
        let delta = checksum::fold(addresses + checksum::delta32(was.ports, ports));
        let sum = checksum::update(raw16(l4, at), delta);
        put_raw16(l4, at, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const B: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2];
    const TARGET: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

    fn solicitation() -> Vec<u8> {
        let mut message = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(TARGET);
        message.extend([1, 1, 2, 0, 0, 0, 0, 9]);
        finish(&A, &B, &mut message);
        message
    }

    #[test]
    fn a_solicitation_is_read_if_it_is_valid() {
        let good = solicitation();
        assert_eq!(solicited(&A, &B, &good), Some(TARGET));
        assert_eq!(solicited(&A, &TARGET, &good), None, "the checksum covers the addresses");
        assert_eq!(solicited(&A, &B, &good[..23]), None);
        let mut other = good.clone();
        other[0] = NEIGHBOUR_ADVERTISEMENT;
        finish(&A, &B, &mut other);
        assert_eq!(solicited(&A, &B, &other), None);
        let mut group = good;
        group[8] = 0xff;
        finish(&A, &B, &mut group);
        assert_eq!(solicited(&A, &B, &group), None);
    }

    #[test]
    fn an_advertisement_has_these_bytes() {
        let mut out = [0xa5; ADVERTISEMENT_LEN];
        write_advertisement(&TARGET, &A, Mac([0xee; 6]), &mut out);
        assert_eq!((out[0], out[1], &out[4..8]), (136, 0, &[0xc0, 0, 0, 0][..]));
        assert_eq!(out[8..24], TARGET);
        assert_eq!(out[24..], [2, 1, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee]);
        assert!(checksum_ok(&TARGET, &A, &out));
    }
}
