//! The loop around client and responder: the only place where their packets move and clocks are read.

use super::client::{Client, Tally};
use super::segment::{Segment, answer};
use crate::pktgen::cpu::CpuTime;
use crate::pktgen::paths::Site;
use crate::pktgen::scenario::TrialLimits;
use crate::pktgen::trial::{End, Ends, Latency};
use fairway_dataplane::clock;
use fairway_pmd::{Burst, MAX_BURST};
use fairway_tables::Mac;
use serde::Serialize;

/// Sessions looked at for their age in each turn of the loop.
const EXPIRE: usize = 16;

/// What a connection-rate test gave.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Counts.
    pub tally: Tally,
    /// Time during which sessions were opened, in seconds.
    pub seconds: f64,
    /// Sessions a second that went to their end.
    pub completed_per_s: f64,
    /// From SYN to its answer.
    pub setup: Latency,
    /// From SYN to the last segment.
    pub whole: Latency,
    /// CPU time of the whole machine per session, in microseconds.
    pub machine_us_per_session: f64,
}

/// Opens sessions for the duration of the limits (`max_packets` counts sessions), then lets the open ones end.
///
/// # Errors
/// If `/proc/stat` cannot be read.
pub fn run(
    client: &mut Client,
    limits: &TrialLimits,
    site: &Site,
    ends: &mut Ends,
) -> std::io::Result<Outcome> {
    let cpu = CpuTime::read()?;
    let (start, ns_per_clock) = (clock::tsc(), 1.0 / clock::tsc_per_ns());
    let now = || ((clock::tsc() - start) as f64 * ns_per_clock) as u64;
    let end_ns = u64::from(limits.duration_ms) * 1_000_000;
    let (mut out, mut replies) = (Burst::new(), Burst::new());
    let (mut opening, mut opened_ns) = (true, 0);
    let macs = (site.client_mac, site.gateway_mac);
    let Ends { clients, sinks, .. } = ends;
    let Some(pod) = clients.first_mut() else {
        return Err(std::io::Error::other("sessions need a client"));
    };
    while opening || client.open_now() > 0 {
        let now_ns = now();
        opening &= now_ns < end_ns && client.tally().opened < u64::from(limits.max_packets);
        if opening {
            opened_ns = now_ns;
            while out.len() < MAX_BURST && client.tally().opened < u64::from(limits.max_packets) {
                let Some(segment) = client.open(now_ns) else { break };
                put(pod, &mut out, &segment, macs);
            }
        }
        flush(pod, &mut out);
        take(pod, &mut out, |segment| client.receive(segment, now_ns), macs);
        flush(pod, &mut out);
        if let Some(server) = sinks.first_mut() {
            take(server, &mut replies, answer, (site.server_mac, site.gateway_mac));
            flush(server, &mut replies);
        }
        client.expire(now_ns, EXPIRE);
    }
    pod.cache.free_burst(&mut out);
    if let Some(server) = sinks.first_mut() {
        server.cache.free_burst(&mut replies);
    }
    let spent = CpuTime::read()?.since(&cpu);
    let (tally, seconds) = (client.tally(), opened_ns.max(1) as f64 / 1e9);
    let (setup, whole) = client.latencies();
    let per_session = if tally.completed > 0 { spent.busy_s * 1e6 / tally.completed as f64 } else { 0.0 };
    Ok(Outcome {
        tally,
        seconds,
        completed_per_s: tally.completed as f64 / seconds,
        setup: Latency::of(setup),
        whole: Latency::of(whole),
        machine_us_per_session: per_session,
    })
}

/// Receives a burst and puts the answers to it into `out`, once that is empty and so has room for them.
fn take(
    end: &mut End,
    out: &mut Burst,
    mut react: impl FnMut(&Segment) -> Option<Segment>,
    macs: (Mac, Mac),
) {
    let mut burst = Burst::new();
    if !out.is_empty() {
        return;
    }
    end.queue.rx_burst(&mut end.cache, &mut burst);
    for frame in burst.drain(..) {
        let reply = Segment::of(frame.bytes()).and_then(|segment| react(&segment));
        end.cache.free(frame);
        if let Some(reply) = reply {
            put(end, out, &reply, macs);
        }
    }
}

fn put(end: &mut End, out: &mut Burst, segment: &Segment, (src, dst): (Mac, Mac)) {
    let Some(mut frame) = end.cache.alloc() else { return };
    if out.is_full() || !frame.reset(segment.frame_len()) {
        // As if lost on the way: the session fails and says so.
        end.cache.free(frame);
        return;
    }
    segment.write(frame.bytes_mut(), src, dst);
    out.push(frame);
}

fn flush(end: &mut End, out: &mut Burst) {
    if !out.is_empty() {
        end.queue.tx_burst(&mut end.cache, out);
    }
    if end.queue.tx_pending() > 0 {
        end.queue.kick(&mut end.cache);
    }
}
