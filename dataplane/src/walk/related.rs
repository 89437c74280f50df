//! ICMP errors about translated packets (RFC 5508 section 4, RFC 3022 section 4.3): the sender must find in the
//! quotation the packet that it sent, not the one that the translation made of it.

use crate::conntrack::Tuple;
use crate::flow::FlowKey;
use crate::parse::Parsed;
use crate::state::WorkerState;
use crate::wire::{ETH_LEN, checksum, icmp, ipv4, ports_to_raw, put_raw16, put_raw32};
use fairway_pmd::Frame;
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, Ip};

/// Translates an ICMP error as a reply of the connection that its quotation belongs to, if there is one. Other
/// messages stay as they are.
///
/// The error's own source is replaced only if it is the quoted destination: a router on the way speaks for itself,
/// and traceroute should show it.
///
/// # Errors
/// [`DropReason::BadIcmp`] if the message's checksum is wrong: translation would mend it.
pub(super) fn translate(
    worker: &mut WorkerState,
    frame: &mut Frame,
    parsed: &mut Parsed,
) -> Result<(), DropReason> {
    let start = usize::from(parsed.l2) + ETH_LEN;
    let packet = &mut frame.bytes_mut()[start..start + usize::from(parsed.ip_len)];
    let (ip, message) = packet.split_at_mut(usize::from(parsed.ip_header_len));
    if !icmp::is_error(message[0]) {
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
    if parsed.key.src == quoted.dst {
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

fn raw(ip: Ip) -> Option<u32> {
    ip.as_v4().map(u32::from_ne_bytes)
}
