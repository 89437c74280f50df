//! The one place that changes a packet on its way through: decapsulate, TTL, addresses, ports, checksums,
//! Ethernet header or encapsulation. Flow hits and first packets both end here.

use super::{Binding, FlowEntry, Template};
use crate::parse::{Parsed, Part};
use crate::wire::{
    ETH_LEN, checksum, icmp, ipip, ipv4, over_ipv6, proto, put_raw16, put_raw32, raw16, sctp, udp_tunnel,
    vxlan,
};
use fairway_pmd::Frame;
use fairway_tables::DropReason;

/// What is wanted of one packet: the flow entry says it.
pub type Rewrite = FlowEntry;

/// Rewrites `frame`, which `parsed` was read from, as `entry` says. The caller has checked the TTL and the
/// MTU.
///
/// # Errors
/// [`DropReason::NoHeadroom`] if the frame cannot take the encapsulation; then it is partly rewritten and
/// must be dropped.
#[inline(always)]
pub fn apply(
    frame: &mut Frame,
    parsed: &Parsed,
    entry: &Rewrite,
    template: &Template,
) -> Result<(), DropReason> {
    translate(frame, parsed, entry)?;
    encapsulate(frame, parsed.ip_len, &entry.binding, template)
}

/// The first half: what was in front of the packet goes, and the packet itself is as it shall leave.
#[inline(always)]
pub(crate) fn translate(frame: &mut Frame, parsed: &Parsed, entry: &Rewrite) -> Result<(), DropReason> {
    if parsed.l2 != 0 {
        frame.trim_front(usize::from(parsed.l2));
    }
    // Leaves Ethernet padding behind.
    frame.set_len(ETH_LEN + usize::from(parsed.ip_len));
    rewrite_ip(frame.bytes_mut(), parsed, entry)
}

/// The second half: what goes in front of an IPv4 packet of `ip_len` bytes that has an Ethernet header already.
#[inline(always)]
pub(crate) fn encapsulate(
    frame: &mut Frame,
    ip_len: u16,
    binding: &Binding,
    template: &Template,
) -> Result<(), DropReason> {
    put_in_front(frame, template, binding, ip_len, |ip| ip[1])
}

/// Puts the template's bytes before an IP packet of `ip_len` bytes that has an Ethernet header already. `tos` reads the
/// type of service (the traffic class) from the start of the IP header.
#[inline(always)]
pub(super) fn put_in_front(
    frame: &mut Frame,
    template: &Template,
    binding: &Binding,
    ip_len: u16,
    tos: impl FnOnce(&[u8; 2]) -> u8,
) -> Result<(), DropReason> {
    let encapsulation = binding.flags & Binding::ENCAPSULATIONS;
    if encapsulation == 0 {
        return put(frame, 0, template, |_: &mut [u8; ETH_LEN]| {});
    }
    let ip = frame.bytes().get(ETH_LEN..).and_then(|ip| ip.first_chunk());
    let tos = tos(ip.ok_or(DropReason::Truncated)?);
    match encapsulation {
        Binding::VXLAN => put(frame, vxlan::OVERHEAD, template, |header| {
            vxlan::complete(header, ip_len, tos, binding.entropy);
        }),
        Binding::IPIP => put(frame, ipip::OVERHEAD, template, |header| {
            ipip::complete(header, ip_len, tos);
        }),
        Binding::UDP_TUNNEL => put(frame, udp_tunnel::OVERHEAD, template, |header| {
            udp_tunnel::complete(header, ip_len, tos, binding.entropy);
        }),
        _ => put_over_ipv6(frame, template, encapsulation, tos, binding.entropy),
    }
}

/// As [`put`], for tunnels over IPv6. The frame ends with the packet.
#[inline(never)]
fn put_over_ipv6(
    frame: &mut Frame,
    template: &Template,
    encapsulation: u32,
    tos: u8,
    entropy: u16,
) -> Result<(), DropReason> {
    let header_len = match encapsulation & !Binding::OVER_IPV6 {
        Binding::VXLAN => over_ipv6::VXLAN_HEADER_LEN,
        Binding::IPIP => over_ipv6::IP_HEADER_LEN,
        _ => over_ipv6::UDP_HEADER_LEN,
    };
    if !frame.prepend(header_len - ETH_LEN) {
        return Err(DropReason::NoHeadroom);
    }
    let bytes = frame.bytes_mut();
    bytes[..header_len].copy_from_slice(&template.0[..header_len]);
    if header_len == over_ipv6::IP_HEADER_LEN {
        over_ipv6::complete(bytes, tos, entropy);
    } else {
        over_ipv6::complete_udp(bytes, tos, entropy);
    }
    Ok(())
}

/// Puts the first `N` bytes of a template, completed, over the frame's front made `overhead` bytes longer.
#[inline(always)]
fn put<const N: usize>(
    frame: &mut Frame,
    overhead: usize,
    template: &Template,
    complete: impl FnOnce(&mut [u8; N]),
) -> Result<(), DropReason> {
    if overhead != 0 && !frame.prepend(overhead) {
        return Err(DropReason::NoHeadroom);
    }
    let (Some(header), Some(bytes)) =
        (frame.bytes_mut().first_chunk_mut::<N>(), template.0.first_chunk::<N>())
    else {
        return Err(DropReason::Truncated);
    };
    *header = *bytes;
    complete(header);
    Ok(())
}

#[inline(always)]
fn rewrite_ip(bytes: &mut [u8], parsed: &Parsed, entry: &Rewrite) -> Result<(), DropReason> {
    const SMALLEST: usize = ETH_LEN + ipv4::LEN;
    let Some((head, rest)) = bytes.split_first_chunk_mut::<SMALLEST>() else {
        return Err(DropReason::Truncated);
    };
    let Some(ip) = head.last_chunk_mut::<{ ipv4::LEN }>() else { return Err(DropReason::Truncated) };
    ip[8] = ip[8].wrapping_sub(1);
    let sum = checksum::update(raw16(ip, ipv4::CHECKSUM), entry.ip_delta);
    put_raw16(ip, ipv4::CHECKSUM, sum);
    if entry.binding.flags & Binding::NAT == 0 {
        return Ok(());
    }
    put_raw32(ip, ipv4::SRC, entry.new_src);
    put_raw32(ip, ipv4::DST, entry.new_dst);
    if parsed.part == Part::Later {
        return Ok(());
    }
    let l4 = rest.get_mut(usize::from(parsed.ip_header_len) - ipv4::LEN..).ok_or(DropReason::Truncated)?;
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
            // Zero says that the sender computed none (RFC 768); a sum that comes out as zero is sent as
            // all ones.
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
        proto::ICMP => {
            let message = l4.first_chunk_mut::<8>().ok_or(DropReason::Truncated)?;
            icmp::rewrite_echo(message, entry.new_ports, entry.l4_delta);
        }
        _ => {}
    }
    Ok(())
}
