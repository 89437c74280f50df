//! Longest prefix match under random inserts and deletes. `make bench-lpm` does the same with a million.

#[path = "common/churn.rs"]
mod churn;

use fairway_tables::{Capacities, Tables};
use proptest::prelude::Rng;
use proptest::test_runner::{Config, TestRunner};

#[test]
fn look_ups_find_the_longest_match_after_any_inserts_and_deletes_and_nothing_leaks() {
    let capacities = Capacities { routes: 50_000, ..Capacities::default() };
    let (mut writer, factory) = Tables::heap(capacities);
    let mut runner = TestRunner::new(Config::default());
    let rng = runner.rng();
    churn::churn(&mut writer, &mut factory.reader(), 20_000, || rng.next_u64()).unwrap();
}
