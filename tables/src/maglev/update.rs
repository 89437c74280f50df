//! A table is made into that of a list with a few other backends.
//!
//! In a table no backend would have a place and be taken for it: nobody who holds it claimed it later, and no place
//! of the backend's own is a later turn of its. A change of the list leaves such pairs of backend and place: for places whose backend
//! has gone, for backends that have come or whose share has grown. The pair with the earliest claim is given its way; that may free another
//! place, or leave another backend without one; and so on until there is no such pair. Since claims are in one order for all, what
//! the earliest claim has been given stays so, and what comes out is the one table that has no such pair, which is also the one that
//! is built from nothing.

use super::order::{self, Order, SIZE, shares};
use crate::record::Backend;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

const FREE: u16 = u16::MAX;
/// A change of more than one backend of so many is cheaper to build from nothing.
const FEW: usize = 16;
/// Backends that are looked at together.
const CHUNK: usize = 64;

/// Which claim is first: turn, then rank, then number in the list.
type Claim = (u16, u64, u16);

/// What [`Update::offer`] reads of all backends, for the processor's vector instructions.
struct Columns {
    firsts: Vec<u16>,
    inverses: Vec<u16>,
    /// The backend takes a free place if it is an earlier turn than this.
    limits: Vec<i16>,
}

impl Columns {
    /// The turn on which each backend claims a place, [`i16::MAX`] for one that does not take it.
    fn turns(&self, backends: Range<usize>, place: u16) -> impl Iterator<Item = i16> {
        let (firsts, inverses) = (&self.firsts[backends.clone()], &self.inverses[backends.clone()]);
        let columns = firsts.iter().zip(inverses).zip(&self.limits[backends]);
        columns.map(move |((first, inverse), limit)| {
            let turn = order::turn(*first, *inverse, place) as i16;
            if turn < *limit { turn } else { i16::MAX }
        })
    }
}

/// A pair of backend and place that may have to be given its way.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    claim: Claim,
    place: u16,
    /// Found for the backend, which has too few places; else for the place, which is free.
    sought: bool,
}

struct Update {
    orders: Vec<Order>,
    shares: Vec<u16>,
    /// The backend of each place.
    holders: Vec<u16>,
    /// The turn of its holder at each place.
    turns: Vec<u16>,
    /// Number of places of each backend.
    held: Vec<u16>,
    /// No later turn of the backend is held by it.
    last: Vec<u16>,
    columns: Columns,
    /// No earlier turn needs to be looked at when the backend seeks a place.
    next: Vec<u16>,
    /// Turn of the first pair in the queue that the backend sought, [`FREE`] if there is none.
    sought: Vec<u16>,
    queue: BinaryHeap<Reverse<Pair>>,
}

/// The table of `after`, from that of `before`. `None` if both differ too much, or are not sorted.
pub(super) fn update(before: &[Backend], table: &[u16], after: &[Backend]) -> Option<Vec<u16>> {
    if table.len() != SIZE || after.is_empty() || after.len() > SIZE {
        return None;
    }
    let (numbers, changes) = renumber(before, after)?;
    if changes * FEW > after.len() {
        return None;
    }
    let mut update = Update::new(after, table, &numbers)?;
    update.begin();
    update.settle();
    update.holders.iter().all(|number| *number != FREE).then_some(update.holders)
}

fn identity(backend: &Backend) -> (crate::Ip, u16) {
    (backend.ip, backend.port)
}

/// The number in `after` of each backend of `before`, [`FREE`] for one that has gone; and how many differ.
fn renumber(before: &[Backend], after: &[Backend]) -> Option<(Vec<u16>, usize)> {
    let sorted = |list: &[Backend]| list.windows(2).all(|pair| identity(&pair[0]) < identity(&pair[1]));
    if !sorted(before) || !sorted(after) {
        return None;
    }
    let (mut place, mut kept) = (0, 0);
    let number = |backend: &Backend| {
        while place < after.len() && identity(&after[place]) < identity(backend) {
            place += 1;
        }
        let is_there = place < after.len() && identity(&after[place]) == identity(backend);
        kept += usize::from(is_there);
        if is_there { place as u16 } else { FREE }
    };
    let numbers = before.iter().map(number).collect();
    Some((numbers, before.len() + after.len() - 2 * kept))
}

impl Update {
    /// The table with the numbers of the new list, in which places of those who have gone are free. `None` if it is none.
    fn new(after: &[Backend], table: &[u16], numbers: &[u16]) -> Option<Update> {
        let orders: Vec<Order> = after.iter().map(Order::of).collect();
        let (shares, count) = (shares(&orders), after.len());
        let (mut held, mut last) = (vec![0; count], vec![0; count]);
        let (mut holders, mut turns) = (vec![FREE; SIZE], vec![FREE; SIZE]);
        for (place, old) in table.iter().enumerate() {
            let number = *numbers.get(usize::from(*old))?;
            if number == FREE {
                continue;
            }
            let backend = usize::from(number);
            let turn = orders[backend].turn(place as u16);
            (holders[place], turns[place]) = (number, turn);
            held[backend] += 1;
            last[backend] = turn.max(last[backend]);
        }
        let next = held.iter().zip(&last).map(|(held, last)| if *held > 0 { last + 1 } else { 0 }).collect();
        let columns = Columns {
            firsts: orders.iter().map(|order| order.first).collect(),
            inverses: orders.iter().map(|order| order.inverse).collect(),
            limits: vec![SIZE as i16; count],
        };
        let sought = vec![FREE; count];
        let queue = BinaryHeap::new();
        Some(Update { orders, shares, holders, turns, held, last, columns, next, sought, queue })
    }

