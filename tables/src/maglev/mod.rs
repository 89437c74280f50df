//! Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section
//! 3.4): a table of places, each of which names a backend, and which a flow's hash looks up. Every backend claims
//! places in an order of its own, one per turn, so that each gets nearly the same number of them and a backend that
//! comes or goes changes few places of the others. The table follows from the backends alone: every node of a cluster,
//! and every restart, builds the same.
//!
//! Unlike in the paper, a backend that finds a place taken does not go on to its next one in the same turn, and it stops when it has
//! its share of the places. So who gets a place is decided by the claims to it alone, not by how many turns others have
//! lost before: fewer places change than in the paper's table, and a change of the list can be applied to the table that
//! there is ([`update`]), with the same result as building it from nothing.

mod order;
mod update;

use crate::record::Backend;
pub(crate) use order::SIZE;
use order::{Order, shares};
use std::collections::VecDeque;

const FREE: u16 = u16::MAX;

/// The backend of each place, by its number in the list; empty for an empty list.
pub(crate) fn table(backends: &[Backend]) -> Vec<u16> {
    if backends.is_empty() {
        return Vec::new();
    }
    let orders: Vec<Order> = backends.iter().take(SIZE).map(Order::of).collect();
    let mut due = shares(&orders);
    let mut turns: Vec<u16> =
        (0..orders.len() as u16).filter(|number| due[usize::from(*number)] > 0).collect();
    turns.sort_unstable_by_key(|number| (orders[usize::from(*number)].rank, *number));
    let mut places = vec![FREE; SIZE];
    for turn in 0..SIZE as u16 {
        turns.retain(|number| {
            let backend = usize::from(*number);
            let place = &mut places[usize::from(orders[backend].place(turn))];
            if *place == FREE {
                *place = *number;
                due[backend] -= 1;
            }
            due[backend] > 0
        });
        if turns.is_empty() {
            break;
        }
    }
    places
}

/// Tables made in one batch of changes. All addresses of a service have the same lists of backends, and one change of an
/// endpoint changes all of them: each list's table is made once.
#[derive(Default)]
pub(crate) struct Tables<'a> {
    recent: VecDeque<(&'a [Backend], Vec<u16>)>,
}

impl<'a> Tables<'a> {
    /// Lists that one service may have: those of its cluster addresses and of its others, for each policy.
    const KEPT: usize = 4;

    /// The table of a list, which comes in the place of the list and table that `before` gives, if there are any.
    pub(crate) fn of(
        &mut self,
        backends: &'a [Backend],
        before: impl FnOnce() -> Option<(Vec<Backend>, Vec<u16>)>,
    ) -> &[u16] {
        let known = self.recent.iter().position(|(list, _)| *list == backends);
        let place = known.unwrap_or_else(|| {
            self.recent.truncate(Self::KEPT - 1);
            let updated = before().and_then(|(list, table)| update::update(&list, &table, backends));
            self.recent.push_front((backends, updated.unwrap_or_else(|| table(backends))));
            0
        });
        self.recent.get(place).map_or(&[], |(_, table)| table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ip;
    use proptest::prelude::*;

    fn backend(n: u16) -> Backend {
        Backend { ip: Ip::v4([10, 0, (n >> 8) as u8, n as u8]), port: 8080, flags: 0 }
    }

    fn backends(count: u16) -> Vec<Backend> {
        (0..count).map(backend).collect()
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
        let built = tables.of(&lists[0], || None).as_ptr();
        assert_eq!(tables.of(&lists[1], || None), table(&lists[1]));
        assert_eq!(tables.of(&again, || None).as_ptr(), built, "an equal list");
        for list in &lists {
            assert_eq!(tables.of(list, || None), table(list));
            assert!(tables.recent.len() <= Tables::KEPT);
        }
    }

    #[test]
    fn more_backends_than_places_leave_the_last_ones_out() {
        let list = backends(SIZE as u16 + 7);
        let places = table(&list);
        assert!(places.iter().all(|number| usize::from(*number) < SIZE));
        assert_eq!(update::update(&list, &places, &list[1..]), None);
    }

    #[test]
    fn lists_that_are_not_sorted_or_differ_much_are_built_from_nothing() {
        let list = backends(100);
        let built = table(&list);
        let turned: Vec<Backend> = list.iter().rev().copied().collect();
        let twice = [&list[..1], &list].concat();
        for after in [&turned, &twice, &list[..50].to_vec(), &Vec::new()] {
            assert_eq!(update::update(&list, &built, after), None);
        }
        assert_eq!(update::update(&list, &built[1..], &list[1..]), None, "no table");
        assert_eq!(update::update(&list, &vec![100; SIZE], &list[1..]), None, "no table of this list");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn an_updated_table_is_the_one_that_is_built_from_nothing(
            count in prop_oneof![16u16..64, 64u16..2000],
            steps in prop::collection::vec((any::<bool>(), any::<u16>(), 1usize..4), 1..12),
        ) {
            let mut list = backends(count);
            let mut places = table(&list);
            let mut updated = 0;
            for (comes, at, times) in steps {
                let mut after = list.clone();
                for n in 0..times {
                    let at = at.wrapping_mul(7 * n as u16 + 1);
                    if comes {
                        after.push(backend(at));
                    } else if after.len() > 1 {
                        after.remove(usize::from(at) % after.len());
                    }
                }
                after.sort_unstable();
                after.dedup();
                let built = table(&after);
                if let Some(new) = update::update(&list, &places, &after) {
                    prop_assert!(new == built, "{} backends after {}", after.len(), list.len());
                    updated += 1;
                }
                (list, places) = (after, built);
            }
            prop_assert!(updated > 0 || list.len() < 80, "none of the changes was small enough");
        }
    }
}
