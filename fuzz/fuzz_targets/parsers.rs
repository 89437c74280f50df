//! Any bytes through every parser. `cargo fuzz run parsers`
#![no_main]

use fairway_dataplane::parse::Ingress;
use fairway_dataplane::testkit::fuzz;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static INGRESSES: LazyLock<Vec<Ingress>> = LazyLock::new(|| fuzz::ingresses(&fuzz::world()));

fuzz_target!(|data: &[u8]| fuzz::parsers(&INGRESSES, data));
