//! A folder of ordinary Kubernetes manifests as a source of objects. [`parse()`] checks one file, `claims` finds whether objects of
//! several conflict and `conflicts` says how, [`Folder`] decides what is in force, and [`follow`] watches the disk. Only `watch` does I/O.

mod claims;
mod conflicts;
mod error;
mod folder;
mod parse;
mod watch;

pub use error::{Claimant, FileProblem, ManifestError, Place, proto_name};
pub use folder::{Changes, Folder, Listing, Look};
pub use parse::{Parsed, Placed, parse};
pub use watch::{FolderError, Scan, follow, scan};
