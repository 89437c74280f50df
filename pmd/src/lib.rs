//! Poll-mode drivers: the UMEM and its frame pool, the queue trait, the drivers behind it, and the XDP
//! steering program with its loader. What lives here knows Ethernet frames as byte strings and no IP
//! beyond what steering needs.
//!
//! Ownership in one paragraph: a [`Frame`] is the only handle on its chunk of UMEM. It is either home in
//! the pool, in a worker's [`FrameCache`], in a [`Burst`] (in flight), or in a kernel ring of exactly one
//! driver. It can be neither cloned nor made up, so two rings never hold the same frame.

pub mod af_xdp;
pub mod frame;
mod lent;
pub mod memory;
pub mod pcap;
mod pool;
pub mod queue;
pub mod spsc;
pub mod steering;
mod umem;

pub use frame::{Burst, Frame, FrameCache, FramePool, MAX_BURST, Umem, UmemConfig, UmemError};
pub use queue::{Queue, QueueStats};
