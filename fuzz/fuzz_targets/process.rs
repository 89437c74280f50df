//! Any script of bursts through `process`. `cargo fuzz run process`
#![no_main]

use fairway_dataplane::testkit::{World, fuzz};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

thread_local! {
    // Making tables takes longer than a case; each case puts back what the one before changed.
    static WORLD: RefCell<World> = RefCell::new(fuzz::world());
}

fuzz_target!(|data: &[u8]| WORLD.with_borrow_mut(|world| fuzz::packets(world, data)));
