//! What the change of a Maglev list costs, from the batch to the published table, and whom it moves: one service of so many
//! backends, of which one goes and comes back. The same without Maglev says how much of that the list itself costs.

use super::{Choices, ChurnError, Times};
use fairway_tables::{Backend, BackendSet, Capacities, Ip, Op, Service, ServiceKey, Tables, Writer};
use fairway_tests::report::Figure;
use std::time::Instant;

/// Clients whose choice is compared before and after.
const CLIENTS: u64 = 50_000;
/// Backends taken away, whose clients are looked at.
const LOOKED_AT: usize = 20;

fn key() -> ServiceKey {
    ServiceKey::new(Ip::v4([10, 96, 0, 1]), 80, 6)
}

fn set(backends: &[Backend], flags: u32) -> Op {
    Op::SetService(key(), Service { id: 1, flags, affinity_timeout_s: 0 }, backends.to_vec().into())
}

fn apply(writer: &mut Writer, op: Op) -> Result<f64, ChurnError> {
    let ops = [op];
    let start = Instant::now();
    writer.apply(&ops).map_err(|error| ChurnError::Broken(error.to_string()))?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

/// The backend of each client.
fn choices(writer: &Writer) -> Vec<Option<Backend>> {
    let Some(service) = writer.view().service(&key()) else { return Vec::new() };
    let choose =
        |set: BackendSet<'_>, client: u64| set.get(set.maglev(client.wrapping_mul(0x9e37_79b9_7f4a_7c15))?);
    (0..CLIENTS).map(|client| choose(service.cluster(), client)).collect()
}

/// Measures one list of so many backends.
///
/// # Errors
/// If the tables refuse it.
pub fn run(backends: u16, changes: usize) -> Result<Vec<Figure>, ChurnError> {
    let all: Vec<Backend> = (0..backends)
        .map(|n| Backend { ip: Ip::v4([10, 1, (n >> 8) as u8, n as u8]), port: 8080, flags: 0 })
        .collect();
    let params = serde_json::json!({ "backends": backends });
    let (mut figures, mut choice) = (Vec::new(), Choices::new(7));
    for (case, flags) in [("maglev_change", Service::MAGLEV), ("random_change", 0)] {
        let (mut writer, _readers) = Tables::heap(Capacities::default());
        let mut built = Times::default();
        let mut times = Times::default();
        for _ in 0..LOOKED_AT {
            built.add_us(apply(&mut writer, set(&all, flags))?);
            apply(&mut writer, Op::DelService(key()))?;
        }
        apply(&mut writer, set(&all, flags))?;
        for _ in 0..changes {
            let mut fewer = all.clone();
            fewer.remove(choice.below(all.len()));
            times.add_us(apply(&mut writer, set(&fewer, flags))?);
            times.add_us(apply(&mut writer, set(&all, flags))?);
        }
        figures.extend(times.figures(case, &params));
        figures.push(Figure::new(case, params.clone(), "from_nothing_p50_us", built.quantile_us(0.5), "us"));
        if flags & Service::MAGLEV != 0 {
            let (mean, most) = disruption(&mut writer, &all, &mut choice)?;
            figures.push(Figure::new("maglev_disruption", params.clone(), "mean_share", mean, "1"));
            figures.push(Figure::new("maglev_disruption", params.clone(), "max_share", most, "1"));
        }
    }
    Ok(figures)
}

/// The share of the other backends' clients that a backend's going moves: mean and most.
fn disruption(writer: &mut Writer, all: &[Backend], choice: &mut Choices) -> Result<(f64, f64), ChurnError> {
    let before = choices(writer);
    let (mut sum, mut most) = (0.0, 0.0f64);
    for _ in 0..LOOKED_AT {
        let mut fewer = all.to_vec();
        let gone = Some(fewer.remove(choice.below(all.len())));
        apply(writer, set(&fewer, Service::MAGLEV))?;
        let after = choices(writer);
        let others = || before.iter().zip(&after).filter(|(old, _)| **old != gone);
        let share = others().filter(|(old, new)| old != new).count() as f64 / others().count().max(1) as f64;
        (sum, most) = (sum + share, most.max(share));
        apply(writer, set(all, Service::MAGLEV))?;
    }
    Ok((sum / LOOKED_AT as f64, most))
}
