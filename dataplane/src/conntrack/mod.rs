//! Connections, in memory that outlives the process.
//!
//! The file holds a header and an array of entries, nothing else: both directions' tuples, the TCP state
//! and when a packet was last seen. Everything that finds entries (hash chains, the list of free places)
//! is private to the process and rebuilt from the entries when the next one opens the file; so a process
//! killed at any point leaves at worst one entry whose sequence number is odd, which is then free.
//!
//! Rules:
//! - Look-ups take no lock. An entry's tuples are guarded by its sequence number: odd means "being written";
//!   changed in between means "look elsewhere". A look-up may miss an entry that moves at that moment.
//! - Therefore [`Conntrack::insert`] looks again under the locks of the two chains it changes. Locks are
//!   taken only when a connection begins or ends, never for a packet of an established one.
//! - State and time are single atomic words, which any worker may store.

mod entry;
mod map;
mod table;
mod tcp;
mod tuple;

pub use map::ConntrackError;
pub use table::{ConnRef, Connection, Conntrack, Found, InsertError, Summary};
pub use tcp::{State, Timeouts};
pub use tuple::{Direction, Tuple};
