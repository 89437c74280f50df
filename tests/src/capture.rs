//! What is on a wire, by tcpdump.

use crate::error::{Error, Result};
use crate::netns::Netns;
use crate::process::{Process, wait_for};
use pcap_file::pcap::PcapReader;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most packets of one capture.
const MAX_PACKETS: &str = "200000";
/// Bytes of each packet: all headers.
const SNAP_LEN: &str = "160";

/// A capture that runs.
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Captures the IPv4 and IPv6 packets on a device, from when this returns.
    pub fn start(netns: &Netns, device: &str, dir: &Path, name: &str) -> Result<Capture> {
        let file = dir.join(format!("{name}.pcap"));
        let mut command = netns.command("tcpdump");
        command.args(["-i", device, "-p", "-U", "--immediate-mode", "-Z", "root", "-s", SNAP_LEN]);
        command.args(["-c", MAX_PACKETS, "-w"]).arg(&file).arg("ip or ip6");
        let mut process = Process::spawn("tcpdump", command, &dir.join(format!("{name}.log")), true)?;
        wait_for("tcpdump listens", Duration::from_secs(10), || {
            process.expect_alive()?;
            let log = process.log();
            Ok(if log.contains("listening on") { Ok(()) } else { Err(log) })
        })?;
        Ok(Capture { process, file })
    }

    /// Ends it and returns the packets' first bytes.
    pub fn stop(mut self) -> Result<Vec<Vec<u8>>> {
        // Buffers of the kernel's last packets.
        std::thread::sleep(Duration::from_millis(200));
        self.process.stop();
        let (packets, broken) = self.read()?;
        match broken {
            None => Ok(packets),
            Some(reason) => Err(Error::Answer { what: self.file.display().to_string(), reason }),
        }
    }

    /// The packets' first bytes as far as they are written; it goes on.
    pub fn so_far(&self) -> Result<Vec<Vec<u8>>> {
        // The last one may be half written.
        Ok(self.read()?.0)
    }

    /// The packets up to the end, or to what is no packet.
    fn read(&self) -> Result<(Vec<Vec<u8>>, Option<String>)> {
        let file = File::open(&self.file).map_err(Error::io(format!("open {}", self.file.display())))?;
        let mut packets = Vec::new();
        let mut reader = match PcapReader::new(file) {
            Ok(reader) => reader,
            Err(error) => return Ok((packets, Some(error.to_string()))),
        };
        while let Some(packet) = reader.next_raw_packet() {
            match packet {
                Ok(packet) => packets.push(packet.data.into_owned()),
                Err(error) => return Ok((packets, Some(error.to_string()))),
            }
        }
        Ok((packets, None))
    }
}

/// How many packets of pods a capture holds, by what they were put into: `vxlan 4096 on 4789`, `ipip`, `6in4`, `udp`,
/// `direct` or `direct IPv6`, and `vxlan 4096 on 4789 over IPv6`, `4in6`, `6in6`, `udp over IPv6`. Others do not count.
pub fn by_encapsulation(packets: &[Vec<u8>]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for packet in packets {
        if let Some(kind) = encapsulation(packet) {
            *counts.entry(kind).or_default() += 1;
        }
    }
    counts
}

fn encapsulation(packet: &[u8]) -> Option<String> {
    if packet.get(12..14)? == [0x86, 0xdd] {
        let is_pod = |at: usize| packet.get(at..at + 4) == Some(&[0xfd, 0, 2, 0x44]);
        if is_pod(22) && is_pod(38) {
            return Some("direct IPv6".to_owned());
        }
        // Linux's ip6tnl puts an encapsulation limit in between.
        return match packet.get(20)? {
            60 => over_ipv6(packet, *packet.get(54)?, 62),
            next => over_ipv6(packet, *next, 54),
        };
    }
    let is_pod = |at: usize| packet.get(at..at + 2) == Some(&[10, 244]);
    let later_fragment = *packet.get(20)? & 0x1f != 0 || *packet.get(21)? != 0;
    match *packet.get(23)? {
        _ if is_pod(26) && is_pod(30) => Some("direct".to_owned()),
        4 => Some("ipip".to_owned()),
        41 => Some("6in4".to_owned()),
        17 if !later_fragment => in_udp(packet, 34),
        _ => None,
    }
}

fn over_ipv6(packet: &[u8], next: u8, at: usize) -> Option<String> {
    match next {
        4 => Some("4in6".to_owned()),
        41 => Some("6in6".to_owned()),
        17 => in_udp(packet, at).map(|kind| kind + " over IPv6"),
        _ => None,
    }
}

fn in_udp(packet: &[u8], at: usize) -> Option<String> {
    let udp = packet.get(at..)?;
    match u16::from_be_bytes([*udp.get(2)?, *udp.get(3)?]) {
        8285 => Some("udp".to_owned()),
        port @ (4789 | 8472) => {
            let vni = u32::from_be_bytes([0, *udp.get(12)?, *udp.get(13)?, *udp.get(14)?]);
            Some(format!("vxlan {vni} on {port}"))
        }
        _ => None,
    }
}
