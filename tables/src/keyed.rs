//! A keyed table in shared memory: a chained hash of copy-on-write slots.
//!
//! A bucket holds the link to its first slot; a slot holds {link to the next, key, value}. A link is a
//! `u32`: slot number + 1, or 0. Insert, replace and delete are each one publishing store, to a link:
//! - insert: the new slot points at the old head, then the bucket at the new slot;
//! - replace: the new slot takes over the old one's successor, then the predecessor points at the new slot;
//! - delete: the predecessor points at the successor.
//!
//! A retired slot keeps its contents until every reader has moved on, so a reader that stands on one
//! still reaches every later slot of its chain. A writer killed before the publishing store has changed
//! nothing that anyone can reach.

use crate::pool::Pool;
use crate::region::{Region, WriteRegion, words_len};
use crate::sync::Ordering;
use bytemuck::Pod;
use std::marker::PhantomData;

/// Largest key, in 64-bit words.
const KEY_WORDS: usize = 3;

/// Where a table lies, and how to read it.
pub(crate) struct Keyed<K, V> {
    buckets: usize,
    bucket_count: u32,
    slots: usize,
    slot_count: u32,
    /// Entries that the table may hold; there are more slots, so that a full table can be rewritten.
    pub(crate) capacity: u32,
    high_water_offset: usize,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> Clone for Keyed<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Keyed<K, V> {}

/// Both halves of the 128-bit product, so that every input bit reaches the low bits.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

/// The table's memory holds a link that no writer makes.
#[derive(Debug)]
pub(crate) struct BrokenChain;

impl<K: Pod, V: Pod> Keyed<K, V> {
    /// Bytes from one slot to the next: a power of two up to a cache line, whole lines beyond, so that a
    /// small slot never straddles two lines.
    const STRIDE: usize = {
        let len = 8 + words_len::<K>() + words_len::<V>();
        if len <= 64 { len.next_power_of_two() } else { len.next_multiple_of(64) }
    };
    const VALUE: usize = 8 + words_len::<K>();

    /// Lays a table out from `*end` on and moves `*end` behind it.
    pub(crate) fn lay_out(end: &mut usize, capacity: u32, high_water_offset: usize) -> Keyed<K, V> {
        const { assert!(words_len::<K>() <= 8 * KEY_WORDS) }
        let bucket_count = (2 * capacity.max(1)).next_power_of_two();
        let slot_count = capacity * 2 + 8;
        let buckets = end.next_multiple_of(64);
        let slots = (buckets + 4 * bucket_count as usize).next_multiple_of(64);
        *end = slots + slot_count as usize * Self::STRIDE;
        Keyed { buckets, bucket_count, slots, slot_count, capacity, high_water_offset, types: PhantomData }
    }

    /// What a change of the layout shows in.
    pub(crate) const fn shape() -> [usize; 3] {
        [size_of::<K>(), size_of::<V>(), Self::STRIDE]
    }

    #[inline(always)]
    fn key_words(key: &K) -> [u64; KEY_WORDS] {
        let mut words = [0; KEY_WORDS];
        let (whole, tail) = bytemuck::bytes_of(key).as_chunks::<8>();
        for (word, bytes) in words.iter_mut().zip(whole) {
            *word = u64::from_ne_bytes(*bytes);
        }
        if !tail.is_empty() {
            let mut bytes = [0; 8];
            bytes.iter_mut().zip(tail).for_each(|(byte, new)| *byte = *new);
            words[whole.len()] = u64::from_ne_bytes(bytes);
        }
        words
    }

    /// Offset of the bucket link for a key. The seed is random per file, so that nobody who chooses
    /// addresses can make all of them collide.
    #[inline(always)]
    fn bucket(&self, words: &[u64; KEY_WORDS], seed: u64) -> usize {
        let mut hash = seed;
        for word in &words[..words_len::<K>() / 8] {
            hash = fold(hash ^ word, 0x9e37_79b9_7f4a_7c15);
        }
        let hash = fold(hash ^ seed, 0xd6e8_feb8_6659_fd93);
        self.buckets + 4 * (hash as usize & (self.bucket_count as usize - 1))
    }

