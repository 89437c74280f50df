//! What runs inside a pod of the testbed, as the program `fairway-pod`: an HTTP and UDP server whose
//! answers can be checked to the byte, and clients that check and measure them.

mod association;
pub mod client;
pub mod pattern;
pub mod probe;
pub mod server;
pub mod stream;
pub mod udp;
pub mod witness;
