//! How many frames a socket keeps with the kernel to receive into: a share of what the pool can spare.
//!
//! Frames are dear where ports are many: for each socket the kernel keeps a record of every frame of the UMEM, so that its
//! memory grows with the product of both (docs/af_xdp.md has figures). Hence a fixed number per port is either
//! too few for the busy ones or too many for all. Switches have the same problem with their packet memory, and
//! solve it by dynamic thresholds (Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998): what a
//! queue may have is a fraction of what is free at that moment. A queue that is alone gets much, many get equal
//! shares, and none has to know of the others.
//!
//! What is in the fill ring cannot be taken out of it again but by packets. So a port that falls idle keeps what
//! it has, and most of the frames are never shared out: the least that each port needs comes from them, and what
//! is on its way.

use super::AfXdpConfig;
use crate::pool::FrameCache;
use serde::{Deserialize, Serialize};

/// Of eight frames of the UMEM, so many are not shared out beyond the least of each queue.
const KEPT: usize = 5;
/// A queue that receives may have one in so many of those left,
const BUSY: usize = 4;
/// and one that opens, perhaps to stay idle, one in so many.
const OPENING: usize = 64;
/// Fill the ring up once this many frames are missing from it, so that its cursor is stored once for many.
const REFILL: u32 = 32;

/// The share of one queue, in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fill {
    min: u32,
    max: u32,
    target: u32,
}

impl Fill {
    /// What a queue begins with.
    pub(super) fn new(config: &AfXdpConfig, cache: &FrameCache) -> Fill {
        let mut fill = Fill { min: config.fill_min, max: config.fill_target, target: 0 };
        fill.set(OPENING, cache.pooled(), cache.umem().frames());
        fill
    }

    /// Sets the target by what the pool has now. Once per burst that brought packets.
    #[inline]
    pub(super) fn adjust(&mut self, cache: &FrameCache) {
        if self.min < self.max {
            self.set(BUSY, cache.pooled(), cache.umem().frames());
        }
    }

    #[inline]
    fn set(&mut self, one_in: usize, home: usize, all: usize) {
        let share = home.saturating_sub(all * KEPT / 8) / one_in;
        self.target = share.clamp(self.min as usize, self.max as usize) as u32;
    }

    /// Frames that the kernel is to have.
    pub(super) fn target(&self) -> u32 {
        self.target
    }

    /// How many frames to give to the kernel, which has `filling`: none before there are some to give at once.
    #[inline]
    pub(super) fn missing(&self, filling: u32) -> u32 {
        let missing = self.target.saturating_sub(filling);
        if missing >= REFILL.min(self.target.div_ceil(2)) { missing } else { 0 }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAMES: usize = 16_384;

    /// Ports, and what each has in its fill ring; the pool has the rest.
    struct Node {
        ports: Vec<(Fill, u32)>,
        home: usize,
    }

    impl Node {
        fn new(pods: usize) -> Node {
            let mut node = Node { ports: Vec::new(), home: FRAMES };
            node.open(&AfXdpConfig::uplink(1));
            (0..pods).for_each(|_| node.open(&AfXdpConfig::pod()));
            node
        }

        fn open(&mut self, config: &AfXdpConfig) {
            let mut fill = Fill { min: config.fill_min, max: config.fill_target, target: 0 };
            fill.set(OPENING, self.home, FRAMES);
            assert!(fill.target as usize <= self.home, "port {} has too few", self.ports.len());
            self.home -= fill.target as usize;
            self.ports.push((fill, fill.target));
        }

        /// Packets come, are forwarded, and their frames go home.
        fn receive(&mut self, port: usize, packets: u32) {
            let (fill, filling) = &mut self.ports[port];
            let packets = packets.min(*filling);
            *filling -= packets;
            fill.set(BUSY, self.home, FRAMES);
            let given = fill.missing(*filling).min(self.home as u32);
            *filling += given;
            self.home = self.home - given as usize + packets as usize;
        }
    }

    #[test]
    fn a_few_busy_ports_have_all_they_may_and_most_of_it_among_many_idle_ones() {
        for (pods, least) in [(5, 512 - REFILL), (30, 256)] {
            let mut node = Node::new(pods);
            (0..9).for_each(|_| (1..4).for_each(|port| node.receive(port, 300)));
            for port in 1..4 {
                assert!(node.ports[port].1 >= least, "{} frames among {pods} pods", node.ports[port].1);
            }
        }
    }

    proptest! {
        #[test]
        fn there_is_room_for_every_port_whichever_were_busy_before(
            bursts in prop::collection::vec((any::<prop::sample::Index>(), 1u32..600), 0..2000),
            before in 1usize..=250,
        ) {
            let mut node = Node::new(before);
            for (port, packets) in bursts {
                let port = port.index(node.ports.len());
                node.receive(port, packets);
                prop_assert!(node.ports[port].1 > node.ports[port].0.min / 2);
            }
            (before..250).for_each(|_| node.open(&AfXdpConfig::pod()));
            // What is on its way: a hand-off ring and a full send ring.
            prop_assert!(node.home >= 2048, "{} frames are left", node.home);
        }

        #[test]
        fn ports_that_are_all_busy_get_equal_shares(pods in 2usize..250) {
            let mut node = Node::new(pods);
            for _ in 0..100 {
                (1..=pods).for_each(|port| node.receive(port, 512));
            }
            let all = || node.ports[1..].iter().map(|(_, filling)| *filling);
            prop_assert!(all().max() <= all().min().map(|least| least + 2 * REFILL), "{:?}", all().collect::<Vec<_>>());
        }
    }
}
