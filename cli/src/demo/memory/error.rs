//! Why the demo over the memory driver did not start, or did not end well.

use fairway_dataplane::crew::CrewError;
use fairway_pmd::UmemError;
use fairway_pmd::pcap::PcapError;

/// See the module's head.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    /// Manifests, waiting, and what steps find.
    #[error(transparent)]
    Testbed(#[from] fairway_tests::Error),
    /// The frames' memory.
    #[error(transparent)]
    Umem(#[from] UmemError),
    /// The capture.
    #[error(transparent)]
    Pcap(#[from] PcapError),
    /// A worker that does not start, or is gone.
    #[error(transparent)]
    Crew(#[from] CrewError),
    /// The kernel refuses something that every process may have.
    #[error("{what}: {source}; check limits on open files (ulimit -n), threads and memory")]
    System {
        /// What was being done.
        what: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The manifests were refused, in whole or in part.
    #[error("{node} refuses its manifests: {reason}")]
    Manifests {
        /// The node.
        node: String,
        /// What is wrong with them.
        reason: String,
    },
    /// The tables name a device that was not made.
    #[error("the tables of {node} list port {ifname}, which is no device of the simulation")]
    NoDevice {
        /// The node.
        node: String,
        /// The device.
        ifname: String,
    },
    /// A worker ended by itself.
    #[error("the worker of {node} stopped by a fault; its panic message is above")]
    WorkerDied {
        /// The node.
        node: String,
    },
    /// A step found something else than it should have.
    #[error("{what}: {reason}")]
    Check {
        /// What was done.
        what: String,
        /// What was found.
        reason: String,
    },
    /// The end did not add up.
    #[error(
        "{frames} frames missing (I1), {packets} packets unaccounted for (I2); please report this, \
         with the capture"
    )]
    Invariant {
        /// Frames that did not come home.
        frames: usize,
        /// Packets whose counts do not add up.
        packets: u64,
    },
}

impl MemoryError {
    /// A step's finding.
    pub(super) fn check(what: impl Into<String>, reason: impl Into<String>) -> MemoryError {
        MemoryError::Check { what: what.into(), reason: reason.into() }
    }
}

/// The result of a part of the demo.
pub(super) type Result<T, E = MemoryError> = std::result::Result<T, E>;
