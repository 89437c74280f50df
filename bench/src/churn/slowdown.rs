//! What a worker pays for changes made while it forwards: nanoseconds per packet with the writer idle, writing as
//! fast as it can, as fast as control can, and at a steady pace. The changes concern services that the flows do not use. Engine and writer have
//! a core each, as far as the machine has them.

use super::{Choices, ChurnError};
use crate::engine::{Case, Scenario};
use crate::pktgen::cores::cores;
use fairway_dataplane::clock;
use fairway_pmd::MAX_BURST;
use fairway_tables::{Backend, Ip, Op, Service, ServiceKey, Writer};
use fairway_tests::report::Figure;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Services that change.
const SERVICES: usize = 10_000;
/// Backends of each.
const BACKENDS: u8 = 10;
/// Numbers of the flows' own services are below this.
const FIRST_ID: u32 = 1000;
/// Changes per second of the steady pace: a large cluster on a busy day.
const PACE: u32 = 1000;
/// Changes per second that control makes at most, from event to tables: 40 µs each and often more.
const CONTROLS_PACE: u32 = 25_000;

/// A burst of 64 packets that takes longer was interrupted: even if every packet of it is walked it takes 30 µs.
const LIMIT_NS: f64 = 100_000.0;

/// What the writer does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Load {
    /// Nothing.
    Idle,
    /// One change after the other, without the work that control has with each.
    FlatOut,
    /// [`PACE`] changes a second.
    Paced,
    /// [`CONTROLS_PACE`] changes a second.
    Control,
    /// It ends.
    Stop,
}

static LOAD: AtomicU8 = AtomicU8::new(Load::Idle as u8);
static RESTING: AtomicBool = AtomicBool::new(true);
static WRITTEN: AtomicU64 = AtomicU64::new(0);

fn change(service: usize, first: u8) -> Op {
    let n = service + 10;
    let key = ServiceKey::new(Ip::v4([10, 100 + (n >> 16) as u8, (n >> 8) as u8, n as u8]), 80, 17);
    let backend = |i: u8| Backend { ip: Ip::v4([10, 200, i, first]), port: 8080, flags: 0 };
    let record = Service { id: FIRST_ID + service as u32, flags: 0, affinity_timeout_s: 0 };
    Op::SetService(key, record, (0..BACKENDS).map(backend).collect::<Vec<_>>().into())
}

/// The writer's thread.
struct Churner(Option<JoinHandle<()>>);

