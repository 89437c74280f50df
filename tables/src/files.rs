//! The files: `tables` (the header says what it is) and `quiescence` (reader slots and locks), how they
//! are made so that a kill at any moment leaves nothing half-made, and how they are checked.
//!
//! Locks are byte ranges of `quiescence`: its first line belongs to the writer, each further line to a
//! reader. They are open-file-description locks, which the kernel drops however a process ends, and which
//! work between containers, where a pid means nothing.

use crate::error::OpenError;
use crate::layout::{ABI_VERSION, CAPACITY_COUNT, Capacities, Layout, MAGIC, header};
use crate::quiescence::{LINE, Quiescence};
use crate::region::{Region, WriteRegion};
use crate::sync::{Arc, Ordering};
use crate::sys;
use crate::view::Shared;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Name of the tables file.
pub(crate) const TABLES: &str = "tables";
/// Name of the reader slots' file.
const QUIESCENCE: &str = "quiescence";
/// Readers at a time.
const READER_SLOTS: u32 = 64;
const QUIESCENCE_LEN: u64 = 8192;
const QUIESCENCE_MAGIC: u64 = u64::from_be_bytes(*b"FAIRWAYQ");
/// Words of the quiescence file's first line.
const Q_MAGIC: usize = 0;
const Q_ABI: usize = 8;
const Q_WRITER_PID: usize = 16;

pub(crate) fn io_error<'a>(path: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> OpenError + 'a {
    move |source| match source.kind() {
        io::ErrorKind::NotFound => OpenError::Missing { path: path.to_owned() },
        _ => OpenError::Io { path: path.to_owned(), action, source },
    }
}

/// Checks what every Fairway file starts with: magic, ABI version, layout hash.
pub(crate) fn check_head(
    path: &Path,
    region: &Region,
    magic: u64,
    abi: u64,
    layout: u64,
) -> Result<(), OpenError> {
    let word = |offset| region.load64(offset, Ordering::Acquire);
    if word(header::MAGIC) != magic {
        return Err(OpenError::NotOurs { path: path.to_owned() });
    }
    if word(header::ABI) != abi {
        return Err(OpenError::AbiVersion { path: path.to_owned(), found: word(header::ABI), expected: abi });
    }
    if word(header::LAYOUT) != layout {
        return Err(OpenError::Layout {
            path: path.to_owned(),
            found: word(header::LAYOUT),
            expected: layout,
        });
    }
    Ok(())
}

/// Checks that a file is at least so long, so that its header can be read.
pub(crate) fn check_min_len(path: &Path, file: &File, min: u64) -> Result<u64, OpenError> {
    let found = file.metadata().map_err(io_error(path, "examine"))?.len();
    if found < min {
        return Err(OpenError::Length { path: path.to_owned(), found, expected: min });
    }
    Ok(found)
}

/// Checks the header of a mapped tables file against its length.
fn check_tables(path: &Path, region: Arc<Region>, len: u64) -> Result<Shared, OpenError> {
    check_head(path, &region, MAGIC, ABI_VERSION, Layout::hash())?;
    let mut list = [0; CAPACITY_COUNT];
    for (i, capacity) in list.iter_mut().enumerate() {
        let word = region.load64(header::CAPACITIES + 8 * i, Ordering::Relaxed);
        *capacity = u32::try_from(word).unwrap_or(u32::MAX);
    }
    let capacities = Capacities::from_list(list);
    let layout = Layout::new(&capacities).map_err(|_| OpenError::Corrupt {
        path: path.to_owned(),
        table: "header",
        what: "impossible capacities",
    })?;
    let expected = layout.len as u64;
    if len != expected || region.load64(header::FILE_LEN, Ordering::Relaxed) != expected {
        return Err(OpenError::Length { path: path.to_owned(), found: len, expected });
    }
    let seed = region.load64(header::SEED, Ordering::Relaxed);
    Ok(Shared { region, layout, seed })
}

impl Shared {
    /// The random number that tells this file from others.
    pub(crate) fn instance(&self) -> u64 {
        self.region.load64(header::INSTANCE, Ordering::Relaxed)
    }
}

/// The instance number of the tables file at `path`, if it is one.
pub(crate) fn instance_of(path: &Path) -> Option<u64> {
    use std::os::unix::fs::FileExt;
    let mut head = [0; 64];
    File::open(path).ok()?.read_exact_at(&mut head, 0).ok()?;
    let word = |at: usize| u64::from_ne_bytes(head[at..at + 8].try_into().unwrap_or_default());
    (word(header::MAGIC) == MAGIC).then(|| word(header::INSTANCE))
}

