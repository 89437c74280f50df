//! The async shell around the folder: reads it, waits for inotify to say that something changed, and
//! looks again every few seconds in case an event was missed.

use super::error::FileProblem;
use super::folder::Listing;
use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// Larger files are refused: no manifest is.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Writers make several changes in a row; they are taken in together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// A file changed this recently may be half written.
const SETTLE: Duration = Duration::from_millis(15);
/// How often a folder that keeps changing is re-read before it is taken as it is.
const MAX_SETTLE_ROUNDS: usize = 10;
/// How often the folder is read although nothing was said to have changed.
const RESCAN: Duration = Duration::from_secs(5);

/// The folder cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the manifests folder {} cannot be read: {error}; create it, or set --manifests", path.display())]
pub struct FolderError {
    path: PathBuf,
    error: io::Error,
}

/// What the watcher saw.
pub type Scan = Result<Listing, FolderError>;

/// Reads every `.yaml`, `.yml` and `.json` file of the folder; not its subfolders, and nothing hidden.
pub fn scan(path: &Path) -> Scan {
    Ok(scan_noting_age(path)?.0)
}

/// Also says whether a file is so young that it may be half written.
fn scan_noting_age(path: &Path) -> Result<(Listing, bool), FolderError> {
    let failed = |error| FolderError { path: path.to_owned(), error };
    let now = SystemTime::now();
    let mut listing = Listing::new();
    let mut young = false;
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let is_manifest = matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json"));
        if !is_manifest || name.starts_with('.') {
            continue;
        }
        // Symbolic links are followed: a mounted ConfigMap consists of them.
        let content = match std::fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => continue,
            Ok(meta) => {
                let age = meta.modified().ok().and_then(|at| now.duration_since(at).ok());
                young |= age.is_none_or(|age| age < SETTLE);
                read(&path, meta.len())
            }
            // Removed between the listing and now.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !path.is_symlink() => continue,
            Err(e) => Err(FileProblem::Unreadable(e.to_string())),
        };
        listing.insert(name.to_owned(), content);
    }
    Ok((listing, young))
}

fn read(path: &Path, size_bytes: u64) -> Result<String, FileProblem> {
    if size_bytes > MAX_FILE_BYTES {
        return Err(FileProblem::TooLarge { size_bytes, limit_bytes: MAX_FILE_BYTES });
    }
    std::fs::read_to_string(path).map_err(|e| FileProblem::Unreadable(e.to_string()))
}

/// Reads the folder once it has been still for a moment.
async fn settled_scan(path: &Path) -> Scan {
    for _ in 0..MAX_SETTLE_ROUNDS {
        let (listing, young) = scan_noting_age(path)?;
        if !young {
            return Ok(listing);
        }
        tokio::time::sleep(SETTLE).await;
    }
    scan(path)
}

fn watch(path: &Path) -> io::Result<EventStream<[u8; 4096]>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVE
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    inotify.watches().add(path, mask)?;
    inotify.into_event_stream([0; 4096])
}

/// Follows the folder until the receiver is gone: a scan at once, then one after every change.
pub async fn follow(path: PathBuf, scans: mpsc::Sender<Scan>) {
    loop {
        // The watch is set before the first look, so that nothing falls between the two. It is renewed with
        // every slow rescan, because the folder itself may have been replaced.
        let stream = watch(&path);
        if scans.send(settled_scan(&path).await).await.is_err() {
            return;
        }
        let rescan_at = tokio::time::Instant::now() + RESCAN;
        let Ok(mut stream) = stream else {
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        };
        while let Ok(Some(Ok(event))) = tokio::time::timeout_at(rescan_at, stream.next()).await {
            if event.mask.intersects(
                inotify::EventMask::IGNORED | inotify::EventMask::DELETE_SELF | inotify::EventMask::MOVE_SELF,
            ) {
                break;
            }
            tokio::time::sleep(DEBOUNCE).await;
            while let Ok(Some(Ok(_))) = tokio::time::timeout(Duration::ZERO, stream.next()).await {}
            if scans.send(settled_scan(&path).await).await.is_err() {
                return;
            }
        }
    }
}
