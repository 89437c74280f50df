//! Fragments: those that come in are joined to their datagram's flow, and IPv4 packets that are too large for their way
//! leave in several parts ([`split`]).
//!
//! Only a datagram's first fragment has the transport header, without which a service, a translation or a policy cannot
//! be found. So its ports are remembered until the last fragment has come, and the fragments after it go the way of packets
//! with these ports: through the same flow entry, with the same connection. A fragment that comes before the first
//! waits for it. What is remembered, how many wait and how long is strictly bounded ([`Fragments`]), and fragments that
//! contradict one another are dropped, as are the tricks to slip past filters that fragments have been used for (RFC 1858,
//! RFC 3128, RFC 5722).
//!
//! All this is a worker's own: the fragments of a datagram come from one sender through one port, and network cards choose
//! a queue for fragments by their addresses; tunnels by an outer port that is the same for all of a flow. Senders that break
//! this (a Linux VXLAN device does not) have their datagrams dropped as `fragment-timeout`.

mod coverage;
mod datagrams;
mod shelf;
mod split;

pub use coverage::{Coverage, Misfit, Piece};
pub use datagrams::{
    Admission, DatagramKey, Fragments, LIFETIME_SECONDS, MAX_WAITING, MAX_WAITING_PER_SOURCE, Transport,
};
pub(crate) use shelf::{Bin, Stored};
pub(crate) use split::{is_allowed, split};

use crate::family::Parcel;
use crate::parse::Part;
use crate::process::Run;
use fairway_pmd::Frame;
use fairway_tables::PortKind;

impl Run<'_> {
    /// A fragment: it leaves, waits, or is dropped. A first one takes those with it that waited.
    #[cold]
    pub(crate) fn fragment<P: Parcel>(&mut self, packet: P, frame: Frame) {
        let piece = packet.piece(frame.bytes());
        let key = packet.datagram(piece.id, self.port.kind == PortKind::Pod);
        let transport = (packet.part() == Part::First).then(|| packet.transport());
        let worker = &mut *self.worker;
        let mut bin = Bin { cache: self.cache, counters: &mut worker.counters };
        match worker.fragments.admit(&key, &piece, transport, self.now, &mut bin) {
            Ok(Admission::Pass(transport)) => {
                self.join(packet, transport, frame);
                if packet.part() == Part::First {
                    self.release(&key, transport);
                }
            }
            Ok(Admission::Wait(place)) => {
                if let Err(frame) = worker.fragments.hold(place, packet.into(), frame) {
                    self.finish(Err(fairway_tables::DropReason::FragmentLimit), frame);
                }
            }
            Err(reason) => self.finish(Err(reason), frame),
        }
    }

    fn release(&mut self, key: &DatagramKey, transport: Transport) {
        while let Some((stored, frame)) = self.worker.fragments.released(key) {
            match stored {
                Stored::V4(packet) => self.join(packet, transport, frame),
                Stored::V6(packet) => self.join(packet, transport, frame),
            }
        }
    }

    /// Sends a fragment the way of its flow.
    fn join<P: Parcel>(&mut self, mut packet: P, transport: Transport, mut frame: Frame) {
        packet.set_transport(transport);
        let hash = packet.hash(self.worker);
        let slot = P::flows(self.worker).find(hash, packet.key());
        let verdict = self.flow(&packet, hash, slot, &mut frame);
        self.finish(verdict, frame);
    }
}
