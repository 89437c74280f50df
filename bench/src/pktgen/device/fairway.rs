//! Fairway itself: `fairway-control` and `fairway-dataplane` on a node of the testbed, one busy worker.

use super::ground::{Ground, NAMESPACE, SERVER, SERVICES};
use super::{Device, DeviceError};
use crate::pktgen::cores::cores;
use crate::pktgen::cpu;
use crate::pktgen::paths::{BACKEND_PORT, SERVICE_PORT, Site};
use crate::pktgen::scenario::{Scenario, TableSizes};
use crate::pktgen::trial::Ends;
use fairway_control::names::GATEWAY_IP;
use fairway_tests::manifests::Manifests;
use fairway_tests::ping::ping;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const READY: Duration = Duration::from_secs(60);

/// Fairway on a testbed.
pub struct FairwayDevice {
    ground: Ground,
    editor: Option<Editor>,
    flows: u32,
}

/// How the engine's worker waits for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// It spins.
    Busy,
    /// It sleeps after some microseconds.
    Adaptive,
}

impl Poll {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Poll::Busy => "busy",
            Poll::Adaptive => "adaptive",
        }
    }
}

impl FairwayDevice {
    /// Starts it and waits until it serves both pods.
    ///
    /// # Errors
    /// If a program is missing or does not start.
    pub fn start(scenario: &Scenario) -> Result<FairwayDevice, DeviceError> {
        let tables = &scenario.tables;
        if tables.routes > 0 {
            let why = "tables.routes is for the memory device; set it to 0";
            return Err(DeviceError::Unfit { device: "fairway", why });
        }
        let flows: u32 = scenario.streams.iter().map(|stream| stream.flows).sum();
        let ground = Ground::new(tables.services)?;
        let mut device = FairwayDevice { ground, editor: None, flows };
        device.start_programs(tables)?;
        device.ground.open_ends()?;
        let manifests = device.ground.testbed().manifests();
        device.editor = (tables.changes_per_s > 0).then(|| Editor::start(manifests, *tables));
        Ok(device)
    }

    /// The same with so many pod ports in all, of which all but the generator's and the sink's are idle.
    ///
    /// # Errors
    /// If a program is missing or does not start.
    pub fn with_pods(scenario: &Scenario, pods: u16) -> Result<FairwayDevice, DeviceError> {
        let flows: u32 = scenario.streams.iter().map(|stream| stream.flows).sum();
        let mut ground = Ground::new(scenario.tables.services)?;
        (2..pods).try_for_each(|n| ground.add_idle_pod(n))?;
        let mut device = FairwayDevice { ground, editor: None, flows };
        device.start_programs(&scenario.tables)?;
        device.ground.open_ends()?;
        Ok(device)
    }

    fn start_programs(&mut self, tables: &TableSizes) -> Result<(), DeviceError> {
        write_services(self.ground.testbed().manifests(), 0..tables.services, tables.backends)?;
        self.ground.testbed().node_mut(0).start_control()?;
        self.start_engine(Poll::Busy)?;
        let gateway: Ipv4Addr = GATEWAY_IP.as_v4().unwrap_or_default().into();
        self.ground.testbed().wait("all pods reach their gateway", READY, |testbed| {
            testbed.pods().iter().try_for_each(|pod| match ping(pod.netns(), gateway, 1, 84) {
                Ok(summary) if summary.complete() => Ok(()),
                Ok(summary) => Err(summary.output),
                Err(error) => Err(error.to_string()),
            })
        })?;
        Ok(())
    }

    fn start_engine(&mut self, poll: Poll) -> Result<(), DeviceError> {
        let (_, core) = cores();
        let core = core.map_or("0".to_owned(), |core| core.id.to_string());
        let flows = self.flows.max(262_144).to_string();
        let connections = (self.flows + self.flows / 8).max(1_000_000).to_string();
        let args =
            ["--cores", &core, "--poll", poll.name(), "--flows", &flows, "--connections", &connections];
        Ok(self.ground.testbed().node_mut(0).start_dataplane(&args)?)
    }

    /// Ends the engine, which checks its invariants, and starts it anew with another way of waiting.
    ///
    /// # Errors
    /// If it ends otherwise than in order, or does not start.
    pub fn set_poll(&mut self, poll: Poll) -> Result<(), DeviceError> {
        self.ground.testbed().node_mut(0).stop_dataplane()?;
        self.start_engine(poll)
    }

    /// Packets that the engine has received so far; those that the kernel forwards in its absence are not among them.
    ///
    /// # Errors
    /// If control does not answer.
    pub fn rx_packets(&mut self) -> Result<u64, DeviceError> {
        let counters = self.ground.testbed().nodes()[0].ask(&["counters"])?;
        Ok(counters["counters"]["rx-packets"].as_u64().unwrap_or(0))
    }

