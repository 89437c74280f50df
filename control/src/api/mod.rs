//! The control process's API: HTTP and JSON on the Unix socket `control.sock` of the run directory. Read-only.

pub mod client;
mod report;
mod server;
pub mod types;

pub use server::{ApiSocket, ListenError};
