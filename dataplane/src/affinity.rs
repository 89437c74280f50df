//! `sessionAffinity: ClientIP`: which backend a client of a service was given last, so that its next connection goes there
//! too while less than the service's timeout has passed in between.
//!
//! A table of fixed size in a file of the run folder, shared by all workers and found again by the next process: sets of
//! [`WAYS`] places, of which a client of a service may have any one in its set. In a full set the client that was seen
//! longest ago gives way. Nothing is ever swept: age is looked at when a place is read.
//!
//! A place is written under an odd sequence number, and read without a lock: a reader that sees it change finds nothing,
//! and the client is given a backend anew. A place whose writer died keeps its odd number and is not used again, which
//! costs one place for each worker killed at that very moment.

// UNSAFETY: a mapping is viewed as a slice of atomics here.
#![allow(unsafe_code)]

use crate::hash::fold_multiply;
use fairway_tables::Ip;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Places among which one client of a service may have its own.
pub const WAYS: usize = 8;
/// Places in all: clients of services that are remembered, 64 bytes each.
pub const PLACES: usize = 1 << 18;
/// Kind and version of the file.
const MAGIC: [u8; 8] = *b"FWaffin1";
const HEADER_LEN: usize = 4096;

/// The table's file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; check that the run folder exists, is writable and has room")]
pub struct AffinityError {
    path: PathBuf,
    source: io::Error,
}

/// One client of one service.
#[repr(C, align(64))]
struct Place {
    /// Even: stable. Odd: being written.
    sequence: AtomicU32,
    /// Second of `CLOCK_MONOTONIC` of the client's last connection.
    last_seen_s: AtomicU32,
    /// `Service::id` plus one; zero: nobody has the place.
    service: AtomicU32,
    /// The backend's port.
    port: AtomicU32,
    client: [AtomicU32; 4],
    backend: [AtomicU32; 4],
    reserved: [AtomicU32; 4],
}

const _: () = assert!(size_of::<Place>() == 64);

/// What a place holds.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Record {
    service: u32,
    client: Ip,
    backend: (Ip, u16),
    last_seen_s: u32,
}

impl Place {
    /// What the place holds; `None` if that is nothing, or just changing.
    fn read(&self) -> Option<Record> {
        let before = self.sequence.load(Ordering::Acquire);
        let record = Record {
            service: self.service.load(Ordering::Relaxed).checked_sub(1)?,
            client: load(&self.client),
            backend: (load(&self.backend), self.port.load(Ordering::Relaxed) as u16),
            last_seen_s: self.last_seen_s.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        (before & 1 == 0 && self.sequence.load(Ordering::Relaxed) == before).then_some(record)
    }

    /// Writes a record, unless somebody else is writing here.
    fn write(&self, record: &Record) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        let odd = sequence | 1;
        if sequence == odd
            || self.sequence.compare_exchange(sequence, odd, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return;
        }
        fence(Ordering::Release);
        self.service.store(record.service.wrapping_add(1), Ordering::Relaxed);
        store(&self.client, record.client);
        store(&self.backend, record.backend.0);
        self.port.store(record.backend.1.into(), Ordering::Relaxed);
        self.last_seen_s.store(record.last_seen_s, Ordering::Relaxed);
        self.sequence.store(odd.wrapping_add(1), Ordering::Release);
    }
}

