//! Connection-rate tests: TCP-like sessions from SYN to FIN, opened as fast as others end.
//!
//! ```text
//! client  SYN →        ← SYN+ACK        ACK+data →        ← ACK+data        FIN+ACK →        ← FIN+ACK        ACK →
//! ```
//! Seven segments, four of them the client's. The responder keeps no state: a segment says all that its answer
//! needs. Nothing is sent again: a session whose next segment does not come within its time has failed. Sequence
//! and acknowledgment numbers are right, since connection tracking looks at them.
//!
//! - `segment.rs`: a segment's bytes, and the responder's answer.
//! - `client.rs`: the sessions' states; no I/O, no clock.
//! - `drive.rs`: the loop that moves packets.

mod client;
mod drive;
mod segment;

pub use client::{Client, Tally};
pub use drive::{Outcome, run};
pub use segment::{Segment, answer};

use serde::Deserialize;

/// How sessions are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sessions {
    /// Sessions open at the same time.
    pub concurrent: u32,
    /// Milliseconds without an answer after which a session has failed.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u32,
}

fn timeout_ms() -> u32 {
    1000
}
