//! What the engine answers itself, in place: ARP requests and neighbour solicitations to the gateway, and echo requests
//! to it.

use crate::parse::{Ingress, Parsed, Part};
use crate::parse6::Parsed6;
use crate::wire::{ETH_LEN, arp, checksum, icmp, icmpv6, ipv4, ipv6, proto, put_raw16, put_raw32};
use fairway_pmd::Frame;
use fairway_tables::{DropReason, Ip, PortKind, Settings};

/// The frame now holds an answer, to be sent where the question came from.
pub struct Answer;

/// Answers for any address asked, as the kernel's `proxy_arp` does: pods and the host's kernel see one
/// gateway behind every address. A station that asks for its own address (RFC 5227 probe or announcement)
/// gets no answer.
pub fn answer_arp(frame: &mut Frame, ingress: &Ingress) -> Result<Answer, DropReason> {
    let Some(request) = arp::parse_request(frame.bytes()) else { return Err(DropReason::ArpIgnored) };
    let probe = request.sender_ip == [0; 4] || request.sender_ip == request.target_ip;
    if probe || ingress.kind == PortKind::Uplink || request.sender_mac.is_group() {
        return Err(DropReason::ArpIgnored);
    }
    frame.set_len(ETH_LEN + arp::LEN);
    arp::write_reply(frame.bytes_mut(), &request, ingress.gateway_mac);
    Ok(Answer)
}

/// Answers an echo request to the gateway's address (RFC 1122 section 3.2.2.6); anything else sent to it is
/// dropped.
pub fn answer_echo(frame: &mut Frame, parsed: &Parsed, ingress: &Ingress) -> Result<Answer, DropReason> {
    let header_len = usize::from(parsed.ip_header_len);
    if parsed.key.proto() != proto::ICMP || parsed.part != Part::Whole || ingress.kind == PortKind::Uplink {
        return Err(DropReason::NotForUs);
    }
    frame.set_len(ETH_LEN + usize::from(parsed.ip_len));
    let packet = &mut frame.bytes_mut()[ETH_LEN..];
    let (ip, message) = packet.split_at_mut(header_len);
    if message[0] != icmp::ECHO_REQUEST {
        return Err(DropReason::NotForUs);
    }
    if !icmp::checksum_ok(message) {
        return Err(DropReason::BadIcmp);
    }
    icmp::make_echo_reply(message);
    put_raw32(ip, ipv4::SRC, parsed.key.dst);
    put_raw32(ip, ipv4::DST, parsed.key.src);
    ip[8] = 64;
    put_raw16(ip, ipv4::CHECKSUM, 0);
    let sum = checksum::checksum(ip);
    put_raw16(ip, ipv4::CHECKSUM, sum);
    turn_around(frame, ingress);
    Ok(Answer)
}

/// Answers IPv6 packets of the link itself: neighbour solicitations for any address (as [`answer_arp`] does), and echo
/// requests to the gateway's link-local address. The rest (router solicitations, multicast listeners, duplicate address
/// detection) asks nothing of a gateway that everybody is told of.
pub fn answer_link(
    frame: &mut Frame,
    parsed: &Parsed6,
    ingress: &Ingress,
    settings: &Settings,
) -> Result<Answer, DropReason> {
    if ingress.kind == PortKind::Uplink || parsed.l2 != 0 {
        return Err(DropReason::Martian);
    }
    if parsed.key.proto() != proto::ICMPV6 || settings.router_ip6 == Ip::UNSPECIFIED {
        return Err(DropReason::LinkIgnored);
    }
    frame.set_len(ETH_LEN + usize::from(parsed.ip_len));
    let (src, dst) = (parsed.key.src, parsed.key.dst);
    let message = &mut frame.bytes_mut()[ETH_LEN + usize::from(parsed.l4)..];
    match message[0] {
        // A hop limit of 255 proves that no router has passed it on (RFC 4861 section 7.1.1).
        icmpv6::NEIGHBOUR_SOLICITATION if parsed.hop_limit == 255 => {
            let target = icmpv6::solicited(&src, &dst, message).ok_or(DropReason::BadIcmp)?;
            if Ip(src) == Ip::UNSPECIFIED || ipv6::is_multicast(&src) || src == target {
                return Err(DropReason::LinkIgnored);
            }
            advertise(frame, &target, &src, ingress)
        }
        icmpv6::ECHO_REQUEST if Ip(dst) == settings.gateway_ip6 && !ipv6::is_multicast(&src) => {
            if !icmpv6::checksum_ok(&src, &dst, message) {
                return Err(DropReason::BadIcmp);
            }
            icmpv6::make_echo_reply(&dst, &src, message);
            let ip = &mut frame.bytes_mut()[ETH_LEN..];
            ip[ipv6::SRC..ipv6::DST].copy_from_slice(&dst);
            ip[ipv6::DST..ipv6::LEN].copy_from_slice(&src);
            ip[ipv6::HOP_LIMIT] = 64;
            turn_around(frame, ingress);
            Ok(Answer)
        }
        _ => Err(DropReason::LinkIgnored),
    }
}

/// The frame becomes "`target` is at the gateway's Ethernet address", sent to the asker.
fn advertise(
    frame: &mut Frame,
    target: &[u8; 16],
    asker: &[u8; 16],
    ingress: &Ingress,
) -> Result<Answer, DropReason> {
    if !frame.set_len(ETH_LEN + ipv6::LEN + icmpv6::ADVERTISEMENT_LEN) {
        return Err(DropReason::LinkIgnored);
    }
    turn_around(frame, ingress);
    let packet = &mut frame.bytes_mut()[ETH_LEN..];
    if let Some((ip, rest)) = packet.split_first_chunk_mut::<{ ipv6::LEN }>()
        && let Some(message) = rest.first_chunk_mut()
    {
        let payload_len = icmpv6::ADVERTISEMENT_LEN as u16;
        let repr =
            ipv6::Repr { src: *target, dst: *asker, proto: proto::ICMPV6, hop_limit: 255, payload_len };
        repr.emit(ip);
        icmpv6::write_advertisement(target, asker, ingress.gateway_mac, message);
    }
    Ok(Answer)
}

/// Addresses the frame to its sender, from the gateway.
fn turn_around(frame: &mut Frame, ingress: &Ingress) {
    let ethernet = &mut frame.bytes_mut()[..ETH_LEN];
    ethernet.copy_within(6..12, 0);
    ethernet[6..12].copy_from_slice(&ingress.gateway_mac.0);
}
