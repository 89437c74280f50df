//! The testbed that was left running on purpose: there is one at most per machine, under a fixed name, so
//! that it can be found again.

use crate::error::{Error, Result};
use crate::{netns, sys};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Its name, in namespaces and folders.
pub(crate) const KEPT: &str = "fairway-demo";
const POLL: Duration = Duration::from_millis(20);
const TERM_DEADLINE: Duration = Duration::from_secs(10);

/// Where the files of the testbed that was left running are.
pub fn dir() -> PathBuf {
    Path::new("/run").join(KEPT)
}

/// Ends the testbed that [`crate::Testbed::leave_running`] left, with every process in its namespaces. Returns
/// the names of the namespaces deleted.
pub fn take_down() -> Result<Vec<String>> {
    let names: Vec<String> = netns::existing().into_iter().filter(|n| n.starts_with(KEPT)).collect();
    if names.is_empty() && !dir().exists() {
        return Err(Error::NotRunning { state: dir() });
    }
    let pids: Vec<u32> = names.iter().flat_map(|name| netns::pids(name)).collect();
    for pid in &pids {
        // One that ends in this moment is what is wanted.
        let _ = sys::signal(*pid, libc::SIGTERM);
    }
    let end = Instant::now() + TERM_DEADLINE;
    while names.iter().any(|name| !netns::pids(name).is_empty()) && Instant::now() < end {
        std::thread::sleep(POLL);
    }
    for name in &names {
        netns::delete(name);
    }
    let files = dir();
    if files.exists() {
        std::fs::remove_dir_all(&files).map_err(Error::io(format!("delete {}", files.display())))?;
    }
    Ok(names)
}
