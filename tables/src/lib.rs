//! The shared-memory contract between control and dataplane: layout, writer, reader, reclamation, and
//! one module per table. What lives here knows nothing of packets and does no I/O beyond its own files.
//! docs/tables.md explains the protocol.

#[cfg(test)]
extern crate self as fairway_tables;

mod addr;
mod reason;
pub mod record;
mod sync;

mod keyed;
mod pool;
mod region;

mod blocks;
mod error;
mod files;
mod layout;
mod lpm;
mod lpm_write;
mod op;
mod quiescence;
mod reader;
mod recover;
pub mod stats;
mod sys;
mod view;
mod writer;

#[cfg(test)]
mod crash_tests;

pub use addr::{Ip, Mac, MacParseError, Prefix, PrefixParseError};
pub use error::{ApplyError, OpenError};
pub use layout::Capacities;
pub use op::Op;
pub use reader::{Reader, ReaderFactory};
pub use reason::DropReason;
pub use record::*;
#[cfg(any(test, feature = "fault-injection"))]
pub use region::FaultStop;
pub use view::{ServiceView, View};
pub use writer::{TableUsage, Tables, Writer};
