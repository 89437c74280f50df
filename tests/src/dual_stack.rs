//! IPv6 beside IPv4, for testbeds that want it: namespaces start without.

use crate::error::{Error, Result};
use crate::netns::Netns;
use crate::testbed::Pod;
use fairway_control::names;
use std::net::Ipv6Addr;

/// Turns IPv6 on for these devices of a namespace.
pub fn allow_ipv6(netns: &Netns, devices: &[&str]) -> Result<()> {
    let devices: Vec<String> = devices.iter().map(|device| (*device).to_owned()).collect();
    netns.inside(move || {
        for device in devices.iter().map(String::as_str).chain(["all"]) {
            // Nobody else is on the link: an address need not wait for others' objections.
            for setting in ["accept_dad", "disable_ipv6"] {
                let path = format!("/proc/sys/net/ipv6/conf/{device}/{setting}");
                std::fs::write(&path, "0").map_err(Error::io(format!("set {path}")))?;
            }
        }
        Ok(())
    })?
}

/// Gives a pod an IPv6 address, and the gateway that every pod has.
pub fn add_address(pod: &Pod, ip: Ipv6Addr) -> Result<()> {
    let netns = pod.netns();
    allow_ipv6(netns, &["lo", "eth0"])?;
    netns.ip(["addr", "add", &format!("{ip}/128"), "dev", "eth0", "nodad"])?;
    let gateway = names::GATEWAY_IP6.to_string();
    netns.ip(["route", "add", "default", "via", &gateway, "dev", "eth0"]).map(drop)
}
