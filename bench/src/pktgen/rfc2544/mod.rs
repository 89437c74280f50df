//! The benchmarks of RFC 2544, with RFC 9004's back-to-back frames.

pub mod bench;
pub mod command;
pub mod search;
pub mod stats;
