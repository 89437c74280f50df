//! Devices under test: what stands between generator and sink, one file each.
//!
//! | module | device | driver |
//! |---|---|---|
//! | [`memory`] | the engine's workers in this process | memory |
//! | [`fairway`] | `fairway-control` and `fairway-dataplane` | AF_XDP |
//! | [`kernel`] | Linux: forwarding, VXLAN, nftables NAT | AF_XDP |
//! | [`kube_proxy`] | the same, with the rules of the real kube-proxy | AF_XDP |
//! | [`ovs`] | Open vSwitch's userspace datapath | AF_XDP |
//! | [`testpmd`] | DPDK's testpmd in io mode | AF_XDP |
//! | [`wire`] | nothing: the generator's veth ends in the sink | AF_XDP |
//!
//! [`ground`] is the testbed that all AF_XDP devices stand on; [`churn`] says when tables change.

pub mod churn;
pub mod fairway;
pub mod ground;
pub mod kernel;
pub mod kube_proxy;
pub mod memory;
pub mod ovs;
pub mod testpmd;
pub mod wire;

use crate::pktgen::cores::{self, on_generator_core};
use crate::pktgen::establish;
use crate::pktgen::generator::Generator;
use crate::pktgen::paths::Site;
use crate::pktgen::plan::{Plan, TooFewTuples};
use crate::pktgen::scenario::{Arrival, FCS_LEN, Scenario, TrialLimits};
use crate::pktgen::sessions::{self, Client, Sessions};
use crate::pktgen::sink::Sink;
use crate::pktgen::trial::{self, Ends, Outcome, Progress, Senders, Trial};
use core_affinity::CoreId;
use fairway_dataplane::clock;
use fairway_dataplane::crew::CrewError;
use fairway_pmd::UmemError;
use fairway_pmd::af_xdp::AfXdpError;
use fairway_pmd::steering::SteeringError;
use std::time::{Duration, Instant};

/// How long a device may take until packets of all paths come through.
pub const READY: Duration = Duration::from_secs(30);
/// Packets of one attempt to get through.
pub const PROBES: u32 = 256;

