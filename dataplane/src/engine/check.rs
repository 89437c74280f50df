//! Whether this program could take the place of the one that runs: what would fail after the old image is gone is
//! tried before.

use super::handover::STATE_VERSION;
use super::{Answer, Config, EngineError};
use crate::conntrack::{Conntrack, ConntrackError};
use fairway_pmd::steering::Steering;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// As much of the connection table as says what it is.
const TABLE_HEAD_LEN: u64 = 64;

/// Tries options, steering program and connection table, changing nothing.
///
/// # Errors
/// What a start would fail with.
pub fn can_take_over(config: &Config) -> Result<Answer, EngineError> {
    config.worker_cores()?;
    // The kernel's verifier has the last word on whether the program can be used here.
    Steering::load()?;
    knows_table(config)?;
    Ok(Answer { version: env!("CARGO_PKG_VERSION").to_owned(), state_version: STATE_VERSION })
}

/// Whether this version understands the table that the running engine holds. That one is locked, so an empty
/// one like it is opened in its place.
fn knows_table(config: &Config) -> Result<(), ConntrackError> {
    let path = config.run_dir.join("conntrack");
    let copy = config.run_dir.join("conntrack.check");
    let result = match empty_like(&path, &copy) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ConntrackError::Io { path: copy.clone(), source }),
        Ok(()) => Conntrack::open(&copy, config.connections, config.timeouts).map(drop),
    };
    // It holds nothing, and the next check writes it anew.
    let _ = std::fs::remove_file(&copy);
    result
}

fn empty_like(path: &Path, copy: &Path) -> io::Result<()> {
    let table = File::open(path)?;
    let len = table.metadata()?.len();
    let mut head = Vec::new();
    table.take(TABLE_HEAD_LEN).read_to_end(&mut head)?;
    let mut copy = File::create(copy)?;
    copy.write_all(&head)?;
    copy.set_len(len)
}