    /// Offset of the slot behind a link; `None` at the end of the chain or if there is no such slot.
    #[inline(always)]
    fn slot(&self, link: u32) -> Option<usize> {
        let index = link.wrapping_sub(1);
        (index < self.slot_count).then(|| self.slots + index as usize * Self::STRIDE)
    }

    #[inline(always)]
    fn key_is(&self, region: &Region, slot: usize, words: &[u64; KEY_WORDS]) -> bool {
        words[..words_len::<K>() / 8]
            .iter()
            .enumerate()
            .all(|(i, word)| region.load64(slot + 8 + 8 * i, Ordering::Relaxed) == *word)
    }

    /// (offset of the link that leads to the key's slot, link), or (offset of the bucket's link, 0).
    #[inline(always)]
    fn locate(&self, region: &Region, seed: u64, key: &K) -> (usize, u32) {
        let words = Self::key_words(key);
        let bucket = self.bucket(&words, seed);
        let mut at = bucket;
        // Bounded, because a broken file may hold a loop.
        for _ in 0..self.slot_count {
            let link = region.load32(at, Ordering::Acquire);
            let Some(slot) = self.slot(link) else { break };
            if self.key_is(region, slot, &words) {
                return (at, link);
            }
            at = slot;
        }
        (bucket, 0)
    }

    /// The value under a key.
    #[inline(always)]
    pub(crate) fn get(&self, region: &Region, seed: u64, key: &K) -> Option<V> {
        let (_, link) = self.locate(region, seed, key);
        self.slot(link).map(|slot| region.read(slot + Self::VALUE))
    }

    /// A number for a key that is in the table: that of its slot, which no other key has until the key is set anew or
    /// deleted and every reader has moved on.
    #[inline]
    pub(crate) fn number(&self, region: &Region, seed: u64, key: &K) -> Option<u32> {
        let (_, link) = self.locate(region, seed, key);
        self.slot(link).map(|_| link)
    }

    /// Key and value under a [`number`](Self::number).
    pub(crate) fn numbered(&self, region: &Region, number: u32) -> Option<(K, V)> {
        self.slot(number).map(|slot| (region.read(slot + 8), region.read(slot + Self::VALUE)))
    }

    /// Every entry, in no particular order.
    pub(crate) fn iter<'a>(&self, region: &'a Region) -> KeyedIter<'a, K, V> {
        KeyedIter { table: *self, region, bucket: 0, link: 0, left: self.slot_count }
    }

    /// Which slots are reachable, and how many; an error if a link leads nowhere or twice to one slot.
    fn reachable(&self, region: &Region) -> Result<(Vec<bool>, u32), BrokenChain> {
        let mut seen = vec![false; self.slot_count as usize];
        let mut count = 0;
        for bucket in 0..self.bucket_count as usize {
            let mut link = region.load32(self.buckets + 4 * bucket, Ordering::Acquire);
            while link != 0 {
                let slot = self.slot(link).ok_or(BrokenChain)?;
                if std::mem::replace(&mut seen[link as usize - 1], true) {
                    return Err(BrokenChain);
                }
                count += 1;
                link = region.load32(slot, Ordering::Acquire);
            }
        }
        Ok((seen, count))
    }
}

/// The entries of a table. Ends even where a broken file holds a loop.
pub(crate) struct KeyedIter<'a, K, V> {
    table: Keyed<K, V>,
    region: &'a Region,
    bucket: u32,
    link: u32,
    left: u32,
}

impl<K: Pod, V: Pod> Iterator for KeyedIter<'_, K, V> {
    type Item = (K, V);

    fn next(&mut self) -> Option<(K, V)> {
        loop {
            if let Some(slot) = self.table.slot(self.link) {
                self.left = self.left.checked_sub(1)?;
                self.link = self.region.load32(slot, Ordering::Acquire);
                let value = slot + Keyed::<K, V>::VALUE;
                return Some((self.region.read(slot + 8), self.region.read(value)));
            }
            if self.bucket == self.table.bucket_count {
                return None;
            }
            let offset = self.table.buckets + 4 * self.bucket as usize;
            self.link = self.region.load32(offset, Ordering::Acquire);
            self.bucket += 1;
        }
    }
}

