//! The shared-memory contract between control and dataplane: layout, writer, reader, reclamation, and
//! one module per table. What lives here knows nothing of packets and does no I/O beyond its own files.
//! docs/tables.md explains the protocol.

// The model checker gets the primitives; files and what stands on them are tested by other means.
#![cfg_attr(loom, allow(dead_code))]

#[cfg(all(test, not(loom)))]
extern crate self as fairway_tables;

mod addr;
mod group;
mod reason;
pub mod record;
mod sync;

mod keyed;
mod pool;
mod region;

#[cfg(not(loom))]
mod blocks;
mod changes;
mod error;
#[cfg(not(loom))]
mod files;
#[cfg(not(loom))]
mod grow;
mod layout;
mod lpm;
mod lpm_nodes;
#[cfg(not(loom))]
mod lpm_write;
mod maglev;
mod masquerade;
#[cfg(not(loom))]
mod next_hops;
#[cfg(not(loom))]
mod op;
mod quiescence;
#[cfg(not(loom))]
mod reader;
#[cfg(not(loom))]
mod recover;
#[cfg(not(loom))]
mod service;
#[cfg(not(loom))]
pub mod stats;
#[cfg(not(loom))]
mod sys;
#[cfg(not(loom))]
mod view;
#[cfg(not(loom))]
mod writer;

#[cfg(all(test, not(loom)))]
mod crash_tests;
#[cfg(all(test, loom))]
mod loom_tests;

pub use addr::{Ip, Mac, MacParseError, Prefix, PrefixParseError};
pub use changes::Change;
pub use error::{ApplyError, OpenError};
pub use group::{Group, GroupError, MAX_PATHS, MAX_WEIGHT, Path};
#[cfg(not(loom))]
pub use grow::GrowError;
pub use layout::Capacities;
pub use masquerade::Masquerade;
#[cfg(not(loom))]
pub use op::Op;
#[cfg(not(loom))]
pub use reader::{Reader, ReaderFactory};
pub use reason::DropReason;
pub use record::*;
#[cfg(any(test, feature = "fault-injection"))]
pub use region::FaultStop;
#[cfg(not(loom))]
pub use service::{BackendSet, ServiceView, Targets};
#[cfg(not(loom))]
pub use view::View;
#[cfg(not(loom))]
pub use writer::{TableUsage, Tables, Writer};
