//! What uplinks take because it answers packets that left with a translated source.

use super::{MAX_SNAT_ADDRESSES, Steering, SteeringError, address_key};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

impl Steering {
    /// Sets the sources that packets leave with translated, and the ports (of ICMP echo, identifiers) that they are given.
    /// Uplinks take what is addressed there, and ICMP errors about what was sent from there. Replaces the previous
    /// setting by difference.
    pub fn set_snat(
        &mut self,
        addresses: &[IpAddr],
        ports: &RangeInclusive<u16>,
    ) -> Result<(), SteeringError> {
        let range = [*ports.start(), *ports.end()];
        let wanted: BTreeMap<IpAddr, [u16; 2]> =
            addresses.iter().map(|ip| (ip.to_canonical(), range)).collect();
        if wanted.len() > MAX_SNAT_ADDRESSES {
            return Err(SteeringError::TooManySources { addresses: wanted.len() });
        }
        let error = |error: aya::maps::MapError| SteeringError::map("fw_snat", &error);
        let gone: Vec<IpAddr> =
            self.snat_held.keys().filter(|ip| !wanted.contains_key(ip)).copied().collect();
        for ip in gone {
            self.snat.remove(&address_key(ip)).map_err(error)?;
            self.snat_held.remove(&ip);
        }
        for (ip, range) in wanted {
            if self.snat_held.get(&ip) != Some(&range) {
                self.snat.insert(address_key(ip), range, 0).map_err(error)?;
                self.snat_held.insert(ip, range);
            }
        }
        Ok(())
    }
}
