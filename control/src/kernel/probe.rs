//! Which neighbours the kernel must be asked to resolve, and when. Pure: the clock is passed in.

use super::read::NeighbourTrust;
use fairway_tables::Ip;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// First pause between two tries for an unresolved neighbour; it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Shortest pause between two confirmations of one that is known.
const CONFIRM_PAUSE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
struct Attempt {
    at: Instant,
    pause: Duration,
}

/// Keeps the neighbours that tunnels lead through resolved: the kernel itself only asks for what it
/// sends to, and the engine's packets it does not see.
#[derive(Debug, Default)]
pub struct Prober {
    trust: BTreeMap<(u32, Ip), NeighbourTrust>,
    attempts: BTreeMap<(u32, Ip), Attempt>,
}

impl Prober {
    /// Takes in how sure the kernel is of a neighbour.
    pub fn note(&mut self, ifindex: u32, ip: Ip, trust: NeighbourTrust) {
        let key = (ifindex, ip);
        let before = if trust == NeighbourTrust::Unknown {
            self.trust.remove(&key)
        } else {
            self.trust.insert(key, trust)
        };
        // One that was just lost is asked for at once.
        if trust == NeighbourTrust::Fresh || before.is_some() && trust == NeighbourTrust::Unknown {
            self.attempts.remove(&key);
        }
    }

    /// Replaces everything noted by a listing.
    pub fn replace(&mut self, listing: &[(u32, Ip, NeighbourTrust)]) {
        self.trust.clear();
        self.trust.extend(listing.iter().map(|(i, ip, trust)| ((*i, *ip), *trust)));
        self.trust.retain(|_, trust| *trust != NeighbourTrust::Unknown);
    }

    /// The neighbours to ask for now, out of those that are needed.
    pub fn due(&mut self, now: Instant, needed: impl Iterator<Item = (u32, Ip)>) -> Vec<(u32, Ip)> {
        let mut due = Vec::new();
        let mut attempts = BTreeMap::new();
        for key in needed {
            let last = self.attempts.get(&key).copied();
            let pause = match self.trust.get(&key) {
                Some(NeighbourTrust::Fresh) => continue,
                Some(NeighbourTrust::Stale) => CONFIRM_PAUSE,
                _ => last.map_or(MIN_PAUSE, |last| last.pause),
            };
            match last {
                Some(last) if now < last.at + pause => drop(attempts.insert(key, last)),
                _ => {
                    due.push(key);
                    let next = last.map_or(MIN_PAUSE, |last| (last.pause * 2).min(MAX_PAUSE));
                    attempts.insert(key, Attempt { at: now, pause: next });
                }
            }
        }
        self.attempts = attempts;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unresolved_neighbour_is_asked_for_with_growing_pauses_and_at_once_when_lost() {
        let start = Instant::now();
        let ip = Ip::v4([192, 0, 2, 1]);
        let mut prober = Prober::default();
        let mut tries = Vec::new();
        for ms in (0..120_000).step_by(50) {
            if !prober.due(start + Duration::from_millis(ms), [(2, ip)].into_iter()).is_empty() {
                tries.push(ms);
            }
        }
        assert_eq!(tries[..6], [0, 250, 750, 1750, 3750, 7750]);
        assert!(tries.windows(2).all(|w| w[1] - w[0] <= 30_000));

        let later = start + Duration::from_secs(200);
        prober.note(2, ip, NeighbourTrust::Fresh);
        assert_eq!(prober.due(later, [(2, ip)].into_iter()), []);
        prober.note(2, ip, NeighbourTrust::Stale);
        assert_eq!(prober.due(later, [(2, ip)].into_iter()), [(2, ip)]);
        assert_eq!(prober.due(later + Duration::from_secs(1), [(2, ip)].into_iter()), []);
        prober.note(2, ip, NeighbourTrust::Unknown);
        assert_eq!(prober.due(later + Duration::from_secs(1), [(2, ip)].into_iter()), [(2, ip)]);
    }
}
