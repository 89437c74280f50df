//! The shared-memory contract between control and dataplane: layout, writer, reader, reclamation, and
//! one module per table. What lives here knows nothing of packets and does no I/O beyond its own files.
//! docs/tables.md explains the protocol.

mod addr;
mod reason;
pub mod record;

pub use addr::{Ip, Mac, MacParseError, Prefix, PrefixParseError};
pub use reason::DropReason;
pub use record::*;
