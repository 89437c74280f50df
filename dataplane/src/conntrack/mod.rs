//! Connections, in memory that outlives the process. docs/conntrack.md says what happens when it is full.
//!
//! The file holds a header and an array of entries, nothing else: both directions' tuples, the TCP state
//! and when a packet was last seen. Everything that finds entries (hash chains, sets of places by worth)
//! is private to the process and rebuilt from the entries when the next one opens the file; so a process
//! killed at any point leaves at worst one entry whose sequence number is odd, which is then free.
//!
//! Rules:
//! - Look-ups take no lock. An entry's tuples are guarded by its sequence number: odd means "being written";
//!   changed in between means "look elsewhere". A look-up may miss an entry that moves at that moment.
//! - Therefore [`Conntrack::insert`] looks again under the locks of the two chains it changes. Locks are
//!   taken only when a connection begins or ends, never for a packet of an established one.
//! - State and time are single atomic words, which any worker may store. The state's word carries a tag of the
//!   place's generation and is changed by compare-and-swap only, so that each change has one author.
//! - Nobody holds a lock while he takes another's place: making room comes first, insertion afterwards.

mod chains;
mod entry;
mod error;
#[cfg(all(test, not(loom)))]
mod fault;
mod ledger;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg_attr(loom, path = "map_loom.rs")]
mod map;
mod places;
mod reader;
mod rebuild;
mod room;
mod strict;
mod sync;
mod table;
mod tcp;
#[cfg(all(test, not(loom)))]
mod tests;
mod timeouts;
mod tuple;
mod value;
mod window;

pub use error::ConntrackError;
pub use reader::ConntrackReader;
pub use strict::Tracked;
pub use table::{ConnRef, Connection, Conntrack, Found, InsertError, Inserted, Summary};
pub use tcp::State;
pub use timeouts::{TimeoutError, Timeouts};
pub use tuple::{Direction, Tuple};
