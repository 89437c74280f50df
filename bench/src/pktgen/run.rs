//! `fairway-pktgen run`: one scenario, one trial or several, on one device.

use crate::pktgen::cli::CliError;
use crate::pktgen::cores::cores;
use crate::pktgen::cpu;
use crate::pktgen::device::fairway::FairwayDevice;
use crate::pktgen::device::kernel::{KernelDevice, Rules};
use crate::pktgen::device::memory::MemoryDevice;
use crate::pktgen::device::ovs::OvsDevice;
use crate::pktgen::device::testpmd::TestpmdDevice;
use crate::pktgen::device::wire::WireDevice;
use crate::pktgen::device::{Bench, Device, DeviceError};
use crate::pktgen::paths::PathName;
use crate::pktgen::scenario::Scenario;
use crate::pktgen::sessions;
use crate::pktgen::trial::{Outcome, Progress};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `run`.
#[derive(clap::Args)]
pub struct RunArgs {
    /// Scenario file, such as bench/scenarios/same-node.yaml
    pub scenario: PathBuf,
    /// Device under test
    #[arg(long, value_enum, default_value_t = DeviceName::Memory)]
    pub device: DeviceName,
    /// Trials, one after the other
    #[arg(long, default_value_t = 1)]
    pub trials: u32,
    /// Write the outcomes as JSON to this file
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// Devices by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceName {
    /// The engine's workers in this process, over the memory driver
    Memory,
    /// Fairway's programs over AF_XDP, on a node made of network namespaces (root)
    Fairway,
    /// The Linux kernel in the same place: ip_forward, vxlan, nftables NAT (root)
    Kernel,
    /// The same with the rules of the real kube-proxy, nftables mode (root, `make kube`)
    KubeProxy,
    /// Open vSwitch's userspace datapath over DPDK's af_xdp (root)
    Ovs,
    /// DPDK's testpmd over af_xdp, io mode: the floor set by AF_XDP itself (root)
    Testpmd,
    /// Nothing between generator and sink but one veth: what generator and sink themselves can do (root)
    Wire,
}

impl DeviceName {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            DeviceName::Memory => "memory",
            DeviceName::Fairway => "fairway",
            DeviceName::Kernel => "kernel",
            DeviceName::KubeProxy => "kube-proxy",
            DeviceName::Ovs => "ovs",
            DeviceName::Testpmd => "testpmd",
            DeviceName::Wire => "wire",
        }
    }

    /// Whether the device does something with packets of this path; see its file for why it may not. What does
    /// not look at packets has one path.
    pub fn has(self, path: PathName) -> bool {
        match self {
            DeviceName::Memory | DeviceName::Fairway => true,
            DeviceName::Kernel => path != PathName::Ipip,
            DeviceName::KubeProxy => {
                matches!(path, PathName::SameNode | PathName::Vxlan | PathName::Direct | PathName::ClusterIp)
            }
            DeviceName::Ovs => matches!(path, PathName::SameNode | PathName::ClusterIp),
            DeviceName::Testpmd | DeviceName::Wire => path == PathName::SameNode,
        }
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Brings a device up for a scenario.
///
/// # Errors
/// Why it cannot be had here.
pub fn start(device: DeviceName, scenario: &Scenario) -> Result<Box<dyn Device>, DeviceError> {
    let (_, engine) = cores();
    if scenario.streams.iter().any(|stream| !device.has(stream.path)) {
        let why = "it has no way for one of the scenario's paths; docs/pktgen.md says which it has";
        return Err(DeviceError::Unfit { device: device.name(), why });
    }
    match device {
        DeviceName::Memory => Ok(Box::new(MemoryDevice::start(scenario, engine)?)),
        DeviceName::Fairway => Ok(Box::new(FairwayDevice::start(scenario)?)),
        DeviceName::Kernel => Ok(Box::new(KernelDevice::start(scenario, Rules::Own)?)),
        DeviceName::KubeProxy => Ok(Box::new(KernelDevice::start(scenario, Rules::KubeProxy)?)),
        DeviceName::Ovs => Ok(Box::new(OvsDevice::start(scenario)?)),
        DeviceName::Testpmd => Ok(Box::new(TestpmdDevice::start(scenario)?)),
        DeviceName::Wire => Ok(Box::new(WireDevice::start(scenario)?)),
    }
}

/// Says so if other programs use the machine: figures are then theirs as much as the device's.
///
/// # Errors
/// If the system's counters cannot be read.
pub fn warn_of_company() -> Result<f64, DeviceError> {
    let busy = cpu::others(Duration::from_millis(300)).map_err(DeviceError::io("read /proc/stat"))?;
    if busy > 0.1 {
        eprintln!("other programs use {busy:.1} CPUs: figures are noisy and too low");
    }
    Ok(busy)
}

/// Runs the command.
///
/// # Errors
/// See [`CliError`].
pub fn run(args: &RunArgs) -> Result<(), CliError> {
    let scenario = Scenario::read(&args.scenario)?;
    warn_of_company()?;
    let device = start(args.device, &scenario)?;
    let mut bench = Bench::new(&scenario, device)?;
    bench.wait_ready()?;
    let mut outcomes = Vec::new();
    if let Some(wanted) = &scenario.sessions {
        for number in 1..=args.trials.max(1) {
            let outcome = bench.sessions(wanted)?;
            println!("{} over {}, trial {number}", scenario.name, bench.device_name());
            print_sessions(&outcome);
            outcomes.push(serde_json::to_value(outcome)?);
        }
        return finish(args, bench, &outcomes);
    }
    for number in 1..=args.trials.max(1) {
        let outcome = bench.trial(scenario.arrival, &mut live)?;
        clear_line();
        println!("{} over {}, trial {number}", scenario.name, bench.device_name());
        print(&outcome);
        outcomes.push(serde_json::to_value(outcome)?);
    }
    finish(args, bench, &outcomes)
}

fn finish(args: &RunArgs, bench: Bench, outcomes: &[serde_json::Value]) -> Result<(), CliError> {
    for line in bench.finish()? {
        println!("{line}");
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(outcomes)?;
        std::fs::write(path, text).map_err(DeviceError::io(format!("write {}", path.display())))?;
    }
    Ok(())
}

/// One line that is written over, on a terminal.
pub fn live(progress: &Progress) {
    let mut out = std::io::stderr();
    if !out.is_terminal() {
        return;
    }
    let seconds = progress.elapsed.as_secs_f64();
    let received = progress.counts.received;
    let (in_flight, rate) = (progress.sent.saturating_sub(received), received as f64 / seconds / 1e6);
    // A terminal that is gone is no reason to stop measuring.
    let _ = write!(
        out,
        "\r{seconds:6.1} s  {rate:8.3} Mpps  {received} received  {in_flight} in flight or lost  {} late \x1b[K",
        progress.counts.reordered
    );
}

fn clear_line() {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let _ = write!(out, "\r\x1b[K");
    }
}

