//! What the main thread and a worker tell each other, and which worker serves which port.

use crossbeam_queue::ArrayQueue;
use fairway_pmd::Queue;
use fairway_tables::{PortId, PortKind, Reader};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

/// What the main thread asks of a worker.
pub enum Command {
    /// Serve a queue.
    Open {
        /// Its port.
        port: PortId,
        /// What stands behind it.
        kind: PortKind,
        /// The driver's queue.
        queue: Box<dyn Queue>,
    },
    /// Do nothing before this is set: commands that belong together are on their way.
    Await(Arc<AtomicBool>),
    /// Another worker owns this port: make room for batches to it.
    Know(PortId, PortKind),
    /// Stop serving a port; its queue comes back over the outbox.
    Close(PortId),
    /// Read other tables from now on: control has begun new ones.
    Tables(Box<Reader>),
    /// Walk every flow anew: connections were deleted.
    Recheck,
    /// Close everything and return.
    Stop,
    /// Return with the queues open, nothing on its way between workers.
    Pause,
}

/// Which worker serves a port that the asker does not serve itself.
pub struct Owners(Box<[AtomicU16]>);

impl Owners {
    const NOBODY: u16 = u16::MAX;

    /// Nobody owns anything.
    pub fn new(ports: usize) -> Owners {
        Owners((0..ports).map(|_| AtomicU16::new(Self::NOBODY)).collect())
    }

    /// Says who serves a port.
    pub fn set(&self, port: PortId, worker: Option<u16>) {
        if let Some(owner) = self.0.get(port.index()) {
            owner.store(worker.unwrap_or(Self::NOBODY), Ordering::Release);
        }
    }

    pub(crate) fn get(&self, port: u16) -> Option<usize> {
        let owner = self.0.get(usize::from(port))?.load(Ordering::Acquire);
        (owner != Self::NOBODY).then_some(usize::from(owner))
    }
}

/// Commands in, closed queues out.
pub struct Mailbox {
    /// From the main thread.
    pub commands: ArrayQueue<Command>,
    /// Commands obeyed so far.
    pub obeyed: AtomicU64,
    /// To the main thread, which drops them (system calls).
    pub closed: ArrayQueue<Box<dyn Queue>>,
}
