//! The way of packets as the system's `traceroute` and `tracepath` show it.

use crate::error::{Error, Result};
use crate::netns::Netns;
use std::net::IpAddr;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(40);
/// More hops than there are in any testbed.
const MAX_HOPS: &str = "6";

/// Who answered at each hop up to the target, by `traceroute` with these options; `*` is nobody.
pub fn traceroute(netns: &Netns, options: &[&str], target: IpAddr) -> Result<Vec<String>> {
    let target = target.to_string();
    // One probe of a hop at a time, answered within two seconds.
    let mut args = vec!["-n", "-q", "1", "-N", "1", "-w", "2", "-m", MAX_HOPS];
    args.extend(options);
    args.push(&target);
    let output = netns.run("traceroute", &args, DEADLINE)?.success()?;
    Ok(hops(&output))
}

/// What `tracepath` says about a target.
pub fn tracepath(netns: &Netns, target: IpAddr) -> Result<String> {
    let output = netns.run("tracepath", &["-n", "-m", MAX_HOPS, &target.to_string()], DEADLINE)?;
    let command = output.command.clone();
    let said = output.success()?;
    if said.contains("Resume:") { Ok(said) } else { Err(Error::Answer { what: command, reason: said }) }
}

/// Lines after the first are ` 1  10.244.1.1  0.123 ms`.
fn hops(output: &str) -> Vec<String> {
    let lines = output.lines().skip(1);
    lines.filter_map(|line| line.split_whitespace().nth(1)).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hop_has_who_answered_there() {
        let output = "traceroute to 10.244.2.12 (10.244.2.12), 6 hops max, 60 byte packets\n 1  10.244.1.1  0.080 ms\n \
                      2  *\n 3  10.244.2.12  0.201 ms\n";
        assert_eq!(hops(output), ["10.244.1.1", "*", "10.244.2.12"]);
    }
}
