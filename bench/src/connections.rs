//! What a start waits for: the time in which a process finds the connections that another left.

use fairway_dataplane::conntrack::{Conntrack, ConntrackError, Timeouts};
use fairway_dataplane::testkit::connections::fill;
use std::path::Path;
use std::time::Instant;

/// Where there is memory without a disk behind it, as in a run folder.
const MEMORY: &str = "/dev/shm";

/// Fills a table with so many established TCP connections, and opens it `rounds` times: milliseconds for each.
///
/// # Errors
/// If there is no room for the table.
pub fn openings_ms(connections: u32, rounds: usize) -> Result<Vec<f64>, ConntrackError> {
    let parent = if Path::new(MEMORY).is_dir() { MEMORY.into() } else { std::env::temp_dir() };
    let io = |source| ConntrackError::Io { path: parent.clone(), source };
    let dir = tempfile::tempdir_in(&parent).map_err(io)?;
    let path = dir.path().join("conntrack");
    let open = || Conntrack::open(&path, connections, Timeouts::default());
    fill(&open()?, connections);
    let mut openings_ms = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        let table = open()?;
        openings_ms.push(start.elapsed().as_secs_f64() * 1e3);
        assert_eq!(table.summary().used, connections as usize, "every connection is found");
    }
    Ok(openings_ms)
}