fn load(words: &[AtomicU32; 4]) -> Ip {
    let mut bytes = [0; 16];
    for (part, word) in bytes.chunks_exact_mut(4).zip(words) {
        part.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
    Ip(bytes)
}

fn words_of(ip: Ip) -> [u32; 4] {
    let (parts, _) = ip.0.as_chunks::<4>();
    std::array::from_fn(|i| u32::from_ne_bytes(parts[i]))
}

fn store(words: &[AtomicU32; 4], ip: Ip) {
    words.iter().zip(words_of(ip)).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
}

/// See the module's head. Clones share the table.
#[derive(Clone)]
pub struct Affinity {
    map: Arc<MmapRaw>,
    places: usize,
}

impl Affinity {
    /// Opens the table in a file, with the clients that are in it, or makes it. A file of another version is made anew.
    ///
    /// # Errors
    /// If the file cannot be made or mapped.
    pub fn open(path: &Path) -> Result<Affinity, AffinityError> {
        let fail = |source| AffinityError { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(fail)?;
        prepare(&file).map_err(fail)?;
        let map = MmapOptions::new().len(file_len(PLACES)).map_raw(&file).map_err(fail)?;
        Ok(Affinity { map: Arc::new(map), places: PLACES })
    }

    /// A table on the heap.
    ///
    /// # Errors
    /// If there is no memory for it.
    ///
    /// # Panics
    /// If `places` is no multiple of [`WAYS`], or zero.
    pub fn heap(places: usize) -> io::Result<Affinity> {
        assert!(places > 0 && places.is_multiple_of(WAYS), "whole sets of {WAYS}");
        let map = MmapOptions::new().len(file_len(places)).map_anon()?;
        Ok(Affinity { map: Arc::new(map.into()), places })
    }

    /// The backend that a client of a service was given less than `timeout_s` ago.
    pub fn find(&self, service: u32, client: Ip, timeout_s: u32, now_s: u32) -> Option<(Ip, u16)> {
        let of_client = |record: &Record| record.service == service && record.client == client;
        let record = self.set(service, client).iter().filter_map(Place::read).find(of_client)?;
        // Seen in the future: before the machine was started anew.
        let idle_s = now_s.checked_sub(record.last_seen_s)?;
        (idle_s < timeout_s).then_some(record.backend)
    }

    /// Notes the backend that a client of a service is given now.
    pub fn remember(&self, service: u32, client: Ip, backend: (Ip, u16), now_s: u32) {
        let set = self.set(service, client);
        let own = set.iter().find(|place| {
            place.read().is_some_and(|record| record.service == service && record.client == client)
        });
        // Free places were seen longest ago of all.
        let age = |place: &&Place| match place.read() {
            Some(record) => now_s.saturating_sub(record.last_seen_s),
            None if place.sequence.load(Ordering::Relaxed) & 1 == 0 => u32::MAX,
            None => 0,
        };
        if let Some(place) = own.or_else(|| set.iter().max_by_key(age)) {
            place.write(&Record { service, client, backend, last_seen_s: now_s });
        }
    }

    /// The places that a client of a service may have. The same in every process: no seed is drawn, for one who could
    /// aim at a set would only make others be given backends anew.
    fn set(&self, service: u32, client: Ip) -> &[Place] {
        let hash = words_of(client).iter().fold(u64::from(service), |hash, word| {
            fold_multiply(hash ^ u64::from(*word), 0x9e37_79b9_7f4a_7c15) ^ 0xd6e8_feb8_6659_fd93
        });
        let first = hash as usize % (self.places / WAYS) * WAYS;
        &self.all()[first..first + WAYS]
    }

    fn all(&self) -> &[Place] {
        // SAFETY: the mapping holds `places` places behind the header, page-aligned; `Place` is made of atomics only,
        // so every bit pattern is valid and concurrent access from anywhere is no race.
        unsafe {
            let base = self.map.as_mut_ptr().add(HEADER_LEN).cast::<Place>();
            std::slice::from_raw_parts(base, self.places)
        }
    }
}

fn file_len(places: usize) -> usize {
    HEADER_LEN + places * size_of::<Place>()
}

/// Makes the file what this version expects, unless it is that already.
fn prepare(file: &File) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let len = file_len(PLACES) as u64;
    let mut start = [0; MAGIC.len()];
    let is_ours =
        file.metadata()?.len() == len && file.read_exact_at(&mut start, 0).is_ok() && start == MAGIC;
    if !is_ours {
        file.set_len(0)?;
        file.set_len(len)?;
        file.write_all_at(&MAGIC, 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: (Ip, u16) = (Ip::v4([10, 0, 0, 9]), 80);

    fn client(n: u32) -> Ip {
        Ip::v4(n.to_be_bytes())
    }

    #[test]
    fn a_client_is_remembered_for_its_service_until_its_time_is_over() {
        let table = Affinity::heap(64).unwrap();
        assert_eq!(table.find(7, client(1), 100, 1000), None);
        table.remember(7, client(1), B, 1000);
        assert_eq!(table.find(7, client(1), 100, 1099), Some(B));
        assert_eq!(table.find(7, client(1), 100, 1100), None);
        assert_eq!((table.find(8, client(1), 100, 1000), table.find(7, client(2), 100, 1000)), (None, None));
        assert_eq!(table.find(7, client(1), 100, 900), None, "from before the machine's start");
        let other = (B.0, 81);
        table.remember(7, client(1), other, 1050);
        assert_eq!(table.find(7, client(1), 100, 1149), Some(other));
    }

    #[test]
    fn in_a_full_set_the_client_seen_longest_ago_gives_way() {
        let table = Affinity::heap(WAYS).unwrap();
        (0..WAYS as u32).for_each(|n| table.remember(1, client(n), B, 1000 + n));
        table.remember(1, client(0), B, 2000);
        table.remember(1, client(99), B, 2001);
        let found = |n| table.find(1, client(n), 10_000, 2002).is_some();
        assert_eq!((found(0), found(1), found(2), found(99)), (true, false, true, true));
    }

    #[test]
    fn the_next_process_finds_what_this_one_remembered_and_a_foreign_file_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("affinity");
        Affinity::open(&path).unwrap().remember(3, client(5), B, 1000);
        assert_eq!(Affinity::open(&path).unwrap().find(3, client(5), 100, 1001), Some(B));
        std::fs::write(&path, "something else").unwrap();
        let table = Affinity::open(&path).unwrap();
        assert_eq!(table.find(3, client(5), 100, 1001), None);
        table.remember(3, client(5), B, 1000);
        assert_eq!(table.find(3, client(5), 100, 1001), Some(B));
        let Err(error) = Affinity::open(&dir.path().join("no/affinity")) else { panic!("no folder") };
        assert!(error.to_string().contains("check that the run folder exists"), "{error}");
    }

    #[test]
    fn a_place_that_is_being_written_is_neither_read_nor_written() {
        let table = Affinity::heap(WAYS).unwrap();
        table.remember(1, client(1), B, 1000);
        let place = table.all().iter().find(|place| place.read().is_some()).unwrap();
        place.sequence.fetch_or(1, Ordering::Relaxed);
        assert_eq!(table.find(1, client(1), 100, 1000), None);
        (0..40).for_each(|n| table.remember(2, client(n), B, 2000 + n));
        assert_eq!(place.service.load(Ordering::Relaxed), 2, "still the first client's");
    }

    #[test]
    fn workers_that_write_at_once_never_mix_two_records() {
        let table = Affinity::heap(WAYS).unwrap();
        std::thread::scope(|scope| {
            for worker in 0..4u32 {
                let table = table.clone();
                scope.spawn(move || {
                    for n in 0..20_000u32 {
                        let number = (n * 4 + worker) % 23;
                        table.remember(number, client(number), (client(number), number as u16), 1000);
                        if let Some(backend) = table.find(number, client(number), 100, 1000) {
                            assert_eq!(backend, (client(number), number as u16));
                        }
                    }
                });
            }
        });
    }
}
