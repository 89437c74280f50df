//! TCP options (RFC 9293 section 3.2), as far as a router may look at them.

use super::{TCP_LEN, be16, checksum, put_raw16, put16, raw16};

/// Kinds of options.
mod kind {
    pub(super) const END: u8 = 0;
    pub(super) const NO_OPERATION: u8 = 1;
    pub(super) const MAXIMUM_SEGMENT_SIZE: u8 = 2;
}
const CHECKSUM: usize = 16;

/// Lowers the maximum segment size that a SYN announces to at most `most` bytes, its checksum with it (RFC 1624). A segment
/// without the option, or with options that make no sense, stays as it is.
pub fn clamp_mss(segment: &mut [u8], most: u16) {
    let Some(at) = mss_at(segment) else { return };
    let announced = be16(segment, at);
    if announced <= most {
        return;
    }
    put16(segment, at, most);
    let words = |value: u16| if at % 2 == 0 { value.to_be() } else { value.to_be().swap_bytes() };
    let delta = checksum::fold(u64::from(!words(announced)) + u64::from(words(most)));
    let sum = checksum::update(raw16(segment, CHECKSUM), delta);
    put_raw16(segment, CHECKSUM, sum);
}

/// Where the value of the option is.
fn mss_at(segment: &[u8]) -> Option<usize> {
    let header_len = usize::from(*segment.get(12)? >> 4) * 4;
    let header = segment.get(..header_len)?;
    let mut at = TCP_LEN;
    loop {
        at += match *header.get(at)? {
            kind::END => return None,
            kind::NO_OPERATION => 1,
            kind::MAXIMUM_SEGMENT_SIZE => {
                let value = header.get(at..at + 4)?;
                return (value[1] == 4).then_some(at + 2);
            }
            _ => usize::from(*header.get(at + 1)?).max(2),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A SYN with these options, padded, and a right checksum over itself.
    fn syn(options: &[u8]) -> Vec<u8> {
        let mut segment = vec![0x5a; TCP_LEN];
        segment.extend_from_slice(options);
        segment.resize(segment.len().next_multiple_of(4), 0);
        segment[12] = ((segment.len() / 4) << 4) as u8;
        segment.extend([1, 2, 3]);
        put_raw16(&mut segment, CHECKSUM, 0);
        let sum = checksum::checksum(&segment);
        put_raw16(&mut segment, CHECKSUM, sum);
        segment
    }

    proptest! {
        #[test]
        fn a_larger_mss_is_lowered_wherever_it_stands_and_the_checksum_stays_right(
            before in 0usize..9,
            announced: u16,
            most: u16,
        ) {
            let [high, low] = announced.to_be_bytes();
            let mut segment = syn(&[&vec![1; before][..], &[2, 4, high, low, 4, 2]].concat());
            let mut expected = segment.clone();
            let lowered = announced.min(most).to_be_bytes();
            expected[22 + before..24 + before].copy_from_slice(&lowered);
            clamp_mss(&mut segment, most);
            prop_assert_eq!(checksum::fold(checksum::sum(&segment)), 0xffff);
            expected[CHECKSUM..CHECKSUM + 2].copy_from_slice(&segment[CHECKSUM..CHECKSUM + 2]);
            prop_assert_eq!(segment, expected);
        }

        #[test]
        fn any_bytes_are_survived(mut segment in proptest::collection::vec(any::<u8>(), 0..80), most: u16) {
            clamp_mss(&mut segment, most);
        }
    }

    #[test]
    fn a_segment_without_the_option_stays() {
        for options in [&[][..], &[1, 1, 1], &[0, 2, 4, 5, 0xb4], &[2, 3, 5, 0xb4], &[8, 0, 1], &[8, 99]] {
            let mut segment = syn(options);
            let before = segment.clone();
            clamp_mss(&mut segment, 100);
            assert_eq!(segment, before, "{options:?}");
        }
    }
}
