//! Fairway's forwarding engine. docs/dataplane.md walks a packet through it.
//!
//! What lives here: packet views ([`wire`]), the pure function over bursts ([`process`]) with its tiers
//! ([`flow`], [`walk`], [`exception`], [`fragment`], [`icmp_error`]), connections ([`conntrack`]), and around them the worker loop and the
//! process ([`worker`], [`crew`], [`engine`]). Nothing here talks to Kubernetes, and nothing below `worker` does I/O.
//! For the model checker (`cfg(loom)`) there is only what it checks: the connection table.

#[cfg(not(loom))]
pub mod affinity;
#[cfg(not(loom))]
mod chores;
pub mod clock;
pub mod conntrack;
#[cfg(not(loom))]
pub mod counters;
#[cfg(not(loom))]
pub mod crew;
#[cfg(not(loom))]
pub mod engine;
#[cfg(not(loom))]
pub mod exception;
#[cfg(not(loom))]
mod family;
#[cfg(not(loom))]
pub mod flow;
#[cfg(not(loom))]
pub mod fragment;
#[cfg(not(loom))]
pub mod freshness;
mod hash;
#[cfg(not(loom))]
pub mod icmp_error;
#[cfg(not(loom))]
pub mod mailbox;
#[cfg(not(loom))]
pub mod parse;
#[cfg(not(loom))]
pub mod parse6;
#[cfg(not(loom))]
mod process;
#[cfg(not(loom))]
mod serve;
#[cfg(not(loom))]
pub mod sleep;
#[cfg(not(loom))]
pub mod stages;
#[cfg(not(loom))]
pub mod state;
#[cfg(not(loom))]
pub mod testkit;
#[cfg(not(loom))]
pub mod tx;
#[cfg(not(loom))]
mod usual;
#[cfg(not(loom))]
mod walk;
pub mod wire;
#[cfg(not(loom))]
pub mod worker;

pub use clock::Now;
#[cfg(not(loom))]
pub use freshness::Freshness;
pub use hash::random_seed;
#[cfg(not(loom))]
pub use process::process;
#[cfg(not(loom))]
pub use state::WorkerState;
#[cfg(not(loom))]
pub use tx::TxBatches;
