//! Why the connection table cannot be used.

use std::io;
use std::path::PathBuf;

/// Why the connection table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The file cannot be made, read or mapped.
    #[error("{path}: {source}; check that the run folder exists, is writable and has room")]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another engine uses the file.
    #[error("{path} is in use by another dataplane process; stop it, or choose another --run-dir")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a connection table, or of another version or size.
    #[error(
        "{path} is not a connection table of this version ({what}); remove it to start without connections"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
}