    /// CPU time of the engine's process and of control's so far, in nanoseconds.
    ///
    /// # Errors
    /// If one of them has ended.
    pub fn cpu_ns(&mut self) -> Result<[u64; 2], DeviceError> {
        let node = self.ground.testbed().node_mut(0);
        let pids =
            [node.dataplane().map(|process| process.pid()), node.control().map(|process| process.pid())];
        let mut spent = [0; 2];
        for (ns, pid) in spent.iter_mut().zip(pids) {
            let gone = || std::io::Error::other("it has ended");
            let read = pid.ok_or_else(gone).and_then(cpu::of_process);
            *ns = read.map_err(DeviceError::io("read a process's CPU time"))?;
        }
        Ok(spent)
    }
}

/// Writes Services and their EndpointSlices, one file for both kinds of a Service: UDP and TCP, all backends
/// being the server's pod on different ports.
fn write_services(
    manifests: &Manifests,
    services: impl Iterator<Item = u32>,
    backends: u32,
) -> Result<(), fairway_tests::Error> {
    for n in services {
        let ip = Ipv4Addr::from(SERVICES + n);
        let mut yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: {NAMESPACE}\n  name: s{n}\nspec:\n  \
             type: ClusterIP\n  clusterIP: {ip}\n  clusterIPs:\n  - {ip}\n  ports:\n  - name: u\n    protocol: \
             UDP\n    port: {SERVICE_PORT}\n    targetPort: {BACKEND_PORT}\n  - name: t\n    protocol: TCP\n    \
             port: {SERVICE_PORT}\n    targetPort: {BACKEND_PORT}\n"
        );
        for b in 0..backends {
            let port = BACKEND_PORT + (b % 1000) as u16;
            // Writing to a String cannot fail.
            let _ = write!(
                yaml,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: \
                 {NAMESPACE}\n  name: s{n}-{b}\n  labels:\n    kubernetes.io/service-name: s{n}\naddressType: \
                 IPv4\nports:\n- name: u\n  protocol: UDP\n  port: {port}\n- name: t\n  protocol: TCP\n  port: \
                 {port}\nendpoints:\n- addresses:\n  - {SERVER}\n  conditions:\n    ready: true\n"
            );
        }
        manifests.write(&format!("service-{n}"), &yaml)?;
    }
    Ok(())
}

/// Takes and gives back a backend of one Service after the other, as often as the scenario asks.
struct Editor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64, fairway_tests::Error>>>,
}

impl Editor {
    fn start(manifests: &Manifests, tables: TableSizes) -> Editor {
        let stop = Arc::new(AtomicBool::new(false));
        let (manifests, stopped) = (manifests.clone(), stop.clone());
        let work = move || {
            let (start, mut edits) = (Instant::now(), 0u64);
            while !stopped.load(Ordering::Relaxed) {
                let due = (start.elapsed().as_secs_f64() * f64::from(tables.changes_per_s)) as u64;
                while edits < due && !stopped.load(Ordering::Relaxed) {
                    let n = (edits / 2) as u32 % tables.services;
                    let more = u32::from(edits.is_multiple_of(2));
                    write_services(&manifests, n..n + 1, tables.backends + more)?;
                    edits += 1;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(edits)
        };
        Editor { stop, thread: Some(std::thread::spawn(work)) }
    }

    /// Ends it; returns how many edits it made, or `None` if it died.
    fn end(&mut self) -> Option<Result<u64, fairway_tests::Error>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take()?.join().ok()
    }
}

impl Drop for Editor {
    fn drop(&mut self) {
        // Whether it failed has no bearing on the way out.
        let _ = self.end();
    }
}

impl Device for FairwayDevice {
    fn name(&self) -> &'static str {
        "fairway"
    }

    fn site(&self) -> Site {
        self.ground.site()
    }

    fn ends(&mut self) -> &mut Ends {
        self.ground.ends()
    }

    fn hint(&mut self) -> String {
        let saw = self.ground.what_ends_saw();
        let counters = match self.ground.testbed().nodes()[0].ask(&["counters"]) {
            Ok(json) => json.to_string(),
            Err(error) => error.to_string(),
        };
        format!("{saw}; the engine counts {counters}")
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<String>, DeviceError> {
        let broken = |what: String| DeviceError::Broken { device: "fairway".to_owned(), what };
        let mut words = Vec::new();
        if let Some(mut editor) = self.editor.take() {
            let died = || broken("the thread that edits manifests has died".to_owned());
            let edits = editor.end().ok_or_else(died)??;
            words.push(format!("{edits} edits of Services while packets flowed"));
        }
        let node = self.ground.testbed().node_mut(0);
        let last_words = node.stop_dataplane()?;
        if last_words.is_empty() {
            return Err(broken("the engine ended without speaking of I1 and I2".to_owned()));
        }
        words.push("the engine ended with every frame home and every packet accounted for".to_owned());
        node.stop_control()?;
        words.extend(self.ground.close_checked("fairway")?);
        Ok(words)
    }
}