/// The writer's side of a keyed table.
pub(crate) struct KeyedWriter<K, V> {
    pub(crate) table: Keyed<K, V>,
    pub(crate) pool: Pool,
    /// Entries held.
    pub(crate) used: u32,
}

impl<K: Pod, V: Pod> KeyedWriter<K, V> {
    /// An empty table.
    pub(crate) fn new(table: Keyed<K, V>) -> KeyedWriter<K, V> {
        KeyedWriter { table, pool: Pool::new(table.slot_count, table.high_water_offset), used: 0 }
    }

    /// Takes over from a former writer; see [`Pool::recover`].
    pub(crate) fn recover(&mut self, region: &WriteRegion, generation: u64) -> Result<(), BrokenChain> {
        let (in_use, used) = self.table.reachable(region)?;
        self.pool.recover(region, &in_use, generation);
        self.used = used;
        Ok(())
    }

    /// Inserts or replaces; the slot replaced is retired under `generation`. Returns the former value.
    pub(crate) fn set(
        &mut self,
        region: &WriteRegion,
        seed: u64,
        key: &K,
        value: &V,
        generation: u64,
    ) -> Option<V> {
        let new = self.pool.take(region);
        let slot = self.table.slots + new as usize * Keyed::<K, V>::STRIDE;
        let (at, link) = self.table.locate(region, seed, key);
        let old = self.table.slot(link);
        region.write(slot + 8, key);
        region.write(slot + Keyed::<K, V>::VALUE, value);
        region.store32(slot, region.load32(old.unwrap_or(at), Ordering::Relaxed), Ordering::Relaxed);
        region.store32(at, new + 1, Ordering::Release);
        if old.is_some() {
            self.pool.retire(link - 1, generation);
        } else {
            self.used += 1;
        }
        old.map(|old| region.read(old + Keyed::<K, V>::VALUE))
    }

    /// Deletes; the slot is retired under `generation`. Returns the former value.
    pub(crate) fn delete(&mut self, region: &WriteRegion, seed: u64, key: &K, generation: u64) -> Option<V> {
        let (at, link) = self.table.locate(region, seed, key);
        let old = self.table.slot(link)?;
        region.store32(at, region.load32(old, Ordering::Relaxed), Ordering::Release);
        self.pool.retire(link - 1, generation);
        self.used -= 1;
        Some(region.read(old + Keyed::<K, V>::VALUE))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn table() -> (WriteRegion, KeyedWriter<u64, u64>) {
        let mut end = 64;
        let table = Keyed::lay_out(&mut end, 4, 8);
        (WriteRegion::new(Region::heap(end)), KeyedWriter::new(table))
    }

    #[test]
    fn a_chain_that_loops_ends_every_walk() {
        let (region, mut writer) = table();
        for key in 0..4 {
            writer.set(&region, 0, &key, &key, 1);
        }
        // Every slot leads to the first one, and so does every bucket.
        for link in 1..=writer.table.slot_count {
            let slot = writer.table.slot(link).unwrap();
            region.store32(slot, 1, Ordering::Relaxed);
        }
        for bucket in 0..writer.table.bucket_count as usize {
            region.store32(writer.table.buckets + 4 * bucket, 1, Ordering::Relaxed);
        }
        assert_eq!(writer.table.get(&region, 0, &0), Some(0));
        assert_eq!(writer.table.get(&region, 0, &99), None);
        assert!(writer.table.iter(&region).count() <= writer.table.slot_count as usize);
        assert!(writer.recover(&region, 2).is_err());
    }

    #[test]
    fn a_link_that_leads_nowhere_ends_the_chain() {
        let (region, mut writer) = table();
        writer.set(&region, 0, &7, &7, 1);
        for bucket in 0..writer.table.bucket_count as usize {
            region.store32(writer.table.buckets + 4 * bucket, u32::MAX, Ordering::Relaxed);
        }
        assert_eq!(writer.table.get(&region, 0, &7), None);
        assert_eq!(writer.table.iter(&region).count(), 0);
        assert!(writer.recover(&region, 2).is_err());
    }
}
