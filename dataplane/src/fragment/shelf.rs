//! Where fragments wait that came before their datagram's first: a fixed number of places, in one list per datagram.

use crate::counters::Counters;
use crate::parse::Parsed;
use crate::parse6::Parsed6;
use fairway_pmd::{Frame, FrameCache};
use fairway_tables::DropReason;

/// A fragment of either family, as it was parsed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stored {
    V4(Parsed),
    V6(Parsed6),
}

impl From<Parsed> for Stored {
    fn from(parsed: Parsed) -> Stored {
        Stored::V4(parsed)
    }
}

impl From<Parsed6> for Stored {
    fn from(parsed: Parsed6) -> Stored {
        Stored::V6(parsed)
    }
}

/// Where frames end that wait in vain.
pub(crate) struct Bin<'a> {
    pub(crate) cache: &'a mut FrameCache,
    pub(crate) counters: &'a mut Counters,
}

impl Bin<'_> {
    fn take(&mut self, frame: Frame, reason: DropReason) {
        self.counters.dropped(reason, frame.port());
        self.cache.free(frame);
    }
}

const NOWHERE: u16 = u16::MAX;

/// Fragments in the order in which they came.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    first: u16,
    last: u16,
}

impl List {
    pub(super) const EMPTY: List = List { first: NOWHERE, last: NOWHERE };
}

struct Place {
    /// The next in the same list, or among the free places.
    next: u16,
    content: Option<(Stored, Frame)>,
}

/// See the module's head.
pub(super) struct Shelf {
    places: Box<[Place]>,
    free: u16,
    len: usize,
}

impl Shelf {
    /// Room for `places` fragments, fewer than 65,535.
    pub(super) fn new(places: u16) -> Shelf {
        let place =
            |index| Place { next: if index + 1 < places { index + 1 } else { NOWHERE }, content: None };
        Shelf { places: (0..places).map(place).collect(), free: 0, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_full(&self) -> bool {
        self.free == NOWHERE
    }

    /// Appends to a list; gives the frame back if there is no place.
    pub(super) fn put(&mut self, list: &mut List, stored: Stored, frame: Frame) -> Result<(), Frame> {
        let index = self.free;
        let Some(place) = self.places.get_mut(usize::from(index)) else { return Err(frame) };
        self.free = place.next;
        *place = Place { next: NOWHERE, content: Some((stored, frame)) };
        self.len += 1;
        match self.places.get_mut(usize::from(list.last)) {
            Some(last) => last.next = index,
            None => list.first = index,
        }
        list.last = index;
        Ok(())
    }

    /// Takes the first of a list.
    pub(super) fn take(&mut self, list: &mut List) -> Option<(Stored, Frame)> {
        let index = list.first;
        let place = self.places.get_mut(usize::from(index))?;
        list.first = place.next;
        if list.first == NOWHERE {
            list.last = NOWHERE;
        }
        place.next = self.free;
        self.free = index;
        self.len -= 1;
        place.content.take()
    }

    /// Drops a whole list for a reason; returns how many there were.
    pub(super) fn discard(&mut self, list: &mut List, reason: DropReason, bin: &mut Bin<'_>) -> usize {
        let mut count = 0;
        while let Some((_, frame)) = self.take(list) {
            bin.take(frame, reason);
            count += 1;
        }
        count
    }
}
