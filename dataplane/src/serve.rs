//! Whether a flow entry that was found may serve a packet: what every hit asks, and in which cases the connection table
//! hears of one.

use crate::clock::Now;
use crate::conntrack::{Conntrack, Tracked};
use crate::family::Parcel;
use crate::flow::{Binding, Flow};
use crate::state::WorkerState;
use crate::wire::tcp_flags;
use fairway_pmd::Frame;
use fairway_tables::DropReason;

/// Whether a found flow may serve this packet: the tables still say so, and its connection is alive.
///
/// # Errors
/// [`DropReason::OutOfWindow`].
#[inline(always)]
pub(crate) fn serves<P: Parcel>(
    worker: &mut WorkerState,
    slot: usize,
    packet: &P,
    frame: &Frame,
    now: Now,
) -> Result<bool, DropReason> {
    let (flows, conntrack, freshness) = P::parts(worker);
    let entry = flows.entry(slot);
    if !freshness.is_fresh(entry.binding()) {
        return Ok(false);
    }
    let control = packet.tcp_flags() & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST);
    if control != 0 || entry.binding().touched != now.tick() {
        let binding = flows.entry_mut(slot).binding_mut();
        return refresh(binding, conntrack, packet, frame, now);
    }
    Ok(true)
}

/// Tells the connection table of a control bit, or that the flow lives; and of every packet, where windows are tracked.
/// `false` if the packet must be walked.
#[cold]
fn refresh<P: Parcel>(
    binding: &mut Binding,
    conntrack: &Conntrack,
    packet: &P,
    frame: &Frame,
    now: Now,
) -> Result<bool, DropReason> {
    let flags = packet.tcp_flags();
    let opens = flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN;
    if opens {
        // May begin a new connection on an old tuple: the walk decides.
        return Ok(false);
    }
    if let Some((conn, direction)) = binding.connection() {
        if binding.flags & Binding::WINDOWS != 0 {
            // So that the next one is shown as well.
            binding.touched = now.tick().wrapping_sub(1);
            let tracked = match packet.segment(frame) {
                Some(segment) => conntrack.track(conn, direction, &segment, now.seconds),
                None => conntrack.touch(conn, now.seconds),
            };
            return match tracked {
                Tracked::Fine => Ok(true),
                Tracked::Gone => Ok(false),
                Tracked::Outside => Err(DropReason::OutOfWindow),
            };
        }
        if !conntrack.update(conn, packet.proto(), direction, flags, now.seconds) {
            return Ok(false);
        }
    }
    binding.touched = now.tick();
    Ok(true)
}