/// Maps the tables PROT_READ. Returns them with their instance number.
pub(crate) fn open_for_reading(dir: &Path) -> Result<(Shared, u64), OpenError> {
    let path = dir.join(TABLES);
    let file = File::open(&path).map_err(io_error(&path, "open"))?;
    let len = check_min_len(&path, &file, crate::layout::HEADER_LEN as u64)?;
    let region = Region::map_read(&file).map_err(io_error(&path, "map"))?;
    let tables = check_tables(&path, region, len)?;
    let instance = tables.instance();
    Ok((tables, instance))
}

fn open_quiescence(dir: &Path, create: bool) -> Result<(PathBuf, File), OpenError> {
    let path = dir.join(QUIESCENCE);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .open(&path)
        .map_err(io_error(&path, "open"))?;
    Ok((path, file))
}

fn map_quiescence(path: &Path, file: &File) -> Result<WriteRegion, OpenError> {
    check_min_len(path, file, QUIESCENCE_LEN)?;
    Ok(WriteRegion::new(Region::map_write(file).map_err(io_error(path, "map"))?))
}

/// Finds a reader slot that nobody holds and locks it.
pub(crate) fn claim_reader_slot(dir: &Path, instance: u64) -> Result<(Quiescence, File, u32), OpenError> {
    let (path, file) = open_quiescence(dir, false)?;
    let region = map_quiescence(&path, &file)?;
    if region.load64(Q_MAGIC, Ordering::Acquire) != QUIESCENCE_MAGIC {
        return Err(OpenError::NotOurs { path });
    }
    let abi = region.load64(Q_ABI, Ordering::Relaxed);
    if abi != ABI_VERSION {
        return Err(OpenError::AbiVersion { path, found: abi, expected: ABI_VERSION });
    }
    for slot in 0..READER_SLOTS {
        if try_lock_slot(&file, slot).map_err(io_error(&path, "lock a reader slot of"))? {
            return Ok((Quiescence::new(region, READER_SLOTS, instance), file, slot));
        }
    }
    Err(OpenError::TooManyReaders { path, slots: READER_SLOTS })
}

fn try_lock_slot(file: &File, slot: u32) -> io::Result<bool> {
    sys::try_lock(file, Quiescence::line(slot) as u64, LINE as u64)
}

/// What a writer holds open: the tables, the reader slots, and the lock.
pub(crate) struct WriterFiles {
    pub(crate) path: PathBuf,
    pub(crate) tables: Shared,
    pub(crate) region: WriteRegion,
    pub(crate) quiescence: Quiescence,
    pub(crate) lock: WriterLock,
    /// Whether the tables were there already.
    pub(crate) recovered: bool,
}

/// The writer's lock, and its means to tell which readers live.
pub(crate) struct WriterLock(File);

impl WriterLock {
    /// Frees the slots of dead readers that have not seen `generation`. A reader is dead if its slot's
    /// lock can be had; holding it meanwhile keeps a new reader from moving in half-way.
    pub(crate) fn evict_dead(&self, quiescence: &Quiescence, generation: u64) {
        for (slot, seen) in quiescence.active() {
            if seen < generation && try_lock_slot(&self.0, slot).unwrap_or(false) {
                quiescence.leave(slot);
                // Failing to unlock would only keep the slot from being used again.
                let _ = sys::unlock(&self.0, Quiescence::line(slot) as u64, LINE as u64);
            }
        }
    }
}

