//! The kernel of this node, over rtnetlink: what it says ([`Subscription`], [`list`]), which neighbours it
//! must resolve ([`Prober`]), and the node's own network ([`prepare`]). It acts in the current network namespace only.

mod netlink;
mod offload;
pub mod ports;
pub mod prepare;
mod probe;
mod read;
mod watch;

pub use netlink::{Netlink, NetlinkError, ROUTE_PROTOCOL};
pub use offload::OffloadError;
pub use probe::Prober;
pub use read::NeighbourTrust;
pub use watch::{Subscription, Update, list};
