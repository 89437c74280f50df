//! `fairway demo --memory` as a user without root runs it, and what its capture holds.

use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The demo takes about 15 seconds.
const DEADLINE: Duration = Duration::from_secs(180);
/// Neither root nor anybody else.
const NOBODY: u32 = 65_534;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);
const WEB_2: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 12);
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
const NODES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 77, 1), Ipv4Addr::new(192, 168, 77, 2)];
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A folder that everybody may write to, with a folder for temporary files in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir(place.temporary()).unwrap();
        for path in [place.path(), &place.temporary()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn temporary(&self) -> PathBuf {
        self.path().join("tmp")
    }

    /// How much is left of the demo's own files.
    fn leftovers(&self) -> usize {
        fs::read_dir(self.temporary()).unwrap().count()
    }

    /// The command line as the current user runs it; where that is root, as nobody.
    fn fairway(&self, args: &[&str]) -> Command {
        let built = env!("CARGO_BIN_EXE_fairway");
        let mut command = if fs::metadata("/proc/self").unwrap().uid() == 0 {
            // Nobody need not reach the build folder. Copied by another process: what a test beside this one starts
            // would inherit a file open for writing here, and until it has executed the copy is "text file busy".
            let copy = self.path().join("fairway");
            assert!(Command::new("cp").arg(built).arg(&copy).status().unwrap().success());
            let mut command = Command::new(copy);
            command.uid(NOBODY).gid(NOBODY);
            command
        } else {
            Command::new(built)
        };
        command.args(args).current_dir(self.path()).env("TMPDIR", self.temporary());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// A running program, killed if the test gives up on it.
struct Running(Child);

impl Running {
    fn finish(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "the demo does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs to the end; status, standard output and standard error. What it prints fits into its pipes.
fn run(mut command: Command) -> (ExitStatus, String, String) {
    let mut running = Running(command.spawn().unwrap());
    let status = running.finish();
    let (mut out, mut err) = (String::new(), String::new());
    running.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    running.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (status, out, err)
}

struct Captured {
    interface: String,
    /// Whether it entered the engine.
    is_in: bool,
    bytes: Vec<u8>,
}

fn read_capture(path: &Path) -> Vec<Captured> {
    let mut reader = PcapNgReader::new(BufReader::new(File::open(path).unwrap())).unwrap();
    let mut names: Vec<String> = Vec::new();
    let mut packets = Vec::new();
    while let Some(block) = reader.next_block() {
        match block.unwrap() {
            Block::InterfaceDescription(interface) => {
                let name = interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                });
                names.push(name.unwrap());
            }
            Block::EnhancedPacket(packet) => packets.push(Captured {
                interface: names[packet.interface_id as usize].clone(),
                is_in: packet.options.contains(&EnhancedPacketOption::Flags(1)),
                bytes: packet.data.to_vec(),
            }),
            _ => {}
        }
    }
    packets
}

/// The ones' complement sum of RFC 1071: 0xffff over data that include their own checksum.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            total += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// An IPv4 packet whose checksum is right, and that of TCP or ICMP in it.
struct Ipv4<'a> {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    proto: u8,
    payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    /// Of an Ethernet frame; `None` if it holds something else.
    fn of(frame: &'a [u8]) -> Option<Ipv4<'a>> {
        if frame.get(12..14)? != [0x08, 0x00] {
            return None;
        }
        let packet = &frame[14..];
        let header = usize::from(packet[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        assert_eq!(sum(&[&packet[..header]]), 0xffff, "IPv4 header checksum");
        let address = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
        let (proto, payload) = (packet[9], &packet[header..total]);
        let length = (payload.len() as u16).to_be_bytes();
        match proto {
            TCP => assert_eq!(sum(&[&packet[12..20], &[0, TCP], &length, payload]), 0xffff, "TCP checksum"),
            ICMP => assert_eq!(sum(&[payload]), 0xffff, "ICMP checksum"),
            _ => {}
        }
        Some(Ipv4 { src: address(12), dst: address(16), proto, payload })
    }

    fn ports(&self) -> (u16, u16) {
        let port = |at: usize| u16::from_be_bytes([self.payload[at], self.payload[at + 1]]);
        (port(0), port(2))
    }

    /// What is inside, if this is VXLAN (RFC 7348) with the demo's VNI.
    fn inside_vxlan(&self) -> Option<Ipv4<'a>> {
        if self.proto != UDP || self.ports().1 != 4789 {
            return None;
        }
        let header = &self.payload[8..16];
        assert_eq!((header[0], &header[4..7]), (0x08, &[0, 0x10, 0][..]), "flag I, VNI 4096");
        Ipv4::of(&self.payload[16..])
    }
}

#[test]
fn the_demo_runs_without_root_and_shows_every_step() {
    let place = Place::new();
    let (status, out, err) = run(place.fairway(&["demo", "--memory"]));
    assert!(status.success(), "{status}\n{out}\n{err}");
    let steps = [
        "start",
        "pod → gateway",
        "pod → pod, same node",
        "pod → pod, over VXLAN",
        "pod → ClusterIP",
        "download by ClusterIP",
        "host → pod",
        "add a backend",
        "remove a backend",
        "address without a pod",
        "orderly shutdown",
    ];
    let done: Vec<&str> = out.lines().filter_map(|line| line.trim_start().strip_prefix("✓ ")).collect();
    assert_eq!(done.len(), steps.len(), "{out}");
    for (step, line) in steps.iter().zip(done) {
        assert!(line.starts_with(step), "{line:?} is not {step:?}");
    }
    for checked in ["40/40 requests", "byte-exact", "(I1)", "(I2)", "no-endpoint", "fairway-memory.pcapng"] {
        assert!(out.contains(checked), "{checked}\n{out}");
    }
    assert_eq!(err, "");
    assert_eq!(place.leftovers(), 0, "files are left behind");
    check_capture(&place.path().join("fairway-memory.pcapng"));
}

/// Service traffic is translated before it is encapsulated, and back before the client sees it; and every
/// checksum of every packet is right.
fn check_capture(path: &Path) {
    let packets = read_capture(path);
    let (mut tunnelled, mut to_backend, mut from_backend) = (0, 0, 0);
    let (mut asked, mut answered, mut at_backend) = (0, 0, 0);
    for Captured { interface, is_in, bytes } in &packets {
        let Some(outer) = Ipv4::of(bytes) else { continue };
        if let Some(inner) = outer.inside_vxlan() {
            tunnelled += 1;
            assert!(interface.ends_with(" uplink0"), "VXLAN on {interface}");
            assert!(NODES.contains(&outer.src) && NODES.contains(&outer.dst) && outer.src != outer.dst);
            assert!(inner.src != CLUSTER_IP && inner.dst != CLUSTER_IP, "the ClusterIP inside VXLAN");
            if inner.proto == TCP {
                to_backend += u32::from((inner.src, inner.dst, inner.ports().1) == (CLIENT, WEB_2, 8080));
                from_backend += u32::from((inner.src, inner.dst, inner.ports().0) == (WEB_2, CLIENT, 8080));
            }
            continue;
        }
        assert!(!interface.ends_with(" uplink0"), "bare on the wire: {} to {}", outer.src, outer.dst);
        let is_service = outer.src == CLUSTER_IP || outer.dst == CLUSTER_IP;
        match interface.as_str() {
            "node-1 pod demo/client" if is_service => {
                assert_eq!(*is_in, outer.dst == CLUSTER_IP, "answers have it as their source");
                asked += u32::from(*is_in && outer.ports().1 == 80);
                answered += u32::from(!is_in && outer.ports().0 == 80);
            }
            "node-2 pod demo/web-2" => {
                at_backend += u32::from(!is_in && outer.src == CLIENT && outer.proto == TCP);
                assert!(!is_service, "a backend sees the ClusterIP");
            }
            _ => assert!(!is_service, "the ClusterIP on {interface}"),
        }
    }
    let seen = [tunnelled, to_backend, from_backend, asked, answered, at_backend];
    // Dozens of requests of a handful of packets each.
    assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
}

#[test]
fn a_capture_that_cannot_be_written_is_refused_by_name() {
    let place = Place::new();
    let (status, _, err) = run(place.fairway(&["demo", "--memory", "--pcap", "no/such/folder/x.pcapng"]));
    assert!(!status.success());
    assert!(err.contains("no/such/folder/x.pcapng") && err.contains("check the path"), "{err}");
    assert_eq!(place.leftovers(), 0, "files are left behind");
}

#[test]
fn a_capture_belongs_to_the_memory_driver_alone() {
    let place = Place::new();
    let (status, _, err) = run(place.fairway(&["demo", "--pcap", "x.pcapng"]));
    assert!(!status.success());
    assert!(err.contains("--memory"), "{err}");
}

#[test]
fn an_interrupt_ends_the_demo_in_order() {
    let place = Place::new();
    let mut running = Running(place.fairway(&["demo", "--memory", "--pcap", "x.pcapng"]).spawn().unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    while !seen.last().is_some_and(|line: &String| line.contains("✓ pod → gateway")) {
        seen.push(lines.next().unwrap_or_else(|| panic!("ended early: {seen:?}")).unwrap());
    }
    let pid = running.0.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(running.finish().code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("✓ orderly shutdown")), "{rest:?}");
    assert_eq!(place.leftovers(), 0, "files are left behind");
    assert!(!read_capture(&place.path().join("x.pcapng")).is_empty());
}