fn print(outcome: &Outcome) {
    let Outcome { counts, latency, .. } = outcome;
    let us = |ns: u64| ns as f64 / 1e3;
    println!(
        "  sent      {:>12} of {} due in {:.3} s: {:.3} Mpps{}",
        outcome.sent,
        outcome.intended,
        outcome.sending_s,
        outcome.sent_pps / 1e6,
        if outcome.offered { "" } else { "  (the rate was not offered)" }
    );
    println!("  received  {:>12}: {:.3} Mpps", counts.received, outcome.received_pps / 1e6);
    println!(
        "  lost      {:>12} ({:.4} %), {} duplicated, {} reordered, {} foreign",
        outcome.lost,
        outcome.loss * 100.0,
        counts.duplicated,
        counts.reordered,
        counts.foreign
    );
    println!("  flows     {:>12} sent, {} of them lost packets", outcome.flows, outcome.flows_with_loss);
    for flow in outcome.worst_flows.iter().take(3) {
        println!("            flow {}: {} of {} lost", flow.flow, flow.lost(), flow.sent);
    }
    println!(
        "  latency   p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us, max {:.1} us",
        us(latency.p50_ns),
        us(latency.p99_ns),
        us(latency.p999_ns),
        us(latency.max_ns)
    );
    println!(
        "  machine   {:.0} ns of CPU per packet, {:.0} of them softirq (generator and sink included)",
        outcome.machine_ns_per_packet, outcome.softirq_ns_per_packet
    );
}

fn print_sessions(outcome: &sessions::Outcome) {
    let sessions::Outcome { tally, setup, whole, .. } = outcome;
    let us = |ns: u64| ns as f64 / 1e3;
    println!(
        "  completed {:>12} in {:.3} s: {:.0} a second",
        tally.completed, outcome.seconds, outcome.completed_per_s
    );
    println!(
        "  opened    {:>12}, {} established, {} failed, {} stray segments",
        tally.opened, tally.established, tally.failed, tally.strays
    );
    println!(
        "  setup     p50 {:.1} us, p99 {:.1} us, max {:.1} us",
        us(setup.p50_ns),
        us(setup.p99_ns),
        us(setup.max_ns)
    );
    println!(
        "  session   p50 {:.1} us, p99 {:.1} us, max {:.1} us",
        us(whole.p50_ns),
        us(whole.p99_ns),
        us(whole.max_ns)
    );
    println!(
        "  machine   {:.2} us of CPU per session (client and responder included)",
        outcome.machine_us_per_session
    );
}
