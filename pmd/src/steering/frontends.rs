//! What uplinks take for services: packets to certain addresses and ports, such as node ports and load balancers'
//! addresses. All else that is sent to such an address stays with the kernel, which may have it for its own.

use super::{MAX_FRONTENDS, Steering, SteeringError, address_key};
use aya::maps::{HashMap as BpfHashMap, MapData};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// An address, port and IP protocol (6 TCP, 17 UDP, 132 SCTP) at which a service is reached.
pub type Frontend = (IpAddr, u16, u8);

impl Steering {
    /// Sets for which services uplinks take packets. Fragments are left to the kernel: only the first of a datagram bears
    /// a port. Replaces the previous setting by difference.
    ///
    /// # Errors
    /// [`SteeringError::TooManyFrontends`] if they do not fit; then nothing changes.
    pub fn set_frontends(&mut self, wanted: BTreeSet<Frontend>) -> Result<(), SteeringError> {
        let (map, held) = &mut self.frontends;
        sync_frontends(map, "fw_frontends", held, wanted, MAX_FRONTENDS)
    }
}

/// Brings a map of frontends, which holds `held`, in line with what is wanted.
pub(crate) fn sync_frontends(
    map: &mut BpfHashMap<MapData, [u32; 5], u32>,
    name: &'static str,
    held: &mut BTreeSet<Frontend>,
    wanted: BTreeSet<Frontend>,
    room: usize,
) -> Result<(), SteeringError> {
    if wanted.len() > room {
        return Err(SteeringError::TooManyFrontends { frontends: wanted.len(), room });
    }
    let error = |error: aya::maps::MapError| SteeringError::map(name, &error);
    // Removals first: the map has room for the new set, not for both.
    let gone: Vec<Frontend> = held.difference(&wanted).copied().collect();
    for frontend in gone {
        map.remove(&key(frontend)).map_err(error)?;
        held.remove(&frontend);
    }
    for frontend in wanted {
        if !held.contains(&frontend) {
            map.insert(key(frontend), 1, 0).map_err(error)?;
            held.insert(frontend);
        }
    }
    Ok(())
}

/// The key of a frontend: address, port in network order, protocol, zero.
fn key((address, port, protocol): Frontend) -> [u32; 5] {
    let [a, b, c, d] = address_key(address);
    let [high, low] = port.to_be_bytes();
    [a, b, c, d, u32::from_ne_bytes([high, low, protocol, 0])]
}
