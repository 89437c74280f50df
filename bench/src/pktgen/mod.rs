//! `fairway-pktgen`: a generator and a sink over the engine's drivers, and what is measured with them.
//! docs/pktgen.md explains fields, counts and methods.
//!
//! | module | what lives there |
//! |---|---|
//! | [`scenario`], [`ranges`] | the scenario file, validated |
//! | [`paths`], [`plan`] | ways through the device under test; flows by number |
//! | [`frame`], [`arrival`], [`generator`] | which packet when, and its bytes; no I/O, no clock |
//! | [`sink`] | loss, duplicates, order and latency of what arrives; no I/O, no clock |
//! | [`trial`], [`sender`], [`cpu`], [`cores`] | the loops that move packets; CPU time of the machine; who runs where |
//! | [`establish`] | flows made established connections |
//! | [`sessions`] | TCP-like sessions for connection rates |
//! | [`device`] | devices under test |
//! | [`rfc2544`] | search, statistics, and the benchmarks made of trials |
//! | [`peers`], [`cost`] | the comparison with others; the engine alone |
//! | [`handoff`], [`idle`], [`slowdown`] | packets between workers; adaptive polling while nothing happens; changes of tables |
//! | [`targets`] | what a run is to show |
//! | [`page`], [`chart`] | one HTML page of figures, with plots |
//! | [`cli`], [`run`] | the command line, one file per subcommand |
//!
//! Nothing here decides how packets are forwarded, and the engine links nothing of it.

pub mod arrival;
pub mod chart;
pub mod cli;
pub mod cores;
pub mod cost;
pub mod cpu;
pub mod device;
pub mod establish;
pub mod frame;
pub mod generator;
pub mod handoff;
pub mod idle;
pub mod page;
pub mod paths;
pub mod peers;
pub mod plan;
pub mod random;
pub mod ranges;
pub mod rfc2544;
pub mod run;
pub mod scenario;
pub mod sender;
pub mod sessions;
pub mod sink;
pub mod slowdown;
pub mod targets;
pub mod trial;
pub mod waking;
