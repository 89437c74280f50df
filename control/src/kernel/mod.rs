//! The kernel of this node, over rtnetlink: what it says ([`Subscription`], [`list`]), which neighbours it
//! must resolve ([`Prober`]), the node's own network ([`prepare`]), and its way without the engine ([`fallback`]). It acts in the current network namespace only.

pub mod fallback;
mod netlink;
mod offload;
pub mod ports;
pub mod prepare;
mod probe;
mod read;
mod sysctl;
mod watch;

pub use netlink::{Netlink, NetlinkError, ROUTE_PROTOCOL};
pub use offload::OffloadError;
pub use probe::Prober;
pub use read::NeighbourTrust;
pub use watch::{Subscription, Update, list};
