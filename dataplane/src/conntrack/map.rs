//! The memory under the connection table: a file in the run folder, or the heap for tests and benchmarks.

// UNSAFETY: a mapping is viewed as a slice of atomics here.
#![allow(unsafe_code)]

use super::ConntrackError;
use super::entry::{Entry, before_store};
use memmap2::{MmapOptions, MmapRaw};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const MAGIC: [u8; 8] = *b"FWconntk";
/// Changes with the meaning of any field.
const VERSION: u32 = 1;
const HEADER_LEN: usize = 4096;
/// Offset of the secret; zero in files of versions that had none.
const SECRET: usize = 32;
/// Offset of the number of places ever used.
const EVER_USED: usize = 64;

/// A mapping of `capacity` entries, which [`Map::view`] makes for reading only.
pub(super) struct Map {
    /// Keeps the lock.
    _file: Option<File>,
    raw: MmapRaw,
    capacity: usize,
}

fn header(capacity: u32) -> [u8; 24] {
    let mut header = [0; 24];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_ne_bytes());
    header[12..16].copy_from_slice(&(size_of::<Entry>() as u32).to_ne_bytes());
    header[16..20].copy_from_slice(&capacity.to_ne_bytes());
    header
}

impl Map {
    pub(super) fn heap(capacity: u32) -> io::Result<Map> {
        let raw = MmapOptions::new().len(HEADER_LEN + capacity as usize * size_of::<Entry>()).map_anon()?;
        Ok(Map { _file: None, raw: raw.into(), capacity: capacity as usize })
    }

    /// Opens the file, or makes it. A file with another capacity is refused.
    pub(super) fn open(path: &Path, capacity: u32) -> Result<Map, ConntrackError> {
        let fail = |source| ConntrackError::Io { path: path.to_owned(), source };
        let foreign = |what: String| ConntrackError::Foreign { path: path.to_owned(), what };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fail)?;
        // SAFETY: flock on a descriptor that we own.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(ConntrackError::Busy { path: path.to_owned() });
        }
        let size = (HEADER_LEN + capacity as usize * size_of::<Entry>()) as u64;
        let found = file.metadata().map_err(fail)?.len();
        let mut start = [0; 24];
        if found > 0 {
            file.read_exact(&mut start).map_err(|_| foreign(format!("{found} bytes long")))?;
        }
        // The header is written last: a file whose start is zero was never finished.
        if found == 0 || start == [0; 24] {
            file.set_len(0).map_err(fail)?;
            file.set_len(size).map_err(fail)?;
            file.seek(SeekFrom::Start(0)).map_err(fail)?;
            file.write_all(&header(capacity)).map_err(fail)?;
        } else {
            check(&start, found, capacity, size).map_err(foreign)?;
        }
        // Pages of the table are touched as connections come; the mapping itself costs no memory.
        let raw = MmapOptions::new().len(size as usize).map_raw(&file).map_err(fail)?;
        let map = Map { _file: Some(file), raw, capacity: capacity as usize };
        if map.entries().get(map.ever_used()).is_some_and(|entry| entry.sequence() != 0) {
            // The place behind the last was used as well: the number is not to be trusted.
            map.use_up_to(capacity - 1);
        }
        Ok(map)
    }

    /// Maps the file for reading, whoever writes it: takes no lock, and a store would be a fault.
    pub(super) fn view(path: &Path) -> Result<Map, ConntrackError> {
        let fail = |source| ConntrackError::Io { path: path.to_owned(), source };
        let foreign = |what: String| ConntrackError::Foreign { path: path.to_owned(), what };
        let mut file = File::open(path).map_err(fail)?;
        let found = file.metadata().map_err(fail)?.len();
        let mut start = [0; 24];
        file.read_exact(&mut start).map_err(|_| foreign(format!("{found} bytes long")))?;
        let capacity = u32::from_ne_bytes([start[16], start[17], start[18], start[19]]);
        let size = (HEADER_LEN + capacity as usize * size_of::<Entry>()) as u64;
        check(&start, found, capacity, size).map_err(foreign)?;
        let raw = MmapOptions::new().len(size as usize).map_raw_read_only(&file).map_err(fail)?;
        Ok(Map { _file: None, raw, capacity: capacity as usize })
    }

    /// Places below this may hold something; those above were never touched, so that an empty table costs
    /// no memory and no time to open.
    pub(super) fn ever_used(&self) -> usize {
        (self.watermark().load(Ordering::Relaxed) as usize).min(self.capacity)
    }

    /// Says that a place is about to be used.
    pub(super) fn use_up_to(&self, place: u32) {
        if self.ever_used() <= place as usize {
            before_store();
            self.watermark().fetch_max(place + 1, Ordering::Release);
        }
    }

    /// A number that stays with the table and that nobody outside knows; drawn here if there is none yet.
    pub(super) fn secret(&self) -> u64 {
        // SAFETY: eight bytes in the header, aligned; atomics only, as below.
        let secret = unsafe { &*self.raw.as_mut_ptr().add(SECRET).cast::<AtomicU64>() };
        if secret.load(Ordering::Relaxed) == 0 {
            before_store();
            secret.store(crate::random_seed() | 1, Ordering::Relaxed);
        }
        secret.load(Ordering::Relaxed)
    }

    fn watermark(&self) -> &AtomicU32 {
        // SAFETY: four bytes in the header, aligned; atomics only, as below.
        unsafe { &*self.raw.as_mut_ptr().add(EVER_USED).cast::<AtomicU32>() }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        // SAFETY: the mapping holds `capacity` entries behind the header, page-aligned; `Entry` is made of
        // atomics only, so every bit pattern is valid and concurrent access from anywhere is no race.
        unsafe {
            let base = self.raw.as_mut_ptr().add(HEADER_LEN).cast::<Entry>();
            std::slice::from_raw_parts(base, self.capacity)
        }
    }
}

fn check(start: &[u8; 24], found: u64, capacity: u32, size: u64) -> Result<(), String> {
    let word = |at: usize| u32::from_ne_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
    if start[..8] != MAGIC {
        return Err("it starts otherwise".into());
    }
    if word(8) != VERSION {
        return Err(format!("version {}, not {VERSION}", word(8)));
    }
    if word(12) as usize != size_of::<Entry>() {
        return Err(format!("entries of {} bytes, not {}", word(12), size_of::<Entry>()));
    }
    if word(16) != capacity {
        return Err(format!("room for {} connections, not {capacity}", word(16)));
    }
    if found != size {
        return Err(format!("{found} bytes long, not {size}"));
    }
    Ok(())
}
