//! In which order a backend claims places, and how many are its due.

use crate::group::mix;
use crate::record::Backend;

/// Places of a table: a power of two, so that every odd stride visits each place once, and which claim a place is of
/// a backend follows by one multiplication. Backends beyond this number get none.
pub(crate) const SIZE: usize = 1 << 14;
const MASK: u16 = SIZE as u16 - 1;

/// On its turn number `t`, a backend claims the place `first + t * stride`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub(super) first: u16,
    stride: u16,
    /// Of the stride, modulo 2¹⁶.
    pub(super) inverse: u16,
    /// On the same turn, the backend with the smaller rank is first.
    pub(super) rank: u64,
}

impl Order {
    pub(super) fn of(backend: &Backend) -> Order {
        let (high, low) = backend.ip.0.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().fold(0, |n: u64, byte| n << 8 | u64::from(*byte));
        let rank = mix(mix(mix(word(high)) ^ word(low)) ^ u64::from(backend.port));
        let hash = mix(rank);
        let (first, stride) = (hash as u16, (hash >> 16) as u16 | 1);
        // Newton's iteration doubles the bits that are right, of which an odd number has three to begin with.
        let double = |inverse: u16| inverse.wrapping_mul(2u16.wrapping_sub(stride.wrapping_mul(inverse)));
        Order { first, stride, inverse: double(double(double(stride))), rank }
    }

    /// The place that is claimed on this turn.
    pub(super) fn place(&self, turn: u16) -> u16 {
        self.first.wrapping_add(turn.wrapping_mul(self.stride)) & MASK
    }

    /// The turn on which this place is claimed.
    pub(super) fn turn(&self, place: u16) -> u16 {
        turn(self.first, self.inverse, place)
    }
}

/// [`Order::turn`] of an order's parts.
#[inline(always)]
pub(super) fn turn(first: u16, inverse: u16, place: u16) -> u16 {
    place.wrapping_sub(first).wrapping_mul(inverse) & MASK
}

/// The number of places of each backend: the same for all, but one more for as many of the first by rank as places are left.
pub(super) fn shares(orders: &[Order]) -> Vec<u16> {
    let count = orders.len();
    if count == 0 {
        return Vec::new();
    }
    let (each, left) = (SIZE / count, SIZE % count);
    let mut shares = vec![each as u16; count];
    let mut ranks: Vec<(u64, usize)> = orders.iter().map(|order| order.rank).zip(0..).collect();
    if left > 0 {
        ranks.select_nth_unstable(left - 1);
    }
    ranks[..left].iter().for_each(|(_, number)| shares[*number] += 1);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ip;

    #[test]
    fn every_place_has_one_turn_in_every_order() {
        for n in 0..50 {
            let order = Order::of(&Backend { ip: Ip::v4([10, 0, 0, n]), port: 8080, flags: 0 });
            assert!((0..SIZE as u16).all(|turn| order.turn(order.place(turn)) == turn), "{order:?}");
        }
    }

    #[test]
    fn shares_add_up_to_all_places() {
        for count in [1, 2, 3, 10, 999, 1000, 1024, SIZE] {
            let ip = |n: usize| Ip::v4([10, 0, (n >> 8) as u8, n as u8]);
            let orders: Vec<Order> =
                (0..count).map(|n| Order::of(&Backend { ip: ip(n), port: 8080, flags: 0 })).collect();
            let shares = shares(&orders);
            assert_eq!(
                shares.iter().map(|share| usize::from(*share)).sum::<usize>(),
                SIZE,
                "{count} backends"
            );
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{count} backends");
        }
    }
}
