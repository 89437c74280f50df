//! The kernel's own error counters of a namespace: what a pod's TCP/IP stack thought of the packets.

use crate::error::{Error, Result};
use crate::netns::Netns;
use std::collections::BTreeMap;

/// Counters of `/proc/net/snmp` and `/proc/net/netstat`, by names such as `Tcp.InCsumErrors`.
pub type Counters = BTreeMap<String, i64>;

/// Counters that only a wrong or damaged packet raises.
pub const PACKET_ERRORS: &[&str] = &[
    "Ip.InHdrErrors",
    "Ip.InAddrErrors",
    "Ip.InDiscards",
    "IpExt.InCsumErrors",
    "IpExt.InTruncatedPkts",
    "Icmp.InErrors",
    "Icmp.InCsumErrors",
    "Tcp.InErrs",
    "Tcp.InCsumErrors",
    "Udp.InErrors",
    "Udp.InCsumErrors",
];

/// Reads a namespace's counters.
pub fn read(netns: &Netns) -> Result<Counters> {
    netns.inside(|| {
        let mut counters = Counters::new();
        for file in ["snmp", "netstat"] {
            let path = format!("/proc/thread-self/net/{file}");
            let text = std::fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))?;
            counters.append(&mut parse(&text));
        }
        Ok(counters)
    })?
}

/// Those of [`PACKET_ERRORS`] that grew from one reading to the next, with their growth.
pub fn new_errors(before: &Counters, after: &Counters) -> Counters {
    let growth = |name: &&str| {
        let grown = after.get(*name).unwrap_or(&0) - before.get(*name).unwrap_or(&0);
        (grown != 0).then(|| ((*name).to_owned(), grown))
    };
    PACKET_ERRORS.iter().filter_map(growth).collect()
}

/// The files hold pairs of lines: `Tcp: Name …` and below it `Tcp: value …`.
fn parse(text: &str) -> Counters {
    let lines: Vec<&str> = text.lines().collect();
    let mut counters = Counters::new();
    for pair in lines.chunks_exact(2) {
        let (Some((group, names)), Some((_, values))) = (pair[0].split_once(": "), pair[1].split_once(": "))
        else {
            continue;
        };
        for (name, value) in names.split(' ').zip(values.split(' ')) {
            if let Ok(value) = value.parse() {
                counters.insert(format!("{group}.{name}"), value);
            }
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Tcp: InErrs InCsumErrors\nTcp: 2 1\nUdp: InErrors\nUdp: 7\n";

    #[test]
    fn counters_carry_group_and_name() {
        let counters = parse(TEXT);
        assert_eq!(counters["Tcp.InCsumErrors"], 1);
        assert_eq!(counters["Udp.InErrors"], 7);
    }

    #[test]
    fn only_growth_of_error_counters_is_reported() {
        let after = parse("Tcp: InErrs InCsumErrors InSegs\nTcp: 2 4 9\nUdp: InErrors\nUdp: 7\n");
        let grown = new_errors(&parse(TEXT), &after);
        assert_eq!(grown.into_iter().collect::<Vec<_>>(), [("Tcp.InCsumErrors".to_owned(), 3)]);
    }

    #[test]
    fn this_kernel_has_the_counters_that_the_tests_rely_on() {
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp").expect("snmp");
        let netstat = std::fs::read_to_string("/proc/thread-self/net/netstat").expect("netstat");
        let mut counters = parse(&text);
        counters.append(&mut parse(&netstat));
        for name in PACKET_ERRORS {
            assert!(counters.contains_key(*name), "{name}");
        }
    }
}
