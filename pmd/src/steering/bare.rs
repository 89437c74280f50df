//! What uplinks take that no UDP port tells: tunnels that are IP protocols by themselves, and packets to pods that come
//! without encapsulation.

use super::{MAX_POD_PREFIXES, MAX_PROTOCOLS, Steering, SteeringError, address_key};
use aya::maps::lpm_trie::Key;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// An IP protocol that is a tunnel by itself, and the family of the header that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Protocol {
    /// Its number, such as 4 for IPv4 inside.
    pub number: u8,
    /// Whether the outer header is IPv6.
    pub over_ipv6: bool,
}

impl Protocol {
    /// `OVER_IPV6` of the program.
    const OVER_IPV6: u32 = 0x100;

    fn key(self) -> u32 {
        u32::from(self.number) | if self.over_ipv6 { Self::OVER_IPV6 } else { 0 }
    }
}

impl Steering {
    /// Sets which IP protocols uplinks take that are addressed to this node (see [`Steering::set_node`]), such as 4 for
    /// IPv4 in IPv4. Replaces the previous setting by difference.
    pub fn set_protocols(&mut self, protocols: &[Protocol]) -> Result<(), SteeringError> {
        let wanted: BTreeSet<Protocol> = protocols.iter().copied().collect();
        self.check_room(wanted.len(), 0)?;
        let error = |error: aya::maps::MapError| SteeringError::map("fw_protocols", &error);
        for gone in self.bare.0.clone().difference(&wanted) {
            self.protocols.remove(&gone.key()).map_err(error)?;
            self.bare.0.remove(gone);
        }
        for new in wanted.difference(&self.bare.0.clone()) {
            self.protocols.insert(new.key(), 1, 0).map_err(error)?;
            self.bare.0.insert(*new);
        }
        Ok(())
    }

    /// Sets which destinations uplinks take without encapsulation: address and length of each prefix. Fragments are taken
    /// too. Replaces the previous setting by difference.
    pub fn set_pod_prefixes(&mut self, prefixes: &[(IpAddr, u8)]) -> Result<(), SteeringError> {
        let wanted: BTreeSet<(IpAddr, u8)> = prefixes.iter().copied().collect();
        self.check_room(0, wanted.len())?;
        let error = |error: aya::maps::MapError| SteeringError::map("fw_pod_prefixes", &error);
        for gone in self.bare.1.clone().difference(&wanted) {
            self.pod_prefixes.remove(&prefix_key(*gone)).map_err(error)?;
            self.bare.1.remove(gone);
        }
        for new in wanted.difference(&self.bare.1.clone()) {
            self.pod_prefixes.insert(&prefix_key(*new), 1, 0).map_err(error)?;
            self.bare.1.insert(*new);
        }
        Ok(())
    }

    fn check_room(&self, protocols: usize, prefixes: usize) -> Result<(), SteeringError> {
        if protocols > MAX_PROTOCOLS || prefixes > MAX_POD_PREFIXES {
            return Err(SteeringError::TooManyDestinations { protocols, prefixes });
        }
        Ok(())
    }
}

/// The key of a prefix; IPv4 is mapped into IPv6.
fn prefix_key((address, len): (IpAddr, u8)) -> Key<[u8; 16]> {
    let bits = if address.is_ipv4() { 96 + u32::from(len) } else { u32::from(len) };
    let mut bytes = [0; 16];
    for (place, word) in bytes.chunks_exact_mut(4).zip(address_key(address)) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    Key::new(bits, bytes)
}
