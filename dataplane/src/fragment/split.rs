//! Fragmentation of IPv4 packets on their way (RFC 791 section 3.2, RFC 1812 section 5.2.6), before encapsulation, so that
//! each part fits behind it and only the receiving pod puts them together.

use crate::flow::{self, FlowEntry};
use crate::parse::Parsed;
use crate::process::Run;
use crate::wire::{ETH_LEN, be16, checksum, ipv4, put_raw16, put16};
use arrayvec::ArrayVec;
use fairway_pmd::Frame;
use fairway_tables::DropReason;
use fairway_tables::stats::Counter;

/// Most parts of one packet: one of 9,000 bytes for a way of 576.
const MAX_PARTS: usize = 18;
/// Longest IPv4 header (RFC 791 section 3.1).
const MAX_HEADER: usize = 60;

/// Whether the sender of an IPv4 packet allows it to be fragmented.
pub(crate) fn is_allowed(frame: &[u8], parsed: &Parsed) -> bool {
    be16(frame, usize::from(parsed.l2) + ETH_LEN + ipv4::FRAGMENT) & ipv4::DF == 0
}

/// Sends a packet that is larger than its way takes in several parts. `frame` is the last of them, to leave through the
/// port that is the result; the others are sent before it.
///
/// # Errors
/// [`DropReason::TooBig`] if the way takes hardly more than headers, [`DropReason::NoFrames`] if there are no frames for
/// all parts, or [`DropReason::NoHeadroom`].
pub(crate) fn split(
    run: &mut Run<'_>,
    parsed: &Parsed,
    frame: &mut Frame,
    entry: &FlowEntry,
) -> Result<u16, DropReason> {
    let binding = &entry.binding;
    let template = *run.worker.templates.get(binding.template).ok_or(DropReason::NoRoute)?;
    let header_len = usize::from(parsed.ip_header_len);
    let room = usize::from(binding.mtu).saturating_sub(header_len) & !7;
    let payload_len = usize::from(parsed.ip_len) - header_len;
    if room == 0 || payload_len.div_ceil(room) > MAX_PARTS {
        return Err(DropReason::TooBig);
    }
    let mut parts = ArrayVec::<Frame, MAX_PARTS>::new();
    for _ in 1..payload_len.div_ceil(room) {
        match run.cache.alloc() {
            Some(part) => parts.push(part),
            None => {
                parts.drain(..).for_each(|part| run.cache.free(part));
                return Err(DropReason::NoFrames);
            }
        }
    }
    flow::translate(frame, parsed, entry)?;
    let later_header = LaterHeader::of(&frame.bytes()[ETH_LEN..ETH_LEN + header_len]);
    let word = be16(frame.bytes(), ETH_LEN + ipv4::FRAGMENT);
    for (number, part) in parts.iter_mut().enumerate() {
        let at = (number + 1) * room;
        let len = room.min(payload_len - at);
        // A part without "more" after it ends where the packet did: at the datagram's end, if that was the last fragment.
        let more = if at + len < payload_len { ipv4::MF } else { word & ipv4::MF };
        let offset = (word & ipv4::OFFSET) + (at / 8) as u16;
        let header = later_header.bytes();
        if !part.reset(ETH_LEN + header.len() + len) {
            // Chunks are of one size, and this one is smaller than that of the whole.
            return discard(run, parts, DropReason::NoHeadroom);
        }
        let ip = &mut part.bytes_mut()[ETH_LEN..];
        ip[..header.len()].copy_from_slice(header);
        ip[header.len()..].copy_from_slice(&frame.bytes()[ETH_LEN + header_len + at..][..len]);
        complete(ip, header.len(), more | offset);
    }
    frame.set_len(ETH_LEN + header_len + room);
    complete(&mut frame.bytes_mut()[ETH_LEN..], header_len, word | ipv4::MF);
    for part in std::iter::once(&mut *frame).chain(&mut parts) {
        let ip_len = (part.len() - ETH_LEN) as u16;
        if let Err(reason) = flow::encapsulate(part, ip_len, binding, &template) {
            return discard(run, parts, reason);
        }
    }
    run.worker.counters.add(Counter::FragmentedPackets, 1);
    run.worker.counters.add(Counter::GeneratedPackets, parts.len() as u64);
    let port = binding.out_port;
    if let Some(last) = parts.pop() {
        let first = std::mem::replace(frame, last);
        run.finish(Ok(port), first);
        parts.drain(..).for_each(|part| run.finish(Ok(port), part));
    }
    Ok(port)
}

