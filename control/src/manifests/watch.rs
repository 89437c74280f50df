//! The async shell around the folder: reads it, waits for inotify to say which files changed, and
//! looks at all of it every few seconds in case an event was missed.

use super::error::FileProblem;
use super::folder::{Changes, Listing, Look};
use futures_util::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchMask};
use std::collections::BTreeSet;
use std::ffi::OsStr;
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
pub type Scan = Result<Look, FolderError>;

/// Reads every `.yaml`, `.yml` and `.json` file of the folder; not its subfolders, and nothing hidden.
pub fn scan(path: &Path) -> Result<Listing, FolderError> {
    scan_noting(path, &mut Noted::default())
}

/// What was noted while files were read.
#[derive(Default)]
struct Noted {
    /// One is so young that it may be half written.
    young: bool,
    /// One is a symbolic link: it changes without an announcement of its own.
    links: bool,
}

/// The name, if it is one of a manifest.
fn manifest_name(name: &OsStr) -> Option<&str> {
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    let is_manifest = matches!(extension, Some("yaml" | "yml" | "json"));
    name.to_str().filter(|name| is_manifest && !name.starts_with('.'))
}

fn scan_noting(path: &Path, noted: &mut Noted) -> Result<Listing, FolderError> {
    let failed = |error| FolderError { path: path.to_owned(), error };
    let mut listing = Listing::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file_name = entry.map_err(failed)?.file_name();
        let Some(name) = manifest_name(&file_name) else { continue };
        if let Some(content) = look_at(&path.join(name), noted) {
            listing.insert(name.to_owned(), content);
        }
    }
    Ok(listing)
}

/// What a file holds; `None` if it is not there, or a folder. Symbolic links are followed: a mounted ConfigMap consists of
/// them.
fn look_at(path: &Path, noted: &mut Noted) -> Option<Result<String, FileProblem>> {
    let is_link = path.is_symlink();
    noted.links |= is_link;
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => None,
        Ok(meta) => {
            let age = meta.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            noted.young |= age.is_none_or(|age| age < SETTLE);
            Some(read(path, meta.len()))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && !is_link => None,
        Err(e) => Some(Err(FileProblem::Unreadable(e.to_string()))),
    }
}

fn read(path: &Path, size_bytes: u64) -> Result<String, FileProblem> {
    if size_bytes > MAX_FILE_BYTES {
        return Err(FileProblem::TooLarge { size_bytes, limit_bytes: MAX_FILE_BYTES });
    }
    std::fs::read_to_string(path).map_err(|e| FileProblem::Unreadable(e.to_string()))
}

/// Which files a burst of announcements is about.
enum Concerned {
    Files(BTreeSet<String>),
    All,
}

impl Concerned {
    /// Adds what an announcement is about: everything if some were lost, or if links may lead through what changed.
    fn note(&mut self, event: &EventOwned, links: bool) {
        let name = event.name.as_deref().and_then(manifest_name);
        let all = event.mask.contains(EventMask::Q_OVERFLOW) || (links && name.is_none());
        match (&mut *self, name) {
            _ if all => *self = Concerned::All,
            (Concerned::Files(names), Some(name)) => drop(names.insert(name.to_owned())),
            _ => {}
        }
    }

    fn nothing(&self) -> bool {
        matches!(self, Concerned::Files(names) if names.is_empty())
    }

    fn look(&self, path: &Path, noted: &mut Noted) -> Scan {
        let Concerned::Files(names) = self else { return scan_noting(path, noted).map(Look::Whole) };
        let look = |name: &String| (name.clone(), look_at(&path.join(name), noted));
        let changes: Changes = names.iter().map(look).collect();
        // Of a folder that is gone, no file was deleted.
        std::fs::metadata(path).map_err(|error| FolderError { path: path.to_owned(), error })?;
        Ok(Look::Changed(changes))
    }

    /// Reads them once they have been still for a moment; notes links.
    async fn settled_look(&self, path: &Path, links: &mut bool) -> Scan {
        for _ in 0..MAX_SETTLE_ROUNDS {
            let mut noted = Noted::default();
            let look = self.look(path, &mut noted)?;
            *links |= noted.links;
            if !noted.young {
                return Ok(look);
            }
            tokio::time::sleep(SETTLE).await;
        }
        self.look(path, &mut Noted::default())
    }
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

/// Follows the folder until the receiver is gone: a look at all of it at once, then at what changes.
pub async fn follow(path: PathBuf, scans: mpsc::Sender<Scan>) {
    loop {
        // The watch is set before the first look, so that nothing falls between the two. It is renewed with
        // every slow rescan, because the folder itself may have been replaced.
        let stream = watch(&path);
        let mut links = false;
        if scans.send(Concerned::All.settled_look(&path, &mut links).await).await.is_err() {
            return;
        }
        let rescan_at = tokio::time::Instant::now() + RESCAN;
        let Ok(mut stream) = stream else {
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        };
        while let Ok(Some(Ok(event))) = tokio::time::timeout_at(rescan_at, stream.next()).await {
            if event.mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF) {
                break;
            }
            let mut concerned = Concerned::Files(BTreeSet::new());
            concerned.note(&event, links);
            tokio::time::sleep(DEBOUNCE).await;
            while let Ok(Some(Ok(event))) = tokio::time::timeout(Duration::ZERO, stream.next()).await {
                concerned.note(&event, links);
            }
            if concerned.nothing() {
                continue;
            }
            if scans.send(concerned.settled_look(&path, &mut links).await).await.is_err() {
                return;
            }
        }
    }
}
