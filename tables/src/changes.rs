//! What the last batches were about, so that a reader that remembers results of look-ups drops only those that
//! may have changed.
//!
//! A ring of words in the header, {low half of the entry's number, subject}, and a count of all entries ever
//! written. The writer stores a batch, then its entries, then the count. So a reader that loads the count and
//! looks things up afterwards sees at least what those entries speak of. An entry that was overwritten while it
//! was read shows a number that is not its own, and the reader takes everything as changed.

use crate::layout::header;
use crate::region::{Region, WriteRegion};
use crate::sync::Ordering;

/// Entries that the ring holds: a worker that the system kept from its core for a tenth of a second still finds all
/// that was noted at 80,000 changes a second.
pub(crate) const RING: u64 = 8192;
/// A batch with more subjects is noted as [`Change::Everything`].
const MAX_PER_BATCH: usize = 64;
/// Subject of an entry that is about more than a service. A service's is its number + 1.
const EVERYTHING: u32 = 0;

/// What an entry of the ring is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Anything: forget all that was derived from the tables.
    Everything,
    /// Services of this number ([`Service::id`](crate::Service)), and nothing else.
    Service(u32),
}

fn at(number: u64) -> usize {
    header::CHANGES + 8 * (number % RING) as usize
}

/// Entries ever written.
#[inline(always)]
pub(crate) fn count(region: &Region) -> u64 {
    region.load64(header::CHANGE_COUNT, Ordering::Acquire)
}

/// Calls `note` for each entry numbered `from..to`, `to` being a count loaded before; with
/// [`Change::Everything`] alone if the ring does not hold them all any more.
#[inline]
pub(crate) fn each(region: &Region, from: u64, to: u64, mut note: impl FnMut(Change)) {
    if to.wrapping_sub(from) > RING {
        return note(Change::Everything);
    }
    let mut number = from;
    while number != to {
        let word = region.load64(at(number), Ordering::Acquire);
        match word as u32 {
            _ if (word >> 32) as u32 != number as u32 => return note(Change::Everything),
            EVERYTHING => note(Change::Everything),
            subject => note(Change::Service(subject - 1)),
        }
        number = number.wrapping_add(1);
    }
}

/// The writer's notes on the batch that it is storing.
#[derive(Default)]
pub(crate) struct Noted {
    services: Vec<u32>,
    everything: bool,
}

impl Noted {
    /// The batch concerns more than services.
    pub(crate) fn everything() -> Noted {
        Noted { services: Vec::new(), everything: true }
    }

    /// The batch concerns a service of this number.
    pub(crate) fn service(&mut self, id: u32) {
        if self.services.len() == MAX_PER_BATCH || id == u32::MAX {
            self.everything = true;
        } else if !self.services.contains(&id) {
            self.services.push(id);
        }
    }

    /// Publishes the entries; the batch must be stored.
    pub(crate) fn publish(self, region: &WriteRegion) {
        let mut number = region.load64(header::CHANGE_COUNT, Ordering::Relaxed);
        let mut put = |subject: u32| {
            let word = (number << 32) | u64::from(subject);
            region.store64(at(number), word, Ordering::Release);
            number = number.wrapping_add(1);
        };
        if self.everything {
            put(EVERYTHING);
        } else {
            self.services.iter().for_each(|id| put(id + 1));
        }
        region.store64(header::CHANGE_COUNT, number, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn read(region: &Region, from: u64) -> Vec<Change> {
        let mut out = Vec::new();
        each(region, from, count(region), |change| out.push(change));
        out
    }

    fn services(ids: impl IntoIterator<Item = u32>) -> Noted {
        let mut noted = Noted::default();
        ids.into_iter().for_each(|id| noted.service(id));
        noted
    }

    #[test]
    fn each_subject_of_a_batch_is_told_once_and_a_large_batch_is_told_as_everything() {
        let region = WriteRegion::new(Region::heap(crate::layout::HEADER_LEN));
        services([7, 0, 7]).publish(&region);
        assert_eq!(read(&region, 0), [Change::Service(7), Change::Service(0)]);
        let seen = count(&region);
        Noted::everything().publish(&region);
        services([u32::MAX]).publish(&region);
        assert_eq!(read(&region, seen), [Change::Everything; 2]);
        let seen = count(&region);
        services(0..=MAX_PER_BATCH as u32).publish(&region);
        assert_eq!(read(&region, seen), [Change::Everything]);
    }

    #[test]
    fn a_reader_that_missed_entries_takes_everything_as_changed() {
        let region = WriteRegion::new(Region::heap(crate::layout::HEADER_LEN));
        (0..RING as u32).for_each(|id| services([id]).publish(&region));
        let all: Vec<Change> = (0..RING as u32).map(Change::Service).collect();
        assert_eq!(read(&region, 0), all);
        services([1]).publish(&region);
        assert_eq!(read(&region, 0), [Change::Everything], "entry 0 is overwritten");
        // As if the writer had lapped the reader after the reader loaded the count.
        let mut out = Vec::new();
        each(&region, 0, RING, |change| out.push(change));
        assert_eq!(out, [Change::Everything]);
    }
}
