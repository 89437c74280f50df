//! Explicit congestion notification across tunnels (RFC 6040): what becomes of a mark on the outer header when a
//! packet leaves its tunnel.

use super::{ETH_LEN, checksum, ipv4, put_raw16, raw16};
use fairway_tables::DropReason;

/// The two ECN bits of the type of service (RFC 3168 section 5).
pub const MASK: u8 = 3;
/// Not ECN-capable.
pub const NOT_ECT: u8 = 0;
/// ECN-capable, codepoint 1.
pub const ECT1: u8 = 1;
/// ECN-capable, codepoint 0.
pub const ECT0: u8 = 2;
/// Congestion experienced.
pub const CE: u8 = 3;

/// Whether an outer header's type of service can change the inner one: it says ECT(1) or congestion experienced.
#[inline(always)]
pub fn may_change_inner(outer_tos: u8) -> bool {
    outer_tos & 1 != 0
}

/// The ECN field with which an inner packet goes on: the table of RFC 6040 section 4.2.
///
/// # Errors
/// [`DropReason::EcnLost`]: congestion was experienced, and the inner packet cannot say so.
pub fn leaving(inner: u8, outer: u8) -> Result<u8, DropReason> {
    match (inner & MASK, outer & MASK) {
        (NOT_ECT, CE) => Err(DropReason::EcnLost),
        (NOT_ECT, _) => Ok(NOT_ECT),
        (_, CE) => Ok(CE),
        (ECT0, ECT1) => Ok(ECT1),
        (inner, _) => Ok(inner),
    }
}

/// Carries the outer header's mark over to the inner IP header, each of either family, which begins at `inner` of the
/// frame, and takes it off the outer one. IPv4 checksums stay right, or as wrong as they were.
///
/// # Errors
/// [`DropReason::EcnLost`] as in [`leaving`]; [`DropReason::Truncated`] if there is no inner header.
pub fn carry_over(frame: &mut [u8], inner: usize) -> Result<(), DropReason> {
    if frame.len() < inner + ipv4::LEN {
        return Err(DropReason::Truncated);
    }
    let ecn = leaving(field(frame, inner), field(frame, ETH_LEN))?;
    set_field(frame, inner, ecn);
    set_field(frame, ETH_LEN, NOT_ECT);
    Ok(())
}

fn is_ipv6(frame: &[u8], header: usize) -> bool {
    frame[header] >> 4 == 6
}

/// The ECN field of an IP header. In IPv6 the traffic class is spread over the first two bytes (RFC 8200 section 3).
fn field(frame: &[u8], header: usize) -> u8 {
    let byte = frame[header + 1];
    if is_ipv6(frame, header) { byte >> 4 & MASK } else { byte & MASK }
}

fn set_field(frame: &mut [u8], header: usize, ecn: u8) {
    let byte = frame[header + 1];
    if is_ipv6(frame, header) {
        frame[header + 1] = byte & !(MASK << 4) | ecn << 4;
    } else {
        set_tos(frame, header, byte & !MASK | ecn);
    }
}

fn set_tos(frame: &mut [u8], header: usize, tos: u8) {
    let old = std::mem::replace(&mut frame[header + 1], tos);
    let delta =
        checksum::fold(u64::from(!u16::from_ne_bytes([0, old])) + u64::from(u16::from_ne_bytes([0, tos])));
    let sum = raw16(frame, header + ipv4::CHECKSUM);
    put_raw16(frame, header + ipv4::CHECKSUM, checksum::update(sum, delta));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_rfc_6040_holds() {
        let drop = Err(DropReason::EcnLost);
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE. Columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let table = [
            (NOT_ECT, [Ok(NOT_ECT), Ok(NOT_ECT), Ok(NOT_ECT), drop]),
            (ECT0, [Ok(ECT0), Ok(ECT0), Ok(ECT1), Ok(CE)]),
            (ECT1, [Ok(ECT1), Ok(ECT1), Ok(ECT1), Ok(CE)]),
            (CE, [Ok(CE), Ok(CE), Ok(CE), Ok(CE)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [NOT_ECT, ECT0, ECT1, CE].into_iter().zip(row) {
                assert_eq!(leaving(inner, outer), expected, "inner {inner}, outer {outer}");
                let unchanged = expected == Ok(inner);
                assert!(may_change_inner(outer) || unchanged, "the quick test overlooks nothing");
            }
        }
    }

    #[test]
    fn a_mark_moves_inwards_and_both_checksums_stay_right() {
        let header = |tos: u8| {
            let mut header = ipv4::outer_template([10, 0, 0, 1], [10, 0, 0, 2], 4);
            ipv4::complete_outer(&mut header, 0, 20, tos);
            header
        };
        let mut frame = vec![0; ETH_LEN];
        frame.extend(header(0xb8 | CE));
        frame.extend(header(0x28 | ECT0));
        carry_over(&mut frame, ETH_LEN + ipv4::LEN).unwrap();
        assert_eq!((frame[ETH_LEN + 1], frame[ETH_LEN + 21]), (0xb8, 0x28 | CE));
        for at in [ETH_LEN, ETH_LEN + ipv4::LEN] {
            assert!(ipv4::Header::parse(&frame[at..at + ipv4::LEN]).is_ok());
        }
        assert_eq!(carry_over(&mut frame[..40], 34), Err(DropReason::Truncated));
    }

    #[test]
    fn a_mark_reaches_an_ipv6_packet_inside_too() {
        let mut frame = vec![0; ETH_LEN];
        let mut outer = ipv4::outer_template([10, 0, 0, 1], [10, 0, 0, 2], 17);
        ipv4::complete_outer(&mut outer, 0, 60, CE);
        frame.extend(outer);
        // Traffic class 0xba, flow label 0x12345.
        frame.extend([0x6b, 0xa1, 0x23, 0x45]);
        frame.resize(ETH_LEN + 60, 0);
        carry_over(&mut frame, ETH_LEN + ipv4::LEN).unwrap();
        assert_eq!(frame[34..38], [0x6b, 0xb1, 0x23, 0x45]);
        frame[35] = 0x81;
        set_tos(&mut frame, ETH_LEN, CE);
        assert_eq!(carry_over(&mut frame, ETH_LEN + ipv4::LEN), Err(DropReason::EcnLost));
    }

    #[test]
    fn a_mark_of_an_ipv6_header_moves_inwards_and_leaves_the_flow_label_alone() {
        let mut frame = vec![0; ETH_LEN];
        frame.extend([0x6b, 0xb1, 0x23, 0x45]);
        frame.resize(ETH_LEN + 40, 0);
        let mut inner = ipv4::outer_template([10, 0, 0, 1], [10, 0, 0, 2], 4);
        ipv4::complete_outer(&mut inner, 0, 20, 0x28 | ECT0);
        frame.extend(inner);
        carry_over(&mut frame, ETH_LEN + 40).unwrap();
        assert_eq!(frame[ETH_LEN..ETH_LEN + 4], [0x6b, 0x81, 0x23, 0x45]);
        assert_eq!(frame[ETH_LEN + 41], 0x28 | CE);
        assert!(ipv4::Header::parse(&frame[ETH_LEN + 40..]).is_ok());
    }
}
