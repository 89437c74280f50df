//! What the engine answers itself, in place: ARP requests to the gateway, and echo requests to it.

use crate::parse::{Ingress, Parsed};
use crate::wire::{ETH_LEN, arp, checksum, icmp, ipv4, proto, put_raw16, put_raw32};
use fairway_pmd::Frame;
use fairway_tables::{DropReason, PortKind};

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
    if parsed.key.proto() != proto::ICMP || parsed.l2 != 0 {
        return Err(DropReason::NotForUs);
    }
    frame.set_len(ETH_LEN + usize::from(parsed.ip_len));
    let (ethernet, packet) = frame.bytes_mut().split_at_mut(ETH_LEN);
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
    ethernet.copy_within(6..12, 0);
    ethernet[6..12].copy_from_slice(&ingress.gateway_mac.0);
    Ok(Answer)
}
