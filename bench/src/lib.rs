//! Fairway's benchmarks. What lives here measures; it decides nothing and is linked by nothing.

pub mod alloc;
pub mod churn;
pub mod connections;
pub mod engine;
pub mod lpm;
pub mod pktgen;
