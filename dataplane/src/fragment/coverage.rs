//! Which bytes of a datagram have come: exact, so that overlaps show (RFC 5722), in units of eight bytes as fragments
//! count them.

/// Most units of a datagram: an IPv4 total length, or an IPv6 payload length, has 16 bits.
const UNITS: usize = 8192;

/// What a fragment header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What the fragments of a datagram have in common.
    pub id: u32,
    /// Offset of the data in the datagram, in units of eight bytes.
    pub offset: u16,
    /// Length of the data in bytes.
    pub len: u16,
    /// Whether more follow.
    pub more: bool,
}

impl Piece {
    /// Whether such a fragment can be: it has data, in whole units unless it is the last, and does not end beyond any
    /// datagram (RFC 791 section 3.2, RFC 8200 section 4.5).
    pub fn is_possible(&self) -> bool {
        let end = usize::from(self.offset) * 8 + usize::from(self.len);
        self.len > 0 && end <= usize::from(u16::MAX) && (!self.more || self.len.is_multiple_of(8))
    }

    fn units(&self) -> std::ops::Range<usize> {
        let start = usize::from(self.offset);
        start..start + usize::from(self.len).div_ceil(8)
    }
}

/// Why a fragment does not belong beside those that have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// All of it has come before.
    Duplicate,
    /// It overlaps others in part, or the datagram would have two ends.
    Overlap,
}

/// See the module's head.
#[derive(Clone)]
pub struct Coverage {
    seen: [u64; UNITS / 64],
    /// Units seen.
    count: u16,
    /// Units up to the end of the fragment that reaches furthest.
    reach: u16,
    /// Units of the whole datagram; 0 until its last fragment has come.
    end: u16,
}

impl Coverage {
    /// Nothing has come.
    pub const NOTHING: Coverage = Coverage { seen: [0; UNITS / 64], count: 0, reach: 0, end: 0 };

    /// Whether the first unit has come.
    pub fn has_first(&self) -> bool {
        self.seen[0] & 1 != 0
    }

    /// Whether all has come.
    pub fn is_complete(&self) -> bool {
        self.end != 0 && self.count == self.end
    }

    /// Takes note of a fragment, which [is possible](Piece::is_possible).
    pub fn add(&mut self, piece: &Piece) -> Result<(), Misfit> {
        let units = piece.units();
        let (len, stop) = (units.len() as u16, units.end as u16);
        match self.overlap(units.clone()) {
            0 => {}
            seen if seen == u32::from(len) => return Err(Misfit::Duplicate),
            _ => return Err(Misfit::Overlap),
        }
        let fits = match (self.end, piece.more) {
            (0, true) => true,
            (0, false) => self.reach <= stop,
            (end, more) => more && stop < end,
        };
        if !fits {
            return Err(Misfit::Overlap);
        }
        masks(units).for_each(|(word, mask)| self.seen[word] |= mask);
        self.count += len;
        self.reach = self.reach.max(stop);
        if !piece.more {
            self.end = stop;
        }
        Ok(())
    }

    fn overlap(&self, units: std::ops::Range<usize>) -> u32 {
        masks(units).map(|(word, mask)| (self.seen[word] & mask).count_ones()).sum()
    }
}

/// The words, and their bits, that stand for these units.
fn masks(units: std::ops::Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let words = units.start / 64..units.end.div_ceil(64);
    words.map(move |word| {
        let (low, high) = (units.start.max(word * 64) % 64, units.end.min(word * 64 + 64) - word * 64);
        (word, (u64::MAX << low) & (u64::MAX >> (64 - high)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(offset: u16, len: u16, more: bool) -> Piece {
        Piece { id: 0, offset, len, more }
    }

    #[test]
    fn impossible_fragments_are_known() {
        assert!(piece(0, 8, true).is_possible() && piece(8191, 7, false).is_possible());
        for impossible in
            [piece(1, 0, false), piece(0, 9, true), piece(8191, 8, false), piece(8180, 1480, true)]
        {
            assert!(!impossible.is_possible(), "{impossible:?}");
        }
    }

    #[test]
    fn a_datagram_has_one_end_and_nothing_beyond() {
        let mut coverage = Coverage::NOTHING;
        coverage.add(&piece(10, 80, true)).unwrap();
        assert_eq!(coverage.add(&piece(0, 40, false)), Err(Misfit::Overlap), "an end before what has come");
        coverage.add(&piece(20, 3, false)).unwrap();
        for beyond in [piece(21, 8, false), piece(21, 8, true), piece(20, 3, false)] {
            assert!(coverage.add(&beyond).is_err(), "{beyond:?}");
        }
        assert_eq!(coverage.add(&piece(0, 80, true)), Ok(()));
        assert!(coverage.is_complete());
    }

    proptest! {
        /// Against a plain list of units.
        #[test]
        fn every_overlap_shows(
            pieces in proptest::collection::vec((0u16..200, 1u16..60, any::<bool>()), 1..40)
        ) {
            let mut coverage = Coverage::NOTHING;
            let (mut seen, mut end) = (vec![false; 300], None);
            for (offset, units, more) in pieces {
                let piece = piece(offset, units * 8, more);
                let range = usize::from(offset)..usize::from(offset + units);
                let overlap = seen[range.clone()].iter().filter(|seen| **seen).count();
                let reach = seen.iter().rposition(|seen| *seen).map_or(0, |last| last + 1);
                let fits = match end {
                    None => more || reach <= range.end,
                    Some(end) => more && range.end < end,
                };
                let expected = match overlap {
                    0 if fits => Ok(()),
                    n if n == range.len() => Err(Misfit::Duplicate),
                    _ => Err(Misfit::Overlap),
                };
                prop_assert_eq!(coverage.add(&piece), expected);
                if expected.is_ok() {
                    seen[range.clone()].fill(true);
                    if !more {
                        end = Some(range.end);
                    }
                }
                let complete = end.is_some_and(|end| seen[..end].iter().all(|seen| *seen));
                prop_assert_eq!(coverage.is_complete(), complete);
            }
        }
    }
}
