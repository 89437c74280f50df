//! One node of a testbed: a namespace with an uplink to the switch, and Fairway's two processes in it.

use crate::error::{Error, Result};
use crate::netns::Netns;
use crate::process::{self, Process};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The node's device towards the other nodes.
pub const UPLINK: &str = "uplink0";
/// MTU of the wire between the nodes in bytes.
pub const UPLINK_MTU: u32 = 1500;
/// Longest time for one call of the `fairway` command.
const CLI_DEADLINE: Duration = Duration::from_secs(10);

/// What a node is made of.
#[derive(Debug, Clone)]
pub(crate) struct NodeSpec {
    pub(crate) name: String,
    pub(crate) ip: Ipv4Addr,
    pub(crate) pod_cidr: String,
    /// Folder of its own for run directory and logs.
    pub(crate) dir: PathBuf,
    pub(crate) bin_dir: PathBuf,
    pub(crate) manifests: PathBuf,
    pub(crate) die_with_parent: bool,
}

/// A node of a testbed.
#[derive(Debug)]
pub struct Node {
    spec: NodeSpec,
    run_dir: PathBuf,
    control_options: Vec<String>,
    // Processes come before the namespace, so that they are dropped before it.
    dataplane: Option<Process>,
    control: Option<Process>,
    netns: Netns,
}

impl Node {
    pub(crate) fn new(spec: NodeSpec, netns: Netns) -> Result<Node> {
        let run_dir = spec.dir.join("run");
        std::fs::create_dir_all(&run_dir)
            .map_err(Error::io(format!("make the folder {}", run_dir.display())))?;
        Ok(Node { spec, run_dir, control_options: Vec::new(), dataplane: None, control: None, netns })
    }

    /// The node's name in the manifests.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The node's address on the wire.
    pub fn ip(&self) -> Ipv4Addr {
        self.spec.ip
    }

    /// Address range of its pods.
    pub fn pod_cidr(&self) -> &str {
        &self.spec.pod_cidr
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    pub(crate) fn netns_mut(&mut self) -> &mut Netns {
        &mut self.netns
    }

    /// Its run directory: tables, counters, the control socket.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Its running control process.
    pub fn control(&mut self) -> Option<&mut Process> {
        self.control.as_mut()
    }

    /// Its running dataplane process.
    pub fn dataplane(&mut self) -> Option<&mut Process> {
        self.dataplane.as_mut()
    }

    pub(crate) fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.dataplane.iter_mut().chain(self.control.iter_mut())
    }

    /// The arguments with which the node's control process is started.
    pub fn control_args(&self) -> Vec<String> {
        let path = |p: &Path| p.display().to_string();
        let NodeSpec { name, manifests, .. } = &self.spec;
        let own = ["--run-dir", &path(&self.run_dir), "--node", name, "--manifests", &path(manifests)];
        own.map(str::to_owned).into_iter().chain(self.control_options.iter().cloned()).collect()
    }

    /// Further options with which control is started from now on.
    pub fn set_control_options(&mut self, options: &[&str]) {
        self.control_options = options.iter().map(|option| (*option).to_owned()).collect();
    }

    /// Starts `fairway-control`.
    pub fn start_control(&mut self) -> Result<()> {
        self.start_control_with(&[])
    }

    /// Starts `fairway-control` with further arguments.
    pub fn start_control_with(&mut self, more: &[&str]) -> Result<()> {
        let mut args = self.control_args();
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        self.control = Some(self.spawn("fairway-control", &args)?);
        Ok(())
    }

    /// Starts `fairway-dataplane` with further arguments.
    pub fn start_dataplane(&mut self, args: &[&str]) -> Result<()> {
        let mut all = vec!["--run-dir".to_owned(), self.run_dir.display().to_string()];
        all.extend(args.iter().map(|a| (*a).to_owned()));
        self.dataplane = Some(self.spawn("fairway-dataplane", &all)?);
        Ok(())
    }

    /// Starts the dataplane from another file, which takes the run directory and further arguments.
    pub fn start_dataplane_from(&mut self, program: &Path, args: &[&str]) -> Result<()> {
        let run_dir = self.run_dir.display().to_string();
        let args: Vec<String> = ["--run-dir", &run_dir].iter().chain(args).map(|a| (*a).to_owned()).collect();
        self.dataplane = Some(self.spawn_from(program, "fairway-dataplane", &args)?);
        Ok(())
    }

    /// Runs `fairway restart` on this node to its end.
    pub fn restart_dataplane(&self) -> Result<process::Output> {
        let run_dir = self.run_dir.display().to_string();
        self.run("fairway", &["--run-dir", &run_dir, "restart", "--timeout-ms", "8000"])
    }

    fn spawn(&self, program: &str, args: &[String]) -> Result<Process> {
        self.spawn_from(&self.program(program)?, program, args)
    }

    fn spawn_from(&self, path: &Path, program: &str, args: &[String]) -> Result<Process> {
        // `ip netns exec` gives the process a /sys of its own, in which nothing is mounted.
        let mut command = self.netns.command("sh");
        let mount = "mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec \"$@\"";
        command.args(["-c", mount, "sh"]).arg(path).args(args).env("NO_COLOR", "1");
        let log = self.spec.dir.join(format!("{program}.log"));
        let name = format!("{program} of {}", self.spec.name);
        Process::spawn(&name, command, &log, self.spec.die_with_parent)
    }

    /// Stops the dataplane, insists that it ends with exit code 0, which it does only if invariants I1
    /// and I2 hold, and returns the lines of its log that say so.
    pub fn stop_dataplane(&mut self) -> Result<Vec<String>> {
        let Some(mut dataplane) = self.dataplane.take() else { return Ok(Vec::new()) };
        dataplane.stop_cleanly()?;
        let log = dataplane.log();
        let says = |line: &&str| line.contains("I1") || line.contains("I2");
        Ok(log.lines().filter(says).map(str::to_owned).collect())
    }

    /// Kills the dataplane as a crash would.
    pub fn kill_dataplane(&mut self) {
        if let Some(mut dataplane) = self.dataplane.take() {
            dataplane.kill();
        }
    }

    /// Kills control as a crash would.
    pub fn kill_control(&mut self) {
        if let Some(mut control) = self.control.take() {
            control.kill();
        }
    }

    /// Stops control and insists that it ends with exit code 0.
    pub fn stop_control(&mut self) -> Result<()> {
        match self.control.take() {
            Some(mut control) => control.stop_cleanly(),
            None => Ok(()),
        }
    }

    /// Path of one of Fairway's programs.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        crate::programs::program(&self.spec.bin_dir, name)
    }

    /// Runs one of Fairway's programs on this node to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<process::Output> {
        self.netns.run(self.program(program)?, args, CLI_DEADLINE)
    }

    /// Asks the node with `fairway --run-dir … <args> -o json`.
    pub fn ask(&self, args: &[&str]) -> Result<serde_json::Value> {
        let run_dir = self.run_dir.display().to_string();
        let mut all = vec!["--run-dir", run_dir.as_str()];
        all.extend(args);
        all.extend(["-o", "json"]);
        let output = self.run("fairway", &all)?;
        let command = output.command.clone();
        serde_json::from_str(&output.success()?)
            .map_err(|e| Error::Answer { what: command, reason: e.to_string() })
    }
}
