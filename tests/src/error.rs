//! What can go wrong while a testbed is built, driven or taken down.

use std::path::PathBuf;

/// A testbed operation failed. Every message says what, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Namespaces need root.
    #[error(
        "network namespaces and AF_XDP need root, and this process has uid {uid}; run it as root, or run \
         `fairway demo --memory`, which needs neither"
    )]
    NotRoot {
        /// Effective user id of this process.
        uid: u32,
    },
    /// A program of Fairway has not been built.
    #[error("{name} is not in {}; run `make build`, or set FAIRWAY_BIN_DIR to the folder that holds it", dir.display())]
    MissingBinary {
        /// File name of the program.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// A file or system operation failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation and its object.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A command ended with a failure.
    #[error("`{command}` failed with {status}: {output}")]
    Command {
        /// The command line.
        command: String,
        /// Exit status in words.
        status: String,
        /// What the command printed.
        output: String,
    },
    /// A long-running process ended although nobody stopped it.
    #[error("{name} ended by itself with {status}; the end of its log:\n{tail}")]
    Ended {
        /// The process's name.
        name: String,
        /// Exit status in words.
        status: String,
        /// The last lines of its log.
        tail: String,
    },
    /// A process that was asked to stop did not end well.
    #[error("{name} stopped with {status}; the end of its log:\n{tail}")]
    BadExit {
        /// The process's name.
        name: String,
        /// Exit status in words.
        status: String,
        /// The last lines of its log.
        tail: String,
    },
    /// A condition did not come true in time.
    #[error("waited {waited_ms} ms in vain until {what}; last seen: {last}")]
    Timeout {
        /// The condition.
        what: String,
        /// How long it was waited for.
        waited_ms: u64,
        /// What the last try gave.
        last: String,
    },
    /// A program's answer is not the JSON that was expected.
    #[error("the answer of `{what}` is not usable: {reason}")]
    Answer {
        /// The command or file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// SIGINT or SIGTERM came.
    #[error("interrupted by a signal")]
    Interrupted,
    /// A testbed that was left running is still there.
    #[error("a demo is already running ({}); take it down first with `fairway demo --down`", state.display())]
    AlreadyRunning {
        /// The file that describes it.
        state: PathBuf,
    },
    /// There is no testbed that was left running.
    #[error("no demo is running: {} does not exist; start one with `make demo KEEP=1`", state.display())]
    NotRunning {
        /// The file that would describe it.
        state: PathBuf,
    },
}

impl Error {
    /// Wraps an I/O error with the operation that met it.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}

/// The result of a testbed operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;