/// Takes the writer's lock, then opens the tables or makes them.
pub(crate) fn open_for_writing(dir: &Path, capacities: &Capacities) -> Result<WriterFiles, OpenError> {
    let layout = Layout::new(capacities)?;
    std::fs::create_dir_all(dir).map_err(io_error(dir, "make folder"))?;
    let (q_path, q_file) = open_quiescence(dir, true)?;
    let locked = sys::try_lock(&q_file, 0, LINE as u64).map_err(io_error(&q_path, "lock"))?;
    let q_len = q_file.metadata().map_err(io_error(&q_path, "examine"))?.len();
    let path = dir.join(TABLES);
    if !locked {
        let pid = match map_quiescence(&q_path, &q_file) {
            Ok(region) => region.load64(Q_WRITER_PID, Ordering::Relaxed) as u32,
            Err(_) => 0,
        };
        return Err(OpenError::WriterRunning { path, pid });
    }
    if q_len < QUIESCENCE_LEN {
        q_file.set_len(QUIESCENCE_LEN).map_err(io_error(&q_path, "extend"))?;
    }
    let q_region = map_quiescence(&q_path, &q_file)?;
    match (q_region.load64(Q_MAGIC, Ordering::Acquire), q_region.load64(Q_ABI, Ordering::Relaxed)) {
        (0, _) => {
            q_region.store64(Q_ABI, ABI_VERSION, Ordering::Relaxed);
            q_region.store64(Q_MAGIC, QUIESCENCE_MAGIC, Ordering::Release);
        }
        (QUIESCENCE_MAGIC, ABI_VERSION) => {}
        (QUIESCENCE_MAGIC, found) => {
            return Err(OpenError::AbiVersion { path: q_path, found, expected: ABI_VERSION });
        }
        _ => return Err(OpenError::NotOurs { path: q_path }),
    }
    q_region.store64(Q_WRITER_PID, u64::from(std::process::id()), Ordering::Relaxed);

    let (tables, recovered) = match open_existing(&path)? {
        Some(tables) => (tables, true),
        None => {
            let tables = make_aside(dir, capacities, layout)?;
            move_into_place(dir)?;
            (tables, false)
        }
    };
    let region = WriteRegion::new(tables.region.clone());
    let quiescence = Quiescence::new(q_region, READER_SLOTS, tables.instance());
    Ok(WriterFiles { path, tables, region, quiescence, lock: WriterLock(q_file), recovered })
}

/// The tables of a former writer; `None` if there are none, or if they are from before the node booted,
/// when nothing in them can be true and nobody can be reading them.
fn open_existing(path: &Path) -> Result<Option<Shared>, OpenError> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io_error(path, "open"))?,
    };
    let len = check_min_len(path, &file, crate::layout::HEADER_LEN as u64)?;
    let region = Region::map_write(&file).map_err(io_error(path, "map"))?;
    let ours = region.load64(header::MAGIC, Ordering::Acquire) == MAGIC;
    if ours && region.load64(header::BOOT, Ordering::Relaxed) != sys::boot_number() {
        return Ok(None);
    }
    check_tables(path, region, len).map(Some)
}

/// Under what name new tables are made.
const NEW_TABLES: &str = "tables.new";

/// Moves tables that are complete to where readers find them.
pub(crate) fn move_into_place(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(TABLES);
    std::fs::rename(dir.join(NEW_TABLES), &path).map_err(io_error(&path, "move new tables to"))
}

/// Makes empty tables under another name; [`move_into_place`] follows when they are complete.
pub(crate) fn make_aside(dir: &Path, c: &Capacities, layout: Layout) -> Result<Shared, OpenError> {
    let new = dir.join(NEW_TABLES);
    let (file, region) = make_file(&new, layout.len as u64)?;
    let store = |offset, value| region.store64(offset, value, Ordering::Relaxed);
    let seed = sys::random();
    store(header::ABI, ABI_VERSION);
    store(header::LAYOUT, Layout::hash());
    store(header::FILE_LEN, layout.len as u64);
    store(header::INSTANCE, sys::random());
    store(header::BOOT, sys::boot_number());
    store(header::SEED, seed);
    for (i, (_, capacity, _)) in c.list().into_iter().enumerate() {
        store(header::CAPACITIES + 8 * i, u64::from(capacity));
    }
    region.store64(header::MAGIC, MAGIC, Ordering::Release);
    drop(file);
    Ok(Shared { region: region.shared().clone(), layout, seed })
}

/// A new file of zeros, mapped; whatever was there under that name is gone. Holes cost nothing, but a
/// full file system would end the process at some later store, so there must be room for all of it.
pub(crate) fn make_file(path: &Path, len: u64) -> Result<(File, WriteRegion), OpenError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(io_error(path, "create"))?;
    let free = sys::free_space(&file).map_err(io_error(path, "examine the file system of"))?;
    if free < len {
        let _ = std::fs::remove_file(path);
        return Err(OpenError::NoSpace { path: path.to_owned(), needed: len, free });
    }
    file.set_len(len).map_err(io_error(path, "extend"))?;
    let region = Region::map_write(&file).map_err(io_error(path, "map"))?;
    Ok((file, WriteRegion::new(region)))
}
