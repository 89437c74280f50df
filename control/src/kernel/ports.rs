//! The ports that the node's own network stack gives to its connections, which translated sources must not share
//! (`ip_local_port_range` and `ip_local_reserved_ports` in the kernel's ip-sysctl documentation).

use crate::masquerade::SnatPorts;
use std::ops::RangeInclusive;
use std::path::Path;

const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The node's own stack gives out ports that are wanted for translated sources, and cannot be kept from it.
#[derive(Debug, thiserror::Error)]
#[error(
    "--snat-ports {first}-{last} overlaps the ports that the kernel gives out, {ephemeral} (net.ipv4.ip_local_port_range), and they cannot be reserved: {reason}; choose others, or add {first}-{last} to net.ipv4.ip_local_reserved_ports"
)]
pub struct PortsInUse {
    first: u16,
    last: u16,
    ephemeral: String,
    reason: std::io::Error,
}

/// Sees to it that the kernel does not give out these ports: where its range overlaps them, they are reserved. What is
/// reserved already stays so.
///
/// # Errors
/// [`PortsInUse`] if the kernel refuses.
pub fn reserve(ports: SnatPorts) -> Result<(), PortsInUse> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let (ephemeral, reserved) = (read(EPHEMERAL), read(RESERVED));
    if !is_given_out(&ports.range(), &ephemeral, &reserved) {
        return Ok(());
    }
    let SnatPorts { first, last } = ports;
    let separator = if reserved.trim().is_empty() { "" } else { "," };
    let wanted = format!("{}{separator}{first}-{last}", reserved.trim());
    std::fs::write(RESERVED, &wanted).map_err(|reason| PortsInUse {
        first,
        last,
        ephemeral: ephemeral.split_whitespace().collect::<Vec<_>>().join("-"),
        reason,
    })?;
    tracing::info!(ports = wanted, "ports of translated sources reserved from the kernel's ephemeral ones");
    Ok(())
}

/// Whether the kernel gives out one of the ports, by its two settings as they read.
fn is_given_out(ports: &RangeInclusive<u16>, ephemeral: &str, reserved: &str) -> bool {
    let mut ends = ephemeral.split_whitespace().filter_map(|text| text.parse::<u16>().ok());
    let (Some(low), Some(high)) = (ends.next(), ends.next()) else { return false };
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    };
    let kept: Vec<_> = reserved.trim().split(',').filter_map(range).collect();
    ports.clone().any(|port| (low..=high).contains(&port) && !kept.iter().any(|range| range.contains(&port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_out_where_ranges_overlap_and_nothing_is_reserved() {
        let ports = 61_000..=65_535;
        assert!(!is_given_out(&ports, "32768\t60999\n", "\n"), "Linux's default");
        assert!(is_given_out(&ports, "1024\t65535\n", ""));
        assert!(is_given_out(&ports, "1024\t61000\n", ""), "one port is enough");
        assert!(!is_given_out(&ports, "1024\t65535\n", "8080,61000-65535\n"));
        assert!(is_given_out(&ports, "1024\t65535\n", "61000-65534\n"));
        assert!(!is_given_out(&(61_000..=61_001), "1024\t65535\n", "61000,61001"));
    }
}
