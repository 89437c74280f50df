//! The searches of RFC 2544 and RFC 9004 against simulated devices whose limit is known.

use fairway_bench::pktgen::rfc2544::search::{Search, Verdict};
use proptest::prelude::*;
use std::convert::Infallible;

/// A device that carries `capacity` packets a second and loses what is above.
fn loss_of(capacity: f64, rate: f64) -> f64 {
    (1.0 - capacity / rate).max(0.0)
}

fn search(loss_limit: f64, attempts: u32) -> Search {
    Search { min: 1000.0, max: 20e6, precision: 0.01, loss_limit, attempts }
}

fn ok<T>(result: Result<T, Infallible>) -> T {
    result.unwrap_or_else(|never| match never {})
}

proptest! {
    #[test]
    fn the_limit_of_a_steady_device_is_found_within_the_precision(
        capacity in 1000.0f64..19e6,
        loss_limit in prop_oneof![Just(0.0), 0.0001f64..0.05],
    ) {
        let search = search(loss_limit, 1);
        let found = ok(search.highest(|rate| Ok(Verdict { loss: loss_of(capacity, rate), offered: true })));
        // With a loss limit p, rates up to capacity / (1 - p) pass.
        let limit = capacity / (1.0 - loss_limit);
        prop_assert!(found.rate <= limit * (1.0 + 1e-9), "{found:?}");
        prop_assert!(found.rate * 1.011 >= limit, "{found:?} for {limit}");
        prop_assert!(found.failed_at.is_some_and(|failed| failed > limit));
        prop_assert!(found.trials <= 14, "{found:?}");
    }

    #[test]
    fn disturbances_shorter_than_the_attempts_do_not_lower_the_result(
        capacity in 1000.0f64..19e6,
        disturbed in prop::collection::vec(any::<bool>(), 64),
    ) {
        // Noise fails at most two trials in a row.
        let (mut trial, mut in_a_row) = (0, 0);
        let noisy = |rate| {
            trial += 1;
            let noise = disturbed[trial % disturbed.len()] && in_a_row < 2;
            in_a_row = if noise { in_a_row + 1 } else { 0 };
            Ok(Verdict { loss: loss_of(capacity, rate) + if noise { 0.3 } else { 0.0 }, offered: true })
        };
        let found = ok(search(0.0, 3).highest(noisy));
        prop_assert!(found.rate <= capacity && found.rate * 1.011 >= capacity, "{found:?} for {capacity}");
    }

    #[test]
    fn a_rate_that_was_not_offered_never_passes(capacity in 1e5f64..19e6, can_offer in 2e3f64..9e4) {
        let verdict = |rate| Ok(Verdict { loss: loss_of(capacity, rate), offered: rate <= can_offer });
        let found = ok(search(0.0, 1).highest(verdict));
        prop_assert!(found.rate <= can_offer && found.rate * 1.011 >= can_offer, "{found:?}");
    }

    #[test]
    fn the_longest_burst_is_found_exactly(buffer in 0u32..5000, min in 1u32..10) {
        let longest = ok(Search::longest(min, 4000, |burst| Ok(burst <= buffer)));
        let expected = if buffer < min { 0 } else { buffer.min(4000) };
        prop_assert_eq!(longest, expected);
    }
}

#[test]
fn a_device_faster_than_the_generator_has_the_generators_rate() {
    let found = ok(search(0.0, 2).highest(|_| Ok(Verdict { loss: 0.0, offered: true })));
    assert_eq!((found.rate, found.failed_at, found.trials), (20e6, None, 1));
}

#[test]
fn a_device_that_carries_nothing_has_rate_zero() {
    let found = ok(search(0.0, 2).highest(|_| Ok(Verdict { loss: 1.0, offered: true })));
    assert_eq!((found.rate, found.failed_at), (0.0, Some(1000.0)));
}

#[test]
fn an_error_of_the_measurement_ends_the_search() {
    let mut trials = 0;
    let result = search(0.0, 2).highest(|_| {
        trials += 1;
        Err("broken")
    });
    assert_eq!((result, trials), (Err("broken"), 1));
}
