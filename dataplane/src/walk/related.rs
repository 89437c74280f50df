//! ICMP errors about translated packets (RFC 5508 section 4, RFC 3022 section 4.3): the sender must find in the
//! quotation the packet that it sent, not the one that the translation made of it.

use crate::conntrack::{Direction, Found, Tuple};
use crate::flow::{FlowKey, FlowKey6};
use crate::parse::Parsed;
use crate::parse6::Parsed6;
use crate::state::WorkerState;
use crate::wire::{ETH_LEN, checksum, icmp, icmpv6, ipv4, ipv6, ports_to_raw, proto, put_raw16, put_raw32};
use fairway_pmd::Frame;
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, Ip};

/// The tuple of the packets that those answered which an ICMP error speaks of.
pub(crate) fn about(frame: &Frame, parsed: &Parsed) -> Option<Tuple> {
    let start = usize::from(parsed.l2) + ETH_LEN;
    let packet = frame.bytes().get(start..start + usize::from(parsed.ip_len))?;
    let message = packet.get(usize::from(parsed.ip_header_len)..)?;
    if parsed.key.proto() != proto::ICMP || message.len() < icmp::LEN || !icmp::is_error(message[0]) {
        return None;
    }
    let quoted = icmp::Quoted::parse(&message[icmp::LEN..])?;
    Some(Tuple::of(&FlowKey::new(quoted.src, quoted.dst, quoted.ports, quoted.proto, 0, 0)).reversed())
}

/// As [`about`], for ICMPv6.
pub(crate) fn about6(frame: &Frame, parsed: &Parsed6) -> Option<Tuple> {
    let start = usize::from(parsed.l2) + ETH_LEN;
    let packet = frame.bytes().get(start..start + usize::from(parsed.ip_len))?;
    let message = packet.get(usize::from(parsed.l4)..)?;
    if parsed.key.proto() != proto::ICMPV6 || message.len() < icmpv6::LEN || !icmpv6::is_error(message[0]) {
        return None;
    }
    let (src, dst, quoted) = icmpv6::quoted(&message[icmpv6::LEN..])?;
    Some(Tuple::of6(&FlowKey6::new(src, dst, quoted.ports, quoted.proto, 0, 0)).reversed())
}

/// Translates an ICMP error as a reply of the connection that its quotation belongs to, if there is one. Other
/// messages stay as they are.
///
/// The error's own source is replaced only if it is the quoted destination, or if the one who is told knows the
/// connection by an address of this node: else a router on the way speaks for itself, and traceroute should show it.
///
/// # Errors
/// [`DropReason::BadIcmp`] if the message's checksum is wrong: translation would mend it.
pub(crate) fn translate(
    worker: &mut WorkerState,
    frame: &mut Frame,
    parsed: &mut Parsed,
) -> Result<(), DropReason> {
    let start = usize::from(parsed.l2) + ETH_LEN;
    let packet = &mut frame.bytes_mut()[start..start + usize::from(parsed.ip_len)];
    let (ip, message) = packet.split_at_mut(usize::from(parsed.ip_header_len));
    if parsed.key.proto() != proto::ICMP || !icmp::is_error(message[0]) {
        return Ok(());
    }
    if !icmp::checksum_ok(message) {
        return Err(DropReason::BadIcmp);
    }
    let Some(quoted) = icmp::Quoted::parse(&message[icmp::LEN..]) else { return Ok(()) };
    let key = FlowKey::new(quoted.src, quoted.dst, quoted.ports, quoted.proto, 0, 0);
    let answer = Tuple::of(&key).reversed();
    let Some(found) = worker.conntrack.lookup(&answer) else { return Ok(()) };
    let leaves = found.translated();
    let (Some(src), Some(dst)) = (raw(leaves.src), raw(leaves.dst)) else { return Ok(()) };
    if leaves == answer {
        return Ok(());
    }
    quoted.rewrite(&mut message[icmp::LEN..], dst, src, ports_to_raw(leaves.dport, leaves.sport));
    icmp::finish(message);
    if parsed.key.src == quoted.dst || has_other_source(&found) {
        parsed.key.src = src;
    }
    parsed.key.dst = dst;
    put_raw32(ip, ipv4::SRC, parsed.key.src);
    put_raw32(ip, ipv4::DST, parsed.key.dst);
    put_raw16(ip, ipv4::CHECKSUM, 0);
    let sum = checksum::checksum(ip);
    put_raw16(ip, ipv4::CHECKSUM, sum);
    worker.counters.add(Counter::IcmpTranslated, 1);
    Ok(())
}

/// Whether errors about a connection's replies go to one who sees an address of this node in place of its client's. Other
/// addresses may mean nothing there (RFC 5508 REQ-5).
fn has_other_source(found: &Found) -> bool {
    found.direction == Direction::Original && found.translated().src != found.tuples[0].src
}

fn raw(ip: Ip) -> Option<u32> {
    ip.as_v4().map(u32::from_ne_bytes)
}

/// As [`translate`], for ICMPv6.
///
/// # Errors
/// As there.
pub(crate) fn translate6(
    worker: &mut WorkerState,
    frame: &mut Frame,
    parsed: &mut Parsed6,
) -> Result<(), DropReason> {
    let start = usize::from(parsed.l2) + ETH_LEN;
    let packet = &mut frame.bytes_mut()[start..start + usize::from(parsed.ip_len)];
    let (ip, message) = packet.split_at_mut(usize::from(parsed.l4));
    if parsed.key.proto() != proto::ICMPV6 || !icmpv6::is_error(message[0]) {
        return Ok(());
    }
    if !icmpv6::checksum_ok(&parsed.key.src, &parsed.key.dst, message) {
        return Err(DropReason::BadIcmp);
    }
    let Some((src, dst, quoted)) = icmpv6::quoted(&message[icmpv6::LEN..]) else { return Ok(()) };
    let answer = Tuple::of6(&FlowKey6::new(src, dst, quoted.ports, quoted.proto, 0, 0)).reversed();
    let Some(found) = worker.conntrack.lookup(&answer) else { return Ok(()) };
    let leaves = found.translated();
    if leaves == answer || leaves.src.is_v4() || leaves.dst.is_v4() {
        return Ok(());
    }
    let ports = ports_to_raw(leaves.dport, leaves.sport);
    icmpv6::rewrite_quoted(&mut message[icmpv6::LEN..], &quoted, &leaves.dst.0, &leaves.src.0, ports);
    if parsed.key.src == dst || has_other_source(&found) {
        parsed.key.src = leaves.src.0;
    }
    parsed.key.dst = leaves.dst.0;
    ip[ipv6::SRC..ipv6::DST].copy_from_slice(&parsed.key.src);
    ip[ipv6::DST..ipv6::LEN].copy_from_slice(&parsed.key.dst);
    icmpv6::finish(&parsed.key.src, &parsed.key.dst, message);
    worker.counters.add(Counter::IcmpTranslated, 1);
    Ok(())
}
