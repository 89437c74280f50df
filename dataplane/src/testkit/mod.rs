//! A small cluster in heap memory, for tests, fuzzing and benchmarks: the real tables, the real frames, the
//! real [`process`](crate::process), and packets made by hand.

pub mod addr;
pub mod connections;
pub mod fuzz;
pub mod packet;
pub mod packet6;
mod world;

pub use world::{World, WorldConfig};