/// Why a device could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The scenario does not fit the site.
    #[error(transparent)]
    Plan(#[from] TooFewTuples),
    /// No memory for frames.
    #[error(transparent)]
    Umem(#[from] UmemError),
    /// The engine's workers.
    #[error(transparent)]
    Crew(#[from] CrewError),
    /// Namespaces and programs.
    #[error(transparent)]
    Testbed(#[from] fairway_tests::Error),
    /// The generator's or the sink's socket.
    #[error(transparent)]
    Socket(#[from] AfXdpError),
    /// The sink's XDP program.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// A program that is not Fairway's is needed and not there.
    #[error("device {device} needs {program}, which is not installed; apt-get install {package}")]
    MissingProgram {
        /// Which device.
        device: &'static str,
        /// Which program.
        program: &'static str,
        /// Debian package that has it.
        package: &'static str,
    },
    /// The device cannot be what the scenario asks.
    #[error("device {device} cannot take the scenario: {why}")]
    Unfit {
        /// Which device.
        device: &'static str,
        /// Why not, and what to do.
        why: &'static str,
    },
    /// A system operation.
    #[error("{what}: {source}")]
    Io {
        /// Which.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Packets do not come through.
    #[error(
        "device {device}: after {waited_s} s only {received} of {sent} packets come through; {foreign} other \
         frames came; {hint}"
    )]
    NotReady {
        /// Which device.
        device: String,
        /// How long it was tried.
        waited_s: u64,
        /// Packets that arrived in the last attempt.
        received: u64,
        /// Packets sent in the last attempt.
        sent: u64,
        /// Frames that were not the generator's.
        foreign: u64,
        /// Where to look.
        hint: String,
    },
    /// The device broke a promise at its end.
    #[error("device {device}: {what}")]
    Broken {
        /// Which device.
        device: String,
        /// Which promise.
        what: String,
    },
}

impl DeviceError {
    /// Wraps an I/O error with the operation that met it.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> DeviceError {
        let what = what.into();
        move |source| DeviceError::Io { what, source }
    }
}

/// A device that is up.
pub trait Device {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// The addresses around it.
    fn site(&self) -> Site;

    /// The generator's and the sink's queues.
    fn ends(&mut self) -> &mut Ends;

    /// Whether it runs on a core of its own, the last one.
    fn has_core(&self) -> bool {
        true
    }

    /// Changes tables from now on, as often as the scenario asks, or no more; they do from the start. Returns false if
    /// this device's tables never change.
    fn set_churn(&mut self, _on: bool) -> bool {
        false
    }

    /// Forgets what packets have left behind, and waits for the next round without using the machine. Returns false if
    /// it can only be started anew.
    ///
    /// # Errors
    /// If it cannot forget.
    fn rest(&mut self) -> Result<bool, DeviceError> {
        Ok(false)
    }

    /// Where to look if no packet comes through.
    fn hint(&mut self) -> String;

    /// Takes it down, checks what it promises for its end, and says in words what held.
    ///
    /// # Errors
    /// [`DeviceError::Broken`] if a promise does not hold.
    fn finish(self: Box<Self>) -> Result<Vec<String>, DeviceError>;
}

/// A generator for each sender, and the sum of their flows.
fn generators<D: Device + ?Sized>(
    scenario: &Scenario,
    device: &D,
) -> Result<(Vec<Generator>, u32), DeviceError> {
    let site = device.site();
    let mut generators = Vec::new();
    for sender in 0..scenario.senders {
        generators.push(Generator::new(scenario, Plan::of_sender(scenario, &site, sender)?));
    }
    let flows = generators.iter().map(|generator| generator.plan().flows).sum();
    Ok((generators, flows))
}

/// A device with generator and sink for one scenario.
pub struct Bench<D: Device + ?Sized = dyn Device> {
    device: Box<D>,
    generators: Vec<Generator>,
    /// Cores of all senders but the first.
    cores: Vec<Option<CoreId>>,
    sink: Sink,
    limits: TrialLimits,
}

impl<D: Device + ?Sized> Bench<D> {
    /// Plans the scenario at the device's site.
    ///
    /// # Errors
    /// If the scenario has more flows than the site has addresses.
    pub fn new(scenario: &Scenario, device: Box<D>) -> Result<Bench<D>, DeviceError> {
        let (generators, flows) = generators(scenario, &*device)?;
        let cores = cores::of_further_senders(generators.len() - 1, !device.has_core());
        let sink = Sink::new(flows, clock::tsc_per_ns());
        Ok(Bench { device, generators, cores, sink, limits: scenario.trial })
    }

    /// Goes on with another scenario on the same device, which was started with the same tables and senders.
    ///
    /// # Errors
    /// As [`Bench::new`].
    pub fn change_scenario(&mut self, scenario: &Scenario) -> Result<(), DeviceError> {
        let (mut generators, flows) = generators(scenario, &*self.device)?;
        self.sink = Sink::new(flows, clock::tsc_per_ns());
        for generator in &mut generators {
            generator.continue_from(self.generators[0].trial());
        }
        self.generators = generators;
        self.limits = scenario.trial;
        Ok(())
    }

    /// The device.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// The device's name.
    pub fn device_name(&self) -> &'static str {
        self.device.name()
    }

    /// Sends other frame sizes from now on, in bytes with FCS.
    pub fn set_sizes(&mut self, sizes: &[u16]) {
        self.generators.iter_mut().for_each(|generator| generator.set_sizes(sizes));
    }

    /// Waits until packets come through, all of them; the first ones are lost to neighbour discovery, or to
    /// tables that are not yet filled.
    ///
    /// # Errors
    /// [`DeviceError::NotReady`] if they do not.
    pub fn wait_ready(&mut self) -> Result<(), DeviceError> {
        let start = Instant::now();
        let probe = Trial {
            arrival: Arrival::Paced { rate_pps: 50_000.0 },
            limits: TrialLimits { duration_ms: 100, max_packets: PROBES },
        };
        loop {
            let outcome = self.run(&probe, &mut |_| {})?;
            if outcome.sent > 0 && outcome.lost == 0 {
                return Ok(());
            }
            if start.elapsed() > READY {
                return Err(DeviceError::NotReady {
                    device: self.device.name().to_owned(),
                    waited_s: start.elapsed().as_secs(),
                    received: outcome.counts.received,
                    sent: outcome.sent,
                    foreign: outcome.counts.foreign,
                    hint: self.device.hint(),
                });
            }
        }
    }

    /// Sends about three packets per flow, at most for five seconds, so that a measurement does not begin with
    /// every flow's first packet.
    ///
    /// # Errors
    /// As [`Bench::trial`].
    pub fn warm_up(&mut self) -> Result<(), DeviceError> {
        let flows: u32 = self.generators.iter().map(|generator| generator.plan().flows).sum();
        let max_packets = flows.saturating_mul(3).max(10_000);
        let limits = TrialLimits { duration_ms: 5000, max_packets };
        self.run(&Trial { arrival: Arrival::LineRate, limits }, &mut |_| {})?;
        Ok(())
    }

    /// Makes every flow of the first sender an established connection, by an answer to a packet of each.
    ///
    /// # Errors
    /// [`DeviceError::Broken`] if there are flows to which no answer comes back.
    pub fn establish(&mut self, size_bytes: u16) -> Result<(), DeviceError> {
        let (generator, ends) = (&self.generators[0], self.device.ends());
        let len = usize::from(size_bytes) - FCS_LEN;
        match on_generator_core(|| establish::run(generator, len, ends)) {
            0 => Ok(()),
            missing => Err(DeviceError::Broken {
                device: self.device.name().to_owned(),
                what: format!("{missing} flows get no answer"),
            }),
        }
    }

    /// One trial with the scenario's limits.
    ///
    /// # Errors
    /// If the system's counters cannot be read.
    pub fn trial(
        &mut self,
        arrival: Arrival,
        progress: &mut (dyn FnMut(&Progress) + Send),
    ) -> Result<Outcome, DeviceError> {
        let limits = self.limits;
        self.run(&Trial { arrival, limits }, progress)
    }

    /// One trial.
    ///
    /// # Errors
    /// If the system's counters cannot be read.
    pub fn run(
        &mut self,
        trial: &Trial,
        progress: &mut (dyn FnMut(&Progress) + Send),
    ) -> Result<Outcome, DeviceError> {
        let senders = Senders { generators: &mut self.generators, cores: &self.cores };
        let (sink, ends) = (&mut self.sink, self.device.ends());
        on_generator_core(|| trial::run(trial, senders, sink, ends, progress))
            .map_err(DeviceError::io("read /proc/stat"))
    }

    /// Opens and closes TCP-like sessions over the first stream's addresses, with the scenario's limits.
    ///
    /// # Errors
    /// If the system's counters cannot be read.
    pub fn sessions(&mut self, sessions: &Sessions) -> Result<sessions::Outcome, DeviceError> {
        let stream = self.generators[0].plan().streams[0].clone();
        let timeout_ns = u64::from(sessions.timeout_ms) * 1_000_000;
        let mut client = Client::new(stream, sessions.concurrent, timeout_ns);
        let site = self.device.site();
        let (limits, ends) = (self.limits, self.device.ends());
        on_generator_core(|| sessions::run(&mut client, &limits, &site, ends))
            .map_err(DeviceError::io("read /proc/stat"))
    }

    /// Takes the device down; says in words what held at its end.
    ///
    /// # Errors
    /// [`DeviceError::Broken`] if something did not.
    pub fn finish(self) -> Result<Vec<String>, DeviceError> {
        self.device.finish()
    }
}
