//! Poll-mode drivers: the UMEM and its frame pool, the queue trait, the drivers behind it, and the XDP
//! steering program with its loader. What lives here knows Ethernet frames as byte strings and no IP
//! beyond what steering needs.
//!
//! Ownership in one paragraph: a [`Frame`] is the only handle on its chunk of UMEM. It is either home in
//! the pool, in a worker's [`FrameCache`], in a [`Burst`] (in flight), or in a kernel ring of exactly one
//! driver. It can be neither cloned nor made up, so two rings never hold the same frame.

// The model checker's build holds what threads or the kernel share, and none of the drivers around it.
#![cfg_attr(loom, allow(dead_code, unreachable_pub))]

#[cfg(not(loom))]
pub mod af_xdp;
#[cfg(loom)]
#[path = "af_xdp/area.rs"]
mod area;
pub mod asleep;
pub mod frame;
mod lent;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(not(loom))]
pub mod memory;
#[cfg(not(loom))]
pub mod node_ports;
#[cfg(not(loom))]
pub mod pcap;
mod pool;
#[cfg(not(loom))]
pub mod queue;
#[cfg(loom)]
#[path = "af_xdp/ring.rs"]
mod ring;
pub mod spsc;
#[cfg(not(loom))]
pub mod steering;
mod sync;
mod umem;

pub use frame::{Burst, Frame, FrameCache, FramePool, MAX_BURST, Umem, UmemConfig, UmemError};
#[cfg(not(loom))]
pub use queue::{KernelDrops, Queue, QueueStats};