    /// Has all have at most their share, and finds the first pairs.
    fn begin(&mut self) {
        for backend in 0..self.orders.len() {
            while self.held[backend] > self.shares[backend] {
                self.held[backend] -= 1;
                self.drop_last(backend);
            }
            if self.is_full(backend) {
                self.close(backend);
            }
        }
        (0..SIZE)
            .filter(|place| self.holders[*place] == FREE)
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|place| self.offer(place as u16));
        for backend in 0..self.orders.len() {
            self.seek(backend);
        }
    }

    /// Gives the pair with the earliest claim its way, until there is none.
    fn settle(&mut self) {
        while let Some(Reverse(Pair { claim, place, sought })) = self.queue.pop() {
            let (turn, _, number) = claim;
            let backend = usize::from(number);
            if sought {
                if self.sought[backend] == turn {
                    self.sought[backend] = FREE;
                }
                if !self.is_full(backend) {
                    if self.holders[usize::from(place)] != number && self.is_earlier(claim, place) {
                        self.give(backend, place, turn);
                    }
                    self.seek(backend);
                }
            } else if self.holders[usize::from(place)] == FREE {
                if (turn as i16) < self.columns.limits[backend] {
                    self.give(backend, place, turn);
                } else {
                    self.offer(place);
                }
            }
        }
    }

    fn is_full(&self, backend: usize) -> bool {
        self.held[backend] == self.shares[backend]
    }

    /// Whether a place would rather have this claim than what it has.
    fn is_earlier(&self, claim: Claim, place: u16) -> bool {
        let (holder, turn) = (self.holders[usize::from(place)], self.turns[usize::from(place)]);
        turn > claim.0 || turn == claim.0 && claim < (turn, self.orders[usize::from(holder)].rank, holder)
    }

    /// Makes a backend the holder of a place, which somebody else may lose, or itself another.
    fn give(&mut self, backend: usize, place: u16, turn: u16) {
        let at = usize::from(place);
        let loser = std::mem::replace(&mut self.holders[at], backend as u16);
        self.turns[at] = turn;
        if self.is_full(backend) {
            let free = self.drop_last(backend);
            self.close(backend);
            self.offer(free);
        } else {
            self.held[backend] += 1;
            self.last[backend] = turn.max(self.last[backend]);
            if self.is_full(backend) {
                self.close(backend);
            }
        }
        if loser != FREE {
            let loser = usize::from(loser);
            self.held[loser] -= 1;
            self.columns.limits[loser] = SIZE as i16;
            self.seek(loser);
        }
    }

    /// Frees the place of a backend's last turn; returns it.
    fn drop_last(&mut self, backend: usize) -> u16 {
        let turn = self.find_last(backend);
        let place = self.orders[backend].place(turn);
        (self.holders[usize::from(place)], self.turns[usize::from(place)]) = (FREE, FREE);
        place
    }

    /// The last turn that a backend holds.
    fn find_last(&mut self, backend: usize) -> u16 {
        let mut turn = self.last[backend];
        while turn > 0 && usize::from(self.holders[usize::from(self.orders[backend].place(turn))]) != backend
        {
            turn -= 1;
        }
        self.last[backend] = turn;
        turn
    }

    /// Lets a backend that has its share take only what is better than its last. What is freed beyond that is not offered to it, so
    /// it has to look there if it loses a place.
    fn close(&mut self, backend: usize) {
        let last = self.find_last(backend);
        self.columns.limits[backend] = if self.held[backend] > 0 { last as i16 } else { 0 };
        self.next[backend] = self.next[backend].min(last + u16::from(self.held[backend] > 0));
    }

    /// Finds the earliest claim to a free place.
    fn offer(&mut self, place: u16) {
        let Some(earliest) = self.columns.turns(0..self.orders.len(), place).min() else { return };
        let mut claim: Option<Claim> = None;
        for from in (0..self.orders.len()).step_by(CHUNK) {
            let chunk = from..(from + CHUNK).min(self.orders.len());
            if self.columns.turns(chunk.clone(), place).fold(false, |any, turn| any | (turn == earliest)) {
                let those =
                    chunk.clone().zip(self.columns.turns(chunk, place)).filter(|(_, turn)| *turn == earliest);
                let claims =
                    those.map(|(number, turn)| (turn as u16, self.orders[number].rank, number as u16));
                claim = claims.chain(claim).min();
            }
        }
        if earliest < i16::MAX {
            self.queue.extend(claim.map(|claim| Reverse(Pair { claim, place, sought: false })));
        }
    }

    /// Finds the next place that a backend with too few would be taken for.
    fn seek(&mut self, backend: usize) {
        if self.is_full(backend) {
            return;
        }
        let order = self.orders[backend];
        for turn in self.next[backend]..self.sought[backend].min(SIZE as u16) {
            let (claim, place) = ((turn, order.rank, backend as u16), order.place(turn));
            if usize::from(self.holders[usize::from(place)]) != backend && self.is_earlier(claim, place) {
                (self.next[backend], self.sought[backend]) = (turn, turn);
                self.queue.push(Reverse(Pair { claim, place, sought: true }));
                return;
            }
        }
        self.next[backend] = self.sought[backend].min(SIZE as u16);
    }
}
