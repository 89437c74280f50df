//! The async shell around rtnetlink: lists everything, then follows the kernel's announcements, and lists
//! again when some were lost or when the kernel is known not to announce what follows.

use super::netlink::{Netlink, NetlinkError, message_types, messages};
use super::read::{self, NeighbourTrust};
use crate::index::{Facts, KernelEvent};
use fairway_tables::Ip;
use netlink_packet_core::NetlinkPayload;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket, protocols::NETLINK_ROUTE};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Announcements: links, neighbours, IPv4 addresses, routes and rules, IPv6 addresses, routes and rules, next hop
/// objects (RTNLGRP_* of linux/rtnetlink.h).
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];
/// How soon everything is listed after an announcement that more changed than was announced.
const RELIST_DELAY: Duration = Duration::from_millis(50);
/// How often everything is listed although nothing seems lost.
const RELIST_PERIOD: Duration = Duration::from_secs(60);
/// The end of a next hop object (linux/rtnetlink.h), of which the messages' crate does not know.
const RTM_DELNEXTHOP: u16 = 105;
const RECEIVE_BUFFER_BYTES: i32 = 4 << 20;

/// What the kernel said.
#[derive(Debug)]
pub enum Update {
    /// All of it.
    Listing(Facts, Vec<(u32, Ip, NeighbourTrust)>),
    /// A piece of it.
    Event(KernelEvent),
    /// How sure it is of a neighbour.
    Trust(u32, Ip, NeighbourTrust),
    /// Something that Fairway put into the kernel is gone, be it that Fairway itself took it away.
    OursGone,
}

/// Lists links, addresses, routes and neighbours.
pub fn list() -> Result<Update, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let mut messages = netlink.links()?;
    messages.extend(netlink.addresses()?);
    messages.extend(netlink.routes()?);
    messages.extend(netlink.neighbours()?);
    let (facts, trusts) = read::listing(&messages);
    Ok(Update::Listing(facts, trusts))
}

/// A subscription to the kernel's announcements.
pub struct Subscription(TokioSocket);

impl Subscription {
    /// Subscribes. List after this, not before, or what happens in between is lost.
    pub fn open() -> Result<Subscription, NetlinkError> {
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_mut().bind_auto()?;
            // Without the privilege for a large buffer the default must do; losses are listed again.
            let _ = socket.socket_ref().set_rx_buf_sz(RECEIVE_BUFFER_BYTES);
            for group in GROUPS {
                socket.socket_ref().add_membership(group)?;
            }
            Ok(socket)
        };
        let failed =
            |error| NetlinkError { what: "subscribe to link, neighbour and route changes".into(), error };
        open().map(Subscription).map_err(failed)
    }

    /// Follows the announcements until the receiver is gone.
    pub async fn follow(self, updates: mpsc::Sender<Update>) {
        let mut relist_at = Instant::now() + RELIST_PERIOD;
        loop {
            let received = tokio::select! {
                received = self.0.recv_from_full() => received,
                () = tokio::time::sleep_until(relist_at) => {
                    relist_at = Instant::now() + RELIST_PERIOD;
                    match tokio::task::spawn_blocking(list).await {
                        Ok(Ok(listing)) => if updates.send(listing).await.is_err() { return },
                        Ok(Err(error)) => tracing::warn!(%error, "listing failed; it is repeated"),
                        Err(error) => tracing::warn!(%error, "listing failed; it is repeated"),
                    }
                    continue;
                }
            };
            let soon = Instant::now() + RELIST_DELAY;
            match received {
                Ok((bytes, _)) => {
                    // Routes go with their next hop object without a word.
                    if message_types(&bytes).any(|kind| kind == RTM_DELNEXTHOP) {
                        relist_at = relist_at.min(soon);
                    }
                    for (header, payload) in messages(&bytes) {
                        let NetlinkPayload::InnerMessage(message) = payload else { continue };
                        let meaning = read::meaning(&message, header.flags);
                        if meaning.relist {
                            relist_at = relist_at.min(soon);
                        }
                        let gone = meaning.ours_gone.then_some(Update::OursGone);
                        let trust = meaning.trust.map(|(i, ip, trust)| Update::Trust(i, ip, trust));
                        for update in
                            trust.into_iter().chain(gone).chain(meaning.events.into_iter().map(Update::Event))
                        {
                            if updates.send(update).await.is_err() {
                                return;
                            }
                        }
                    }
                }
                Err(error) => {
                    // ENOBUFS: the kernel said more than the buffer holds.
                    tracing::warn!(%error, "kernel announcements were lost; listing everything again");
                    relist_at = relist_at.min(soon);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}
