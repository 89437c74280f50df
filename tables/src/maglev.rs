//! Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section
//! 3.4): a table of places, each of which names a backend, and which a flow's hash looks up. Every backend claims
//! places in an order of its own, one per turn, so that each gets nearly the same number of them and a backend that
//! comes or goes changes few places of the others. The table follows from the backends alone: every node of a cluster,
//! and every restart, builds the same.

use crate::group::mix;
use crate::record::Backend;
use std::collections::VecDeque;

/// Places of a table: prime, so that every stride visits each place once. Backends beyond this number get none.
pub(crate) const SIZE: usize = 16_381;
const FREE: u16 = u16::MAX;

/// The order in which a backend claims places: from `next` on, every `stride`-th.
struct Claims {
    next: usize,
    stride: usize,
}

impl Claims {
    fn of(backend: &Backend) -> Claims {
        let (high, low) = backend.ip.0.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().fold(0, |n: u64, byte| n << 8 | u64::from(*byte));
        let hash = mix(mix(mix(word(high)) ^ word(low)) ^ u64::from(backend.port));
        let size = SIZE as u64;
        Claims { next: (hash % size) as usize, stride: (1 + mix(hash) % (size - 1)) as usize }
    }

    fn claim(&mut self) -> usize {
        let place = self.next;
        self.next = (place + self.stride) % SIZE;
        place
    }
}

/// The backend of each place, by its number in the list; empty for an empty list.
pub(crate) fn table(backends: &[Backend]) -> Vec<u16> {
    if backends.is_empty() {
        return Vec::new();
    }
    let mut claims: Vec<Claims> = backends.iter().take(SIZE).map(Claims::of).collect();
    let mut places = vec![FREE; SIZE];
    let mut filled = 0;
    loop {
        for (number, claims) in claims.iter_mut().enumerate() {
            let place = loop {
                let place = claims.claim();
                if places[place] == FREE {
                    break place;
                }
            };
            places[place] = number as u16;
            filled += 1;
            if filled == SIZE {
                return places;
            }
        }
    }
}

/// Tables built in one batch of changes. All addresses of a service have the same lists of backends, and one change of an
/// endpoint changes all of them: each list's table is built once.
#[derive(Default)]
pub(crate) struct Tables<'a> {
    recent: VecDeque<(&'a [Backend], Vec<u16>)>,
}

impl<'a> Tables<'a> {
    /// Lists that one service may have: those of its cluster addresses and of its others, for each policy.
    const KEPT: usize = 4;

    /// The table of a list.
    pub(crate) fn of(&mut self, backends: &'a [Backend]) -> &[u16] {
        let known = self.recent.iter().position(|(list, _)| *list == backends);
        let place = known.unwrap_or_else(|| {
            self.recent.truncate(Self::KEPT - 1);
            self.recent.push_front((backends, table(backends)));
            0
        });
        self.recent.get(place).map_or(&[], |(_, table)| table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ip;

    fn backends(count: u16) -> Vec<Backend> {
        let ip = |n: u16| Ip::v4([10, 0, (n >> 8) as u8, n as u8]);
        (0..count).map(|n| Backend { ip: ip(n), port: 8080, flags: 0 }).collect()
    }

    #[test]
    fn every_backend_gets_nearly_the_same_number_of_places() {
        for count in [1, 3, 10, 1000] {
            let mut places = vec![0; usize::from(count)];
            table(&backends(count)).iter().for_each(|number| places[usize::from(*number)] += 1);
            let (least, most) = (places.iter().min().unwrap(), places.iter().max().unwrap());
            assert!(most - least <= 1, "{count} backends: {least} to {most} places");
        }
        assert!(table(&[]).is_empty());
    }

    #[test]
    fn a_backend_that_goes_moves_less_than_one_percent_of_the_others_places() {
        let all = backends(1000);
        let before = table(&all);
        for gone in [0, 1, 499, 998, 999] {
            let left: Vec<Backend> = [&all[..gone], &all[gone + 1..]].concat();
            let after = table(&left);
            let moved = before.iter().zip(&after).filter(|(old, new)| {
                let old = usize::from(**old);
                old != gone && all[old] != left[usize::from(**new)]
            });
            let moved = moved.count();
            assert!(moved * 100 < SIZE, "{gone}: {moved} of {SIZE} places moved");
        }
    }

    #[test]
    fn a_list_that_comes_again_is_not_built_again_and_none_gets_anothers_table() {
        let lists: Vec<_> = (1..=12).map(backends).collect();
        let again = lists[0].clone();
        let mut tables = Tables::default();
        let built = tables.of(&lists[0]).as_ptr();
        assert_eq!(tables.of(&lists[1]), table(&lists[1]));
        assert_eq!(tables.of(&again).as_ptr(), built, "an equal list");
        for list in &lists {
            assert_eq!(tables.of(list), table(list));
            assert!(tables.recent.len() <= Tables::KEPT);
        }
    }

    #[test]
    fn more_backends_than_places_leave_the_last_ones_out() {
        let places = table(&backends(SIZE as u16 + 7));
        assert!(places.iter().all(|number| usize::from(*number) < SIZE));
    }
}