impl Churner {
    fn start(mut writer: Writer) -> Churner {
        LOAD.store(Load::Idle as u8, Ordering::Release);
        let (core, _) = cores();
        Churner(Some(std::thread::spawn(move || {
            core.map(core_affinity::set_for_current);
            let mut choices = Choices::new(0xc0ffee);
            let mut next = Instant::now();
            loop {
                match LOAD.load(Ordering::Acquire) {
                    load if load == Load::Stop as u8 => return,
                    load if load == Load::Idle as u8 => {
                        RESTING.store(true, Ordering::Release);
                        std::thread::sleep(Duration::from_micros(100));
                        continue;
                    }
                    load if load == Load::Paced as u8 => {
                        RESTING.store(false, Ordering::Release);
                        next = next.max(Instant::now() - Duration::from_millis(5))
                            + Duration::from_secs(1) / PACE;
                        std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                    load if load == Load::Control as u8 => {
                        RESTING.store(false, Ordering::Release);
                        next = next.max(Instant::now() - Duration::from_millis(5))
                            + Duration::from_secs(1) / CONTROLS_PACE;
                        // Shorter than any sleep.
                        while Instant::now() < next {
                            std::hint::spin_loop();
                        }
                    }
                    _ => RESTING.store(false, Ordering::Release),
                }
                let op = change(choices.below(SERVICES), choices.below(256) as u8);
                if writer.apply(&[op]).is_ok() {
                    WRITTEN.fetch_add(1, Ordering::Relaxed);
                }
            }
        })))
    }

    /// Has it do this from now on.
    fn set(&self, load: Load) {
        LOAD.store(load as u8, Ordering::Release);
        while RESTING.load(Ordering::Acquire) != (load == Load::Idle) {
            std::thread::yield_now();
        }
    }
}

impl Drop for Churner {
    fn drop(&mut self) {
        LOAD.store(Load::Stop as u8, Ordering::Release);
        if let Some(thread) = self.0.take() {
            let _ = thread.join();
        }
    }
}

/// Rounds of each load in turn, so that a noisy moment of the machine falls on all alike; medians, and the medians of
/// the ratios within one turn.
///
/// # Errors
/// [`ChurnError::Broken`] if the writer wrote nothing.
pub fn run(rounds: usize, bursts: usize) -> Result<Vec<Figure>, ChurnError> {
    let mut scenario = Scenario::new(Case::ServiceVxlan, 10_000);
    let mut writer = scenario.take_writer();
    for service in 0..SERVICES {
        writer.apply(&[change(service, 0)]).map_err(|error| ChurnError::Broken(error.to_string()))?;
    }
    // The new services are noted, and every flow is fresh again.
    scenario.round(bursts, MAX_BURST);
    scenario.look_as_workers_do();
    let churner = Churner::start(writer);
    let (_, core) = cores();
    core.map(core_affinity::set_for_current);
    let loads = [Load::Idle, Load::FlatOut, Load::Paced, Load::Control];
    let mut ns: [Vec<f64>; 4] = Default::default();
    let (mut written, mut wrote_for, mut disturbed) = (0, Duration::ZERO, 0.0f64);
    for round in 0..rounds {
        for turn in 0..loads.len() {
            // Each load comes first, second and last equally often.
            let place = (round + turn) % loads.len();
            let (load, ns) = (&loads[place], &mut ns[place]);
            churner.set(*load);
            let (before, begin) = (WRITTEN.load(Ordering::Relaxed), Instant::now());
            let (clocks, left_out) = scenario.undisturbed_round(bursts, LIMIT_NS);
            ns.push(clocks / clock::tsc_per_ns());
            disturbed = disturbed.max(left_out);
            if *load == Load::FlatOut {
                written += WRITTEN.load(Ordering::Relaxed) - before;
                wrote_for += begin.elapsed();
            }
        }
    }
    churner.set(Load::Idle);
    drop(churner);
    scenario.finish();
    if written == 0 {
        return Err(ChurnError::Broken("the writer wrote nothing while packets passed".into()));
    }
    let params = serde_json::json!({ "flows": 10_000, "services": SERVICES });
    let figure = |metric: &str, value: f64, unit: &str| {
        Figure::new("reader_slowdown", params.clone(), metric, value, unit)
    };
    let ratio =
        |loaded: &[f64]| median(loaded.iter().zip(&ns[0]).map(|(loaded, idle)| loaded / idle).collect());
    Ok(vec![
        figure("idle_ns_per_packet", median(ns[0].clone()), "ns"),
        figure("flat_out_ns_per_packet", median(ns[1].clone()), "ns"),
        figure("paced_ns_per_packet", median(ns[2].clone()), "ns"),
        figure("control_ns_per_packet", median(ns[3].clone()), "ns"),
        figure("flat_out_ratio", ratio(&ns[1]), "1"),
        figure("control_ratio", ratio(&ns[3]), "1"),
        figure("control_changes_per_s", f64::from(CONTROLS_PACE), "1/s"),
        figure("paced_ratio", ratio(&ns[2]), "1"),
        figure("flat_out_changes_per_s", written as f64 / wrote_for.as_secs_f64(), "1/s"),
        figure("most_bursts_left_out_share", disturbed, "1"),
        figure("paced_changes_per_s", f64::from(PACE), "1/s"),
    ])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
