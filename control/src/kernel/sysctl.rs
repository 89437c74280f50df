//! Settings of single devices under `/proc/sys/net`. Those of the whole namespace are the node's own.

use std::path::Path;

/// Sets a device's setting; where /proc/sys is read-only the node's own value stays, and the log says so.
pub(super) fn sysctl(family: &str, device: &str, name: &str, value: &str) {
    let path = format!("/proc/sys/net/{family}/conf/{device}/{name}");
    if read(&path).is_some_and(|now| now == value) || !Path::new(&path).exists() {
        return;
    }
    if let Err(error) = std::fs::write(&path, value) {
        tracing::warn!(%path, value, %error, "setting not changed");
    }
}

/// Has the kernel answer ARP on this device for whatever it would forward, at once. By default it first waits a while.
pub(super) fn answer_arp(device: &str) {
    let path = format!("/proc/sys/net/ipv4/neigh/{device}/proxy_delay");
    if read(&path).is_some_and(|now| now != "0")
        && let Err(error) = std::fs::write(&path, "0")
    {
        tracing::warn!(%path, %error, "setting not changed");
    }
    sysctl("ipv4", device, "proxy_arp", "1");
}

/// Whether the kernel answers ARP on this device for others.
pub(super) fn answers_arp(device: &str) -> bool {
    read(&format!("/proc/sys/net/ipv4/conf/{device}/proxy_arp")).as_deref() == Some("1")
}

/// Has the kernel forward IPv6 packets that come in from this device, where it can tell devices apart (Linux 6.17).
pub(super) fn forward_ipv6(device: &str) {
    for (name, value) in [("disable_ipv6", "0"), ("forwarding", "1"), ("force_forwarding", "1")] {
        sysctl("ipv6", device, name, value);
    }
}

/// Whether [`forward_ipv6`] suffices: either devices can be told apart, or all of them forward.
pub(super) fn may_forward_ipv6() -> bool {
    let all = "/proc/sys/net/ipv6/conf/all";
    Path::new(all).join("force_forwarding").exists()
        || read(&format!("{all}/forwarding")).as_deref() == Some("1")
}

/// Gives a device's setting back the value that new devices get.
pub(super) fn reset(family: &str, device: &str, name: &str) {
    if let Some(value) = read(&format!("/proc/sys/net/{family}/conf/default/{name}")) {
        sysctl(family, device, name, &value);
    }
}

/// The mildest `rp_filter` that a device can have: the stricter of its own and the namespace's setting counts, but 2
/// (loose) beats a strict 1.
pub(super) fn loose_or_off() -> &'static str {
    match read("/proc/sys/net/ipv4/conf/all/rp_filter").as_deref() {
        Some("1") => "2",
        _ => "0",
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