fn discard(
    run: &mut Run<'_>,
    parts: ArrayVec<Frame, MAX_PARTS>,
    reason: DropReason,
) -> Result<u16, DropReason> {
    parts.into_iter().for_each(|part| run.cache.free(part));
    Err(reason)
}

/// Sets length, fragment word and checksum of the IP header that a packet starts with.
fn complete(ip: &mut [u8], header_len: usize, word: u16) {
    let total_len = ip.len() as u16;
    put16(ip, 2, total_len);
    put16(ip, ipv4::FRAGMENT, word);
    put_raw16(ip, ipv4::CHECKSUM, 0);
    let sum = checksum::checksum(&ip[..header_len]);
    put_raw16(ip, ipv4::CHECKSUM, sum);
}

/// The header of the fragments after the first: only options with the "copied" bit are in all of them (RFC 791 section
/// 3.1).
struct LaterHeader {
    bytes: [u8; MAX_HEADER],
    len: usize,
}

impl LaterHeader {
    /// From the header of the whole packet. Options that make no sense are where the copying ends.
    fn of(header: &[u8]) -> LaterHeader {
        const END: u8 = 0;
        const NO_OPERATION: u8 = 1;
        const COPIED: u8 = 0x80;
        let mut later = LaterHeader { bytes: [END; MAX_HEADER], len: ipv4::LEN };
        later.bytes[..ipv4::LEN].copy_from_slice(&header[..ipv4::LEN]);
        let mut options = &header[ipv4::LEN..];
        while let [kind, rest @ ..] = options {
            let len = match (*kind, rest.first()) {
                (END, _) => break,
                (NO_OPERATION, _) => 1,
                (_, Some(len)) if *len >= 2 => usize::from(*len),
                _ => break,
            };
            let Some((option, others)) = options.split_at_checked(len) else { break };
            if *kind & COPIED != 0 {
                later.bytes[later.len..later.len + len].copy_from_slice(option);
                later.len += len;
            }
            options = others;
        }
        later.len = later.len.next_multiple_of(4);
        later.bytes[0] = 0x40 | (later.len / 4) as u8;
        later
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_options_to_be_copied_are_in_later_fragments() {
        let header = |options: &[u8]| [&[0x45 + (options.len() / 4) as u8; 20][..], options].concat();
        let of = |options: &[u8]| {
            let later = LaterHeader::of(&header(options));
            assert_eq!(usize::from(later.bytes()[0] & 0xf) * 4, later.bytes().len());
            later.bytes()[20..].to_vec()
        };
        let none = Vec::<u8>::new();
        assert_eq!(of(&[]), none);
        // Record route (not copied), router alert (copied), no operation, end.
        assert_eq!(of(&[7, 7, 4, 0, 0, 0, 0, 1, 0x94, 4, 0, 0]), [0x94, 4, 0, 0]);
        // Loose source route of seven bytes is padded to eight.
        assert_eq!(of(&[0x83, 7, 4, 1, 2, 3, 4, 0]), [0x83, 7, 4, 1, 2, 3, 4, 0]);
        // Lengths that lie.
        for broken in [[0x94, 1, 0, 0], [0x94, 0, 0, 0], [0x94, 5, 0, 0], [1, 1, 1, 0x94]] {
            assert_eq!(of(&broken), none, "{broken:?}");
        }
        assert_eq!(of(&[0x94; 40]), none, "longer than the header");
    }
}
