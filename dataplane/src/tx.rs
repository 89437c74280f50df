//! Where `process` puts what leaves: one batch per output port, flushed after every burst.

use fairway_pmd::{Burst, Frame};
use fairway_tables::PortId;

/// Batches of frames by output port. Room for a port is made when it opens, not when a packet comes.
pub struct TxBatches {
    batches: Vec<Option<Box<Burst>>>,
    active: Vec<u16>,
}

impl TxBatches {
    /// No ports, numbers below `ports` allowed.
    pub fn new(ports: usize) -> TxBatches {
        TxBatches { batches: (0..ports).map(|_| None).collect(), active: Vec::with_capacity(ports) }
    }

    /// Makes room for a port. A number out of range is ignored: its packets then count as port-down.
    pub fn open(&mut self, port: PortId) {
        if let Some(batch) = self.batches.get_mut(port.index()) {
            batch.get_or_insert_default();
        }
    }

    /// Takes a port's room away, and returns what was in it.
    pub fn close(&mut self, port: PortId) -> Option<Box<Burst>> {
        self.active.retain(|active| *active != port.0);
        self.batches.get_mut(port.index())?.take()
    }

    /// Whether a port has room made.
    pub fn is_open(&self, port: PortId) -> bool {
        self.batches.get(port.index()).is_some_and(Option::is_some)
    }

    /// Appends a frame to its port's batch; gives it back if the port is not open or the batch full.
    #[inline(always)]
    pub fn push(&mut self, port: u16, frame: Frame) -> Result<(), Frame> {
        let Some(Some(batch)) = self.batches.get_mut(usize::from(port)) else { return Err(frame) };
        if batch.is_empty() {
            self.active.push(port);
        }
        batch.try_push(frame).map_err(|full| full.element())
    }

    /// Hands every batch that holds frames to `send`, which must empty it.
    pub fn flush(&mut self, mut send: impl FnMut(u16, &mut Burst)) {
        for port in self.active.drain(..) {
            if let Some(Some(batch)) = self.batches.get_mut(usize::from(port)) {
                send(port, batch);
                debug_assert!(batch.is_empty());
            }
        }
    }
}
