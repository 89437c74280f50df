//! Mixing for hash tables that the outside fills.

/// The two halves of a 64×64-bit product, folded: a strong mixer in three clocks.
#[inline(always)]
pub(crate) fn fold_multiply(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// A number that differs from process to process and cannot be foretold from outside.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
