//! The SCTP common header (RFC 9260 section 3.1) and its checksum, CRC32c over the whole packet, ports included but not
//! the addresses.
//!
//! A CRC is linear: the checksums of two packets of one length differ by what the difference of the packets alone
//! contributes. So after a change of ports the checksum is corrected without reading the rest, and one that was wrong
//! before stays wrong. The correction is the CRC of the ports' difference, followed by as many zero bytes as the packet
//! has left: a multiplication by a power of x modulo the polynomial.

/// Length of the common header.
pub const LEN: usize = 12;
/// Offset of the checksum, which is sent with its least significant byte first (RFC 9260 appendix A).
pub const CHECKSUM: usize = 8;

/// Castagnoli's polynomial, least significant bit first: bit 31 stands for x^0.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The factor by which 2^n zero bytes multiply, for the bits n of a length.
const ZEROS: [u32; 16] = zeros();

/// The product of two polynomials of degree below 32, modulo the polynomial.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 1 << 31;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 == 1 { b >> 1 ^ POLYNOMIAL } else { b >> 1 };
        bit >>= 1;
    }
    product
}

const fn zeros() -> [u32; 16] {
    let mut powers = [0; 16];
    // x^8, one byte.
    powers[0] = 1 << (31 - 8);
    let mut n = 1;
    while n < 16 {
        powers[n] = multiply(powers[n - 1], powers[n - 1]);
        n += 1;
    }
    powers
}

/// What to add (exclusive or) to the checksum of a packet of `len` bytes, from its common header on, when both its ports,
/// in memory order, change from `old` to `new`.
#[inline]
pub fn correction(old: u32, new: u32, len: usize) -> u32 {
    let difference = (old ^ new).to_ne_bytes();
    // The difference as a polynomial, times x^32, as the CRC takes its input.
    let mut crc = u32::from_le_bytes(difference);
    for _ in 0..32 {
        crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
    }
    let rest = len.saturating_sub(4);
    for (n, factor) in ZEROS.iter().enumerate() {
        if rest >> n & 1 == 1 {
            crc = multiply(crc, *factor);
        }
    }
    crc
}

/// Writes other ports into a packet that begins with the common header, and corrects the checksum; `None` if it is too
/// short to hold one.
#[inline]
pub fn rewrite_ports(packet: &mut [u8], old: u32, new: u32) -> Option<()> {
    let len = packet.len();
    let header = packet.first_chunk_mut::<LEN>()?;
    super::put_raw32(header, 0, new);
    if old != new {
        let sum = &mut header[CHECKSUM..];
        let old_sum = u32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]);
        sum.copy_from_slice(&(old_sum ^ correction(old, new, len)).to_le_bytes());
    }
    Some(())
}

/// The checksum of a packet whose checksum field is taken as zero.
pub fn checksum(packet: &[u8]) -> u32 {
    let field = CHECKSUM..LEN;
    let bytes = packet.iter().enumerate().map(|(i, byte)| if field.contains(&i) { 0 } else { *byte });
    !bytes.fold(u32::MAX, |crc, byte| {
        let start = crc ^ u32::from(byte);
        (0..8).fold(start, |crc, _| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 })
    })
}

/// Writes other ports into the beginning of a packet of `whole_len` bytes, at least its ports, and corrects the checksum
/// if it is there.
pub fn rewrite_quoted(packet: &mut [u8], whole_len: usize, old: u32, new: u32) {
    if packet.len() >= 4 {
        super::put_raw32(packet, 0, new);
    }
    if let Some(sum) = packet.get_mut(CHECKSUM..LEN) {
        let correction = correction(old, new, whole_len).to_le_bytes();
        sum.iter_mut().zip(correction).for_each(|(byte, change)| *byte ^= change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{put16, raw32};
    use proptest::prelude::*;

    #[test]
    fn the_checksum_is_crc32c() {
        // The check value of CRC-32C, over "123456789"; the field that counts as zero lies behind.
        assert_eq!(checksum(b"12345678"), !"12345678".bytes().fold(u32::MAX, step));
        assert_eq!(!"123456789".bytes().fold(u32::MAX, step), 0xe306_9283);
    }

    fn step(crc: u32, byte: u8) -> u32 {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 }
            },
        )
    }

    proptest! {
        #[test]
        fn changed_ports_leave_a_right_checksum_right_and_a_wrong_one_wrong(
            mut packet in prop::collection::vec(any::<u8>(), LEN..3000),
            ports: (u16, u16),
            damage: u32,
        ) {
            let sum = checksum(&packet);
            packet[CHECKSUM..LEN].copy_from_slice(&(sum ^ damage).to_le_bytes());
            let old = raw32(&packet, 0);
            let mut ports_bytes = [0; 4];
            put16(&mut ports_bytes, 0, ports.0);
            put16(&mut ports_bytes, 2, ports.1);
            prop_assert!(rewrite_ports(&mut packet, old, raw32(&ports_bytes, 0)).is_some());
            prop_assert_eq!(&packet[..4], &ports_bytes);
            let sum = checksum(&packet) ^ damage;
            prop_assert_eq!(&packet[CHECKSUM..LEN], &sum.to_le_bytes());
        }
    }
}
