//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! A *delta* is the folded one's-complement sum of `~m + m'` over every 16-bit word that changes. It depends
//! only on what is changed, not on the packet, so a flow computes it once: HC' = ~(~HC + delta), equation 3
//! of RFC 1624. All words are in memory order.

use super::{raw16, raw32};

/// What decrementing the TTL by one adds: the word (TTL, protocol) loses 0x0100 in network order.
pub const TTL_DELTA: u16 = u16::from_ne_bytes([0xfe, 0xff]);

/// Folds a sum of 16-bit words into one.
#[inline(always)]
pub fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Whether a one's-complement sum, of words of 16, 32 or 64 bits, is a zero: a multiple of 0xffff, told by the inverse of
/// that modulo 2^64.
#[inline(always)]
pub fn is_zero(sum: u64) -> bool {
    const INVERSE: u64 = !0x0001_0001_0001_0000;
    sum.wrapping_mul(INVERSE) <= u64::MAX / 0xffff
}

/// One's-complement sum of bytes as 16-bit words, an odd last byte padded with zero.
pub fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(2);
    let mut sum: u64 = (&mut words).map(|w| u64::from(u16::from_ne_bytes([w[0], w[1]]))).sum();
    if let [last] = words.remainder() {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

/// The checksum field for bytes whose own checksum field is zero.
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// Whether a 20-byte IPv4 header's words, checksum included, sum to minus zero.
#[inline(always)]
pub fn ipv4_header_ok(header: &[u8; 20]) -> bool {
    let word = |i: usize| u64::from(raw32(header, i));
    fold(word(0) + word(4) + word(8) + word(12) + word(16)) == 0xffff
}

/// The delta of changing one 32-bit field.
pub fn delta32(old: u32, new: u32) -> u64 {
    u64::from(!old & 0xffff) + u64::from(!old >> 16) + u64::from(new & 0xffff) + u64::from(new >> 16)
}

/// The delta of changing an echo message's identifier, given as raw ports: the identifier twice.
pub fn delta_echo(old: u32, new: u32) -> u64 {
    let identifier = |ports: u32| raw16(&ports.to_ne_bytes(), 0);
    u64::from(!identifier(old)) + u64::from(identifier(new))
}

/// The delta of changing bytes of even length at an even place.
pub fn delta(old: &[u8], new: &[u8]) -> u64 {
    // The complement of a sum of n words is the sum of their complements.
    u64::from(!fold(sum(old))) + sum(new)
}

/// Applies a delta to a checksum field.
#[inline(always)]
pub fn update(field: u16, delta: u16) -> u16 {
    let sum = u32::from(!field) + u32::from(delta);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// Applies two deltas to a checksum field.
#[inline(always)]
pub fn update2(field: u16, first: u16, second: u16) -> u16 {
    let sum = u32::from(!field) + u32::from(first) + u32::from(second);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// The sum of the pseudo-header of TCP and UDP over IPv4 (RFC 9293 section 3.1): raw addresses, protocol,
/// length of the TCP or UDP packet in bytes.
pub fn pseudo_header_v4(src: u32, dst: u32, proto: u8, len: u16) -> u64 {
    u64::from(src) + u64::from(dst) + u64::from(u16::from_ne_bytes([0, proto])) + u64::from(len.to_be())
}

/// The sum of the pseudo-header of TCP, UDP and ICMPv6 over IPv6 (RFC 8200 section 8.1).
pub fn pseudo_header_v6(src: &[u8; 16], dst: &[u8; 16], proto: u8, len: u16) -> u64 {
    sum(src) + sum(dst) + u64::from(u16::from_ne_bytes([0, proto])) + u64::from(len.to_be())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc1071_example() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])).to_be(), 0xddf2);
    }

    /// RFC 1624 section 4: 0xdd2f with 0x5555 changed to 0x3285 must give 0x0000, not 0xffff.
    #[test]
    fn rfc1624_example() {
        let raw = |v: u16| v.to_be();
        let delta = fold(u64::from(!raw(0x5555)) + u64::from(raw(0x3285)));
        assert_eq!(update(raw(0xdd2f), delta), 0);
    }

    proptest! {
        #[test]
        fn what_folds_to_a_zero_is_a_multiple_of_all_ones(sum: u64, factor in 0..=u64::MAX / 0xffff) {
            prop_assert_eq!(is_zero(sum), matches!(fold(sum), 0 | 0xffff));
            prop_assert!(is_zero(factor * 0xffff));
        }

        #[test]
        fn incremental_update_equals_recomputation(mut bytes in proptest::collection::vec(any::<u8>(), 40), new: u32) {
            bytes[10] = 0;
            bytes[11] = 0;
            let field = checksum(&bytes);
            let old = u32::from_ne_bytes([bytes[20], bytes[21], bytes[22], bytes[23]]);
            bytes[20..24].copy_from_slice(&new.to_ne_bytes());
            let updated = update(field, fold(delta32(old, new)));
            // Both zeros stand for the same value; a sum of all-zero data is the only case of +0.
            prop_assert!(updated == checksum(&bytes) || fold(sum(&bytes)) == 0);
        }

        #[test]
        fn a_delta_of_bytes_equals_recomputation(
            mut bytes in proptest::collection::vec(any::<u8>(), 64),
            new in proptest::collection::vec(any::<u8>(), 32),
        ) {
            bytes[0] |= 1;
            let field = checksum(&bytes);
            let change = fold(delta(&bytes[20..52], &new));
            bytes[20..52].copy_from_slice(&new);
            prop_assert_eq!(update(field, change), checksum(&bytes));
        }

        #[test]
        fn ttl_delta_is_right_for_every_ttl_and_protocol(ttl in 1u8.., proto: u8) {
            let mut header = [0u8; 20];
            header[0] = 0x45;
            header[8] = ttl;
            header[9] = proto;
            let field = checksum(&header);
            header[8] = ttl - 1;
            prop_assert_eq!(update(field, TTL_DELTA), checksum(&header));
        }
    }
}
