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
    /// Captures the IPv4 packets on a device, from when this returns.
    pub fn start(netns: &Netns, device: &str, dir: &Path, name: &str) -> Result<Capture> {
        let file = dir.join(format!("{name}.pcap"));
        let mut command = netns.command("tcpdump");
        command.args(["-i", device, "-p", "-U", "--immediate-mode", "-Z", "root", "-s", SNAP_LEN]);
        command.args(["-c", MAX_PACKETS, "-w"]).arg(&file).arg("ip");
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
        let what = self.file.display().to_string();
        let broken = |reason: String| Error::Answer { what: what.clone(), reason };
        let file = File::open(&self.file).map_err(Error::io(format!("open {what}")))?;
        let mut reader = PcapReader::new(file).map_err(|e| broken(e.to_string()))?;
        let mut packets = Vec::new();
        while let Some(packet) = reader.next_raw_packet() {
            packets.push(packet.map_err(|e| broken(e.to_string()))?.data.into_owned());
        }
        Ok(packets)
    }
}

/// How many packets of pods a capture holds, by what they were put into: `vxlan 4096 on 4789`, `ipip`, `udp` or
/// `direct`. Others do not count.
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
    let is_pod = |at: usize| packet.get(at..at + 2) == Some(&[10, 244]);
    let later_fragment = *packet.get(20)? & 0x1f != 0 || *packet.get(21)? != 0;
    match *packet.get(23)? {
        _ if is_pod(26) && is_pod(30) => Some("direct".to_owned()),
        4 => Some("ipip".to_owned()),
        17 if !later_fragment => match u16::from_be_bytes([*packet.get(36)?, *packet.get(37)?]) {
            8285 => Some("udp".to_owned()),
            port @ (4789 | 8472) => {
                let vni = u32::from_be_bytes([0, *packet.get(46)?, *packet.get(47)?, *packet.get(48)?]);
                Some(format!("vxlan {vni} on {port}"))
            }
            _ => None,
        },
        _ => None,
    }
}
