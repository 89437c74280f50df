//! As [`rewrite`](super::rewrite), for IPv6: no header checksum, and ICMPv6 has one that covers the addresses.

use super::rewrite::put_in_front;
use super::{Binding, FlowEntry6, Template};
use crate::parse::Part;
use crate::parse6::Parsed6;
use crate::wire::{ETH_LEN, checksum, icmp, ipv6, proto, put_raw16, put_raw32, raw16, sctp};
use fairway_pmd::Frame;
use fairway_tables::DropReason;

/// Rewrites `frame`, which `parsed` was read from, as `entry` says. The caller has checked the hop limit and the
/// MTU.
///
/// # Errors
/// [`DropReason::NoHeadroom`] if the frame cannot take the encapsulation; then it is partly rewritten and
/// must be dropped.
#[inline]
pub fn apply6(
    frame: &mut Frame,
    parsed: &Parsed6,
    entry: &FlowEntry6,
    template: &Template,
) -> Result<(), DropReason> {
    if parsed.l2 != 0 {
        frame.trim_front(usize::from(parsed.l2));
    }
    // Leaves Ethernet padding behind.
    frame.set_len(ETH_LEN + usize::from(parsed.ip_len));
    rewrite_ip(frame.bytes_mut(), parsed, entry)?;
    put_in_front(frame, template, &entry.binding, parsed.ip_len, |ip| ip[0] << 4 | ip[1] >> 4)
}

#[inline(always)]
fn rewrite_ip(bytes: &mut [u8], parsed: &Parsed6, entry: &FlowEntry6) -> Result<(), DropReason> {
    const SMALLEST: usize = ETH_LEN + ipv6::LEN;
    let Some((head, rest)) = bytes.split_first_chunk_mut::<SMALLEST>() else {
        return Err(DropReason::Truncated);
    };
    let Some(ip) = head.last_chunk_mut::<{ ipv6::LEN }>() else { return Err(DropReason::Truncated) };
    ip[ipv6::HOP_LIMIT] = ip[ipv6::HOP_LIMIT].wrapping_sub(1);
    if entry.binding.flags & Binding::NAT == 0 {
        return Ok(());
    }
    ip[ipv6::SRC..ipv6::DST].copy_from_slice(&entry.new_src);
    ip[ipv6::DST..].copy_from_slice(&entry.new_dst);
    if parsed.part == Part::Later {
        return Ok(());
    }
    let l4 = rest.get_mut(usize::from(parsed.l4) - ipv6::LEN..).ok_or(DropReason::Truncated)?;
    match parsed.key.proto() {
        proto::TCP => {
            let tcp = l4.first_chunk_mut::<20>().ok_or(DropReason::Truncated)?;
            put_raw32(tcp, 0, entry.new_ports);
            let sum = checksum::update(raw16(tcp, 16), entry.l4_delta);
            put_raw16(tcp, 16, sum);
        }
        proto::UDP => {
            let udp = l4.first_chunk_mut::<8>().ok_or(DropReason::Truncated)?;
            put_raw32(udp, 0, entry.new_ports);
            // Zero is allowed for tunnels only (RFC 6935); it says that there is none.
            let old = raw16(udp, 6);
            if old != 0 {
                let sum = checksum::update(old, entry.l4_delta);
                put_raw16(udp, 6, if sum == 0 { 0xffff } else { sum });
            }
        }
        // The checksum's correction depends on how long the whole packet is.
        proto::SCTP if parsed.part == Part::First && parsed.key.ports != entry.new_ports => {
            return Err(DropReason::Fragment);
        }
        proto::SCTP => {
            sctp::rewrite_ports(l4, parsed.key.ports, entry.new_ports).ok_or(DropReason::Truncated)?;
        }
        proto::ICMPV6 => {
            let message = l4.first_chunk_mut::<8>().ok_or(DropReason::Truncated)?;
            icmp::rewrite_echo(message, entry.new_ports, entry.l4_delta);
        }
        _ => {}
    }
    Ok(())
}
