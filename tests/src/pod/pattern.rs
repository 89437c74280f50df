//! Deterministic bytes whose value depends on their position, so that any loss, repetition, reordering
//! or corruption of a stream shows.

/// Length of one independent word of the pattern in bytes.
const WORD_BYTES: u64 = 8;

/// The word at index `i`: a full mix of the index (the finalizer of splitmix64), so that neighbouring
/// words share nothing.
fn word(i: u64) -> [u8; 8] {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_be_bytes()
}

/// Fills `out` with the pattern's bytes from stream position `offset` on.
pub fn fill(offset: u64, out: &mut [u8]) {
    let mut position = offset;
    let mut rest = out;
    while !rest.is_empty() {
        let within = (position % WORD_BYTES) as usize;
        let bytes = word(position / WORD_BYTES);
        let n = rest.len().min(bytes.len() - within);
        let (now, later) = rest.split_at_mut(n);
        now.copy_from_slice(&bytes[within..within + n]);
        position += n as u64;
        rest = later;
    }
}

/// Compares a stream that arrives in pieces with the pattern.
#[derive(Debug, Default)]
pub struct Verifier {
    position: u64,
    first_wrong: Option<u64>,
    expected: Vec<u8>,
}

impl Verifier {
    /// Takes the next piece of the stream.
    pub fn push(&mut self, piece: &[u8]) {
        self.expected.resize(piece.len(), 0);
        fill(self.position, &mut self.expected);
        if self.first_wrong.is_none()
            && let Some(at) = piece.iter().zip(&self.expected).position(|(got, want)| got != want)
        {
            self.first_wrong = Some(self.position + at as u64);
        }
        self.position += piece.len() as u64;
    }

    /// How many bytes have come.
    pub fn len(&self) -> u64 {
        self.position
    }

    /// Whether no byte has come.
    pub fn is_empty(&self) -> bool {
        self.position == 0
    }

    /// Position of the first byte that differs from the pattern.
    pub fn first_wrong(&self) -> Option<u64> {
        self.first_wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        fill(0, &mut bytes);
        bytes
    }

    #[test]
    fn any_cut_of_the_stream_gives_the_same_bytes() {
        let all = whole(1000);
        for (start, len) in [(0, 1000), (1, 7), (7, 9), (8, 8), (13, 600), (999, 1)] {
            let mut part = vec![0; len];
            fill(start as u64, &mut part);
            assert_eq!(part, all[start..start + len], "from {start}");
        }
    }

    #[test]
    fn verifier_accepts_the_pattern_in_any_pieces() {
        let all = whole(1000);
        let mut verifier = Verifier::default();
        for piece in all.chunks(37) {
            verifier.push(piece);
        }
        assert_eq!((verifier.len(), verifier.first_wrong()), (1000, None));
    }

    #[test]
    fn verifier_names_the_first_byte_that_differs() {
        let mut flipped = whole(1000);
        flipped[500] ^= 1;
        let mut swapped = whole(1000);
        swapped.swap(100, 700);
        for (bytes, at) in [(flipped, 500), (swapped, 100)] {
            let mut verifier = Verifier::default();
            for piece in bytes.chunks(64) {
                verifier.push(piece);
            }
            assert_eq!(verifier.first_wrong(), Some(at));
        }
    }
}
