//! What runs inside a pod of the testbed, as the program `fairway-pod`: an HTTP and UDP server whose
//! answers can be checked to the byte, and a client that checks and measures them.

pub mod client;
pub mod pattern;
pub mod server;
pub mod udp;
