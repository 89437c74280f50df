//! What can go wrong when files are opened and batches applied.

use std::io;
use std::path::PathBuf;

/// Why a file could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such file.
    #[error("{path} does not exist; start the process that writes it first")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("can't {action} {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The file system is too small.
    #[error(
        "{path} needs up to {needed} bytes, but its file system has {free} left; make it larger or ask \
         for smaller capacities"
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes that it takes when full.
        needed: u64,
        /// Bytes that are left.
        free: u64,
    },
    /// The file is something else.
    #[error("{path} is not a Fairway file (its magic number is wrong); move it away")]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by another version.
    #[error(
        "{path} has ABI version {found}, this program has {expected}; run the same version of control \
         and dataplane, or stop both, remove the file and start the newer ones"
    )]
    AbiVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// Ours.
        expected: u64,
    },
    /// Same version, but records of another shape.
    #[error(
        "{path} has layout {found:016x}, this program has {expected:016x}; control and dataplane come \
         from different builds: use one build, and remove the file with both stopped"
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// Its hash.
        found: u64,
        /// Ours.
        expected: u64,
    },
    /// A capacity that no file can have.
    #[error("capacity {asked} for {table} is over the limit of {limit}; ask for less")]
    CapacityLimit {
        /// Which table.
        table: &'static str,
        /// What was asked for.
        asked: u32,
        /// The most there can be.
        limit: u32,
    },
    /// The file's length is not what its header says.
    #[error(
        "{path} is {found} bytes long instead of {expected}; it was cut or is damaged: stop its users and remove it"
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// What it should be.
        expected: u64,
    },
    /// The contents contradict themselves.
    #[error("{path} is damaged: {what} in {table}; stop control and dataplane and remove it")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Which table.
        table: &'static str,
        /// What was found.
        what: &'static str,
    },
    /// Another writer is at work.
    #[error("{path} already has a writer (process {pid}); stop it first")]
    WriterRunning {
        /// The file.
        path: PathBuf,
        /// The writer, as it knows itself (in its own PID namespace).
        pid: u32,
    },
    /// All reader slots are taken.
    #[error("{path} has no reader slot free, all {slots} are held by live processes; stop one of them")]
    TooManyReaders {
        /// The file.
        path: PathBuf,
        /// How many there are.
        slots: u32,
    },
}

/// Why a batch was not applied. Nothing of it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The table would hold more than it can.
    #[error(
        "table {table} would need room for {needed}, its capacity is {capacity}; nothing was changed: \
         raise the capacity, or have fewer"
    )]
    Full {
        /// Which table.
        table: &'static str,
        /// What it would have to hold.
        needed: u64,
        /// What it can hold.
        capacity: u64,
    },
    /// There is room, but a reader may still be reading it.
    #[error(
        "table {table} waits for reader '{reader}' (process {pid}) to move on from generation {seen} \
         before {waiting} retired entries can be reused; nothing was changed: try again, and look at that \
         process if this lasts"
    )]
    WaitingForReader {
        /// Which table.
        table: &'static str,
        /// Retired entries.
        waiting: u64,
        /// The reader furthest behind.
        reader: String,
        /// Its process, as it knows itself.
        pid: u32,
        /// The generation that it saw last.
        seen: u64,
    },
    /// A key that makes no sense.
    #[error("{table} has no entry under {key}: {why}; nothing was changed")]
    BadKey {
        /// Which table.
        table: &'static str,
        /// The key.
        key: String,
        /// What is wrong.
        why: &'static str,
    },
}

impl ApplyError {
    /// The table that refused.
    pub fn table(&self) -> &'static str {
        match self {
            ApplyError::Full { table, .. }
            | ApplyError::WaitingForReader { table, .. }
            | ApplyError::BadKey { table, .. } => table,
        }
    }
}
