//! Where `process` puts what leaves: one batch per output port, flushed after every burst.

use fairway_pmd::{Burst, Frame, MAX_BURST};
use fairway_tables::PortId;

/// Frames that one port takes per burst received. More than came in, since a packet may leave in several fragments.
pub const MAX_BATCH: usize = 4 * MAX_BURST;

/// What leaves by one port, in order.
pub struct Batch {
    burst: Burst,
    /// What follows a full burst; has room for [`MAX_BATCH`] together with it.
    overflow: Vec<Frame>,
}

impl Batch {
    fn new() -> Box<Batch> {
        Box::new(Batch { burst: Burst::new(), overflow: Vec::with_capacity(MAX_BATCH - MAX_BURST) })
    }

    #[cold]
    fn push_over(&mut self, frame: Frame) -> Result<(), Frame> {
        if self.overflow.len() == MAX_BATCH - MAX_BURST {
            return Err(frame);
        }
        self.overflow.push(frame);
        Ok(())
    }

    /// Empties the batch.
    pub fn drain(&mut self) -> impl Iterator<Item = Frame> + '_ {
        self.burst.drain(..).chain(self.overflow.drain(..))
    }
}

/// Batches of frames by output port. Room for a port is made when it opens, not when a packet comes.
pub struct TxBatches {
    batches: Vec<Option<Box<Batch>>>,
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
            batch.get_or_insert_with(Batch::new);
        }
    }

    /// Takes a port's room away, and returns what was in it.
    pub fn close(&mut self, port: PortId) -> Option<Box<Batch>> {
        self.active.retain(|active| *active != port.0);
        self.batches.get_mut(port.index())?.take()
    }

    /// Whether a port has room made.
    pub fn is_open(&self, port: PortId) -> bool {
        self.batches.get(port.index()).is_some_and(Option::is_some)
    }

    /// The batch of a port, with a place for the next frame, which the caller puts in; `None` if the port is not open or
    /// nothing is free before the batch's overflow.
    #[inline(always)]
    pub(crate) fn room(&mut self, port: u16) -> Option<&mut Burst> {
        let Some(Some(batch)) = self.batches.get_mut(usize::from(port)) else { return None };
        if batch.burst.is_full() {
            return None;
        }
        if batch.burst.is_empty() {
            self.active.push(port);
        }
        Some(&mut batch.burst)
    }

    /// Appends a frame to its port's batch; gives it back if the port is not open or the batch full.
    #[inline(always)]
    pub fn push(&mut self, port: u16, frame: Frame) -> Result<(), Frame> {
        if let Some(batch) = self.room(port) {
            batch.push(frame);
            return Ok(());
        }
        match self.batches.get_mut(usize::from(port)) {
            Some(Some(batch)) => batch.push_over(frame),
            _ => Err(frame),
        }
    }

    /// Hands every batch that holds frames to `send`, which must empty it, a burst at a time.
    pub fn flush(&mut self, mut send: impl FnMut(u16, &mut Burst)) {
        for port in self.active.drain(..) {
            let Some(Some(batch)) = self.batches.get_mut(usize::from(port)) else { continue };
            send(port, &mut batch.burst);
            debug_assert!(batch.burst.is_empty());
            while !batch.overflow.is_empty() {
                let next = MAX_BURST.min(batch.overflow.len());
                batch.burst.extend(batch.overflow.drain(..next));
                send(port, &mut batch.burst);
                debug_assert!(batch.burst.is_empty());
            }
        }
    }
}
