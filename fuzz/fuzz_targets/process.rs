//! Any script of bursts through `process`. `cargo fuzz run process`
#![no_main]

use fairway_dataplane::testkit::fuzz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut world = fuzz::world();
    fuzz::packets(&mut world, data);
    world.finish();
});
