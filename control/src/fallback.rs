//! Keeps the kernel ready to carry pod traffic ([`kernel::fallback`]), and watches whether it has to: nothing needs to be
//! switched over, but senders to addresses that only the engine can serve are told once it stays away.

use crate::api::types;
use crate::core::SharedCore;
use crate::kernel::fallback::{self as kernel_fallback, Mode};
use fairway_tables::stats::{ProcessState, StatsReader};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often is looked whether something changed.
const TICK: Duration = Duration::from_millis(100);
/// How often is looked whether the engine runs, in ticks.
const WATCH_TICKS: u32 = 3;
/// How often everything is compared with the kernel although nothing is known to have changed.
const PERIOD: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(5);
/// How long packets to services just vanish while the engine is away. A restart is over sooner, and a sender that
/// is told gives up on a connection that it is about to open.
const REFUSE_AFTER: Duration = Duration::from_secs(5);

/// Who carries the pods' traffic, and since when.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Whether the engine runs.
    pub engine: bool,
    /// Since when that is so; `None` before the first look.
    pub since: Option<Instant>,
    /// Whether senders to services are told that nobody serves them.
    pub refused: bool,
}

impl Traffic {
    /// Takes in whether the engine runs now.
    pub fn observe(&mut self, engine: bool, now: Instant) {
        if self.since.is_none() || self.engine != engine {
            (self.engine, self.since) = (engine, Some(now));
        }
        let away = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.refused = !engine && away >= REFUSE_AFTER;
    }

    /// As the API tells it.
    pub fn report(&self, kernel_fallback: bool) -> types::Traffic {
        let (carried_by, services) = match (self.engine, kernel_fallback, self.refused) {
            (true, ..) => ("engine", "forwarded"),
            (false, true, true) => ("kernel", "refused"),
            (false, true, false) => ("kernel", "dropped"),
            (false, false, _) => ("none", "dropped"),
        };
        types::Traffic {
            carried_by: carried_by.to_owned(),
            for_s: self.since.map_or(0, |since| since.elapsed().as_secs()),
            kernel_fallback,
            services: services.to_owned(),
            not_carried: Vec::new(),
        }
    }
}

/// Whether the engine lives and has its ports open.
pub(crate) fn engine_runs(run_dir: &Path) -> bool {
    let snapshot = StatsReader::open(run_dir).map(|reader| reader.snapshot());
    snapshot.is_ok_and(|snapshot| snapshot.alive && snapshot.state == ProcessState::Running)
}

/// What was last brought about.
#[derive(Clone, Copy)]
struct Done {
    epoch: u64,
    mode: Mode,
    at: Instant,
    failed: bool,
}

/// Never ends by itself.
pub async fn keep(core: SharedCore) {
    let options = core.lock().options().clone();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut traffic = Traffic::default();
    let mut done = None;
    let mut removed = false;
    for count in 0u32.. {
        tick.tick().await;
        if count % WATCH_TICKS == 0 {
            let before = traffic;
            traffic.observe(engine_runs(&options.run_dir), Instant::now());
            tell(&before, &traffic, options.kernel_fallback);
            core.lock().set_traffic(traffic);
        }
        if options.kernel_fallback {
            done = bring_in_line(&core, traffic.refused, done).await;
        } else if !removed {
            removed = remove(&core).await;
        }
    }
}

fn tell(before: &Traffic, now: &Traffic, kernel_fallback: bool) {
    if before.since.is_some() && before.engine == now.engine {
        return;
    }
    match (now.engine, kernel_fallback) {
        (true, _) => tracing::info!("the engine carries the traffic"),
        (false, true) => tracing::warn!(
            "the engine is not running: the kernel carries pod-to-pod traffic; no Services, no NetworkPolicy"
        ),
        (false, false) => {
            tracing::warn!(
                "the engine is not running, and the kernel fallback is off: pod traffic is dropped"
            );
        }
    }
}

/// One look: does nothing unless something changed or was not looked at for long.
async fn bring_in_line(core: &SharedCore, refuse: bool, done: Option<Done>) -> Option<Done> {
    let (epoch, plan, mode) = {
        let core = core.lock();
        let epoch = core.fallback_epoch();
        let mode = Mode { refuse, keep_others: core.folder().has_errors() };
        if let Some(done) = &done {
            let pause = if done.failed { RETRY } else { PERIOD };
            if done.epoch == epoch && done.mode == mode && done.at.elapsed() < pause {
                return Some(*done);
            }
        }
        (epoch, core.fallback_plan()?, mode)
    };
    let outcome = tokio::task::spawn_blocking(move || kernel_fallback::reconcile(&plan, mode)).await;
    let (errors, not_carried) = match outcome {
        Ok(outcome) => (outcome.errors.iter().map(ToString::to_string).collect(), outcome.not_carried),
        Err(error) => {
            let said = format!("the kernel fallback's preparation ended: {error}; look at the log above");
            (vec![said], BTreeSet::new())
        }
    };
    let failed = !errors.is_empty();
    let mut core = core.lock();
    core.set_error("kernel fallback", failed.then(|| format!("kernel fallback: {}", errors.join("; "))));
    core.set_not_carried(not_carried);
    Some(Done { epoch, mode, at: Instant::now(), failed })
}

/// Removes what an earlier run made; whether that worked.
async fn remove(core: &SharedCore) -> bool {
    let result = tokio::task::spawn_blocking(kernel_fallback::cleanup).await;
    let error = match result {
        Ok(result) => result.err().map(|error| format!("kernel fallback not removed: {error}")),
        Err(error) => Some(format!("kernel fallback not removed: {error}")),
    };
    let worked = error.is_none();
    core.lock().set_error("kernel fallback", error);
    worked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_to_services_are_told_only_when_the_engine_stays_away() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut traffic = Traffic::default();
        traffic.observe(true, at(0));
        assert_eq!(traffic.report(true).carried_by, "engine");
        traffic.observe(false, at(60_000));
        assert_eq!((traffic.since, traffic.refused), (Some(at(60_000)), false));
        traffic.observe(false, at(64_900));
        assert_eq!(traffic.report(true).services, "dropped");
        traffic.observe(false, at(65_000));
        assert_eq!((traffic.since, traffic.refused), (Some(at(60_000)), true));
        assert_eq!(traffic.report(true).services, "refused");
        traffic.observe(true, at(66_000));
        assert_eq!((traffic.since, traffic.refused), (Some(at(66_000)), false));
    }

    #[test]
    fn without_the_fallback_nobody_carries_traffic_while_the_engine_is_away() {
        let mut traffic = Traffic::default();
        traffic.observe(false, Instant::now());
        assert_eq!(traffic.report(false).carried_by, "none");
        assert_eq!(traffic.report(true).carried_by, "kernel");
    }
}
