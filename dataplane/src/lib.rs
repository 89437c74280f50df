//! Fairway's forwarding engine. docs/dataplane.md walks a packet through it.
//!
//! What lives here: packet views ([`wire`]), the pure function over bursts ([`process`]) with its tiers
//! ([`flow`], [`walk`], [`exception`], [`icmp_error`]), connections ([`conntrack`]), and around them the worker loop and the
//! process ([`worker`], [`crew`], [`engine`]). Nothing here talks to Kubernetes, and nothing below `worker` does I/O.

pub mod clock;
pub mod conntrack;
pub mod counters;
pub mod crew;
pub mod engine;
pub mod exception;
mod family;
pub mod flow;
pub mod freshness;
mod hash;
pub mod icmp_error;
pub mod parse;
pub mod parse6;
mod process;
pub mod sleep;
pub mod stages;
pub mod state;
pub mod testkit;
pub mod tx;
mod walk;
pub mod wire;
pub mod worker;

pub use clock::Now;
pub use freshness::Freshness;
pub use hash::random_seed;
pub use process::process;
pub use state::WorkerState;
pub use tx::TxBatches;
