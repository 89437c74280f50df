//! TCP headers and options (RFC 9293 sections 3.1 and 3.2), as far as a router may look at them.

use super::{TCP_LEN, be16, checksum, put_raw16, put16, raw16, raw32, tcp_flags};

/// Kinds of options.
mod kind {
    pub(super) const END: u8 = 0;
    pub(super) const NO_OPERATION: u8 = 1;
    pub(super) const MAXIMUM_SEGMENT_SIZE: u8 = 2;
    pub(super) const WINDOW_SCALE: u8 = 3;
    pub(super) const SELECTIVE_ACKNOWLEDGEMENT: u8 = 5;
}
const CHECKSUM: usize = 16;
/// Largest shift of a window (RFC 7323 section 2.3).
pub const MAX_SHIFT: u8 = 14;

/// What a segment says of its connection's sequence numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Control bits: FIN, SYN, RST, ACK.
    pub flags: u8,
    /// Number of its first byte.
    pub seq: u32,
    /// How many numbers it takes: its bytes, SYN and FIN.
    pub len: u32,
    /// What it acknowledges.
    pub ack: u32,
    /// The highest number that it acknowledges, selectively (RFC 2018) or not.
    pub sack: u32,
    /// The window that it offers, as it stands there.
    pub window: u16,
    /// The shift that a SYN announces.
    pub shift: Option<u8>,
    /// Whether all of it is there; else it is the first fragment, and longer.
    pub is_whole: bool,
}

impl Segment {
    /// Stands for a segment whose header makes no sense, which is in no window.
    pub const NONSENSE: Segment = Segment {
        flags: tcp_flags::SYN | tcp_flags::RST,
        seq: 0,
        len: 0,
        ack: 0,
        sack: 0,
        window: 0,
        shift: None,
        is_whole: true,
    };

    /// Reads a segment; options that make no sense end the list of options.
    pub fn parse(segment: &[u8], is_whole: bool) -> Segment {
        let Some(fixed) = segment.first_chunk::<TCP_LEN>() else { return Segment::NONSENSE };
        let header_len = usize::from(fixed[12] >> 4) * 4;
        if header_len < TCP_LEN || header_len > segment.len() {
            return Segment::NONSENSE;
        }
        let flags = fixed[13] & (tcp_flags::FIN | tcp_flags::SYN | tcp_flags::RST | tcp_flags::ACK);
        let control = (flags & tcp_flags::SYN != 0) as u32 + (flags & tcp_flags::FIN != 0) as u32;
        let ack = raw32(fixed, 8).to_be();
        let mut read = Segment {
            flags,
            seq: raw32(fixed, 4).to_be(),
            len: (segment.len() - header_len) as u32 + control,
            ack,
            sack: ack,
            window: be16(fixed, 14),
            shift: None,
            is_whole,
        };
        // Nearly all segments of running connections have either none, or time stamps alone.
        const TIME_STAMPS: [u8; 4] = [1, 1, 8, 10];
        let options = &segment[TCP_LEN..header_len];
        if !(options.is_empty() || options.len() == 12 && options[..4] == TIME_STAMPS) {
            read.read_options(options);
        }
        read
    }

    fn read_options(&mut self, mut options: &[u8]) {
        while let [kind, rest @ ..] = options {
            options = match *kind {
                kind::END => return,
                kind::NO_OPERATION => rest,
                kind => {
                    let len = rest.first().map_or(0, |len| usize::from(*len));
                    let Some(option) = options.get(2..len.max(2)).filter(|_| len >= 2) else { return };
                    self.read_option(kind, option);
                    &options[len..]
                }
            };
        }
    }

    fn read_option(&mut self, kind: u8, option: &[u8]) {
        let is_syn = self.flags & tcp_flags::SYN != 0;
        match (kind, option) {
            (kind::WINDOW_SCALE, [shift]) if is_syn => self.shift = Some((*shift).min(MAX_SHIFT)),
            (kind::SELECTIVE_ACKNOWLEDGEMENT, blocks) if !is_syn => {
                for block in blocks.chunks_exact(8) {
                    let right = raw32(block, 4).to_be();
                    if (right.wrapping_sub(self.sack) as i32) > 0 {
                        self.sack = right;
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether its control bits are such as no TCP sends: a SYN that ends as well, or none of those that one always has.
    pub fn is_nonsense(&self) -> bool {
        let has = |flags| self.flags & flags != 0;
        has(tcp_flags::SYN) && has(tcp_flags::FIN | tcp_flags::RST)
            || !has(tcp_flags::SYN | tcp_flags::RST | tcp_flags::ACK)
    }

    /// The number behind its last.
    pub fn end(&self) -> u32 {
        self.seq.wrapping_add(self.len)
    }
}

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

    /// A segment of three bytes with these options, padded.
    fn segment(flags: u8, options: &[u8]) -> Segment {
        let mut bytes = syn(options);
        bytes[4..12].copy_from_slice(&[0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 9]);
        (bytes[13], bytes[14], bytes[15]) = (flags | 0x08, 0x12, 0x34);
        Segment::parse(&bytes, true)
    }

    #[test]
    fn a_segment_says_what_numbers_it_takes_and_acknowledges() {
        use tcp_flags::{ACK, FIN, SYN};
        let read = segment(SYN, &[2, 4, 5, 0xb4, 1, 3, 3, 7]);
        assert_eq!((read.flags, read.seq, read.len, read.shift), (SYN, 0xffff_fffe, 4, Some(7)));
        assert_eq!((read.end(), read.window), (2, 0x1234));
        assert_eq!(segment(SYN, &[3, 3, 200]).shift, Some(MAX_SHIFT), "RFC 7323 section 2.3");
        assert_eq!(segment(ACK, &[3, 3, 7]).shift, None, "only a SYN says it");
        let sacks = [1, 1, 5, 18, 0, 0, 0, 50, 0, 0, 0, 60, 0, 0, 0, 20, 0, 0, 0, 30];
        let read = segment(ACK | FIN, &sacks);
        assert_eq!((read.ack, read.sack, read.len), (9, 60, 4));
        let stamps = [1, 1, 8, 10, 0, 0, 0, 50, 0, 0, 0, 60];
        assert_eq!(segment(ACK, &[&stamps[..], &sacks].concat()).sack, 60);
        assert_eq!(segment(ACK, &stamps).sack, 9);
    }

    #[test]
    fn a_header_that_makes_no_sense_is_told_apart() {
        let mut bytes = syn(&[]);
        for offset in [0, 4, 15] {
            bytes[12] = offset << 4;
            assert_eq!(Segment::parse(&bytes, true), Segment::NONSENSE);
        }
        assert_eq!(Segment::parse(&bytes[..19], true), Segment::NONSENSE);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let read = Segment::parse(&bytes, true);
            prop_assert!(read.len <= bytes.len() as u32 + 2);
        }
    }
}
