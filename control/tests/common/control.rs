//! The real binary in a namespace.

use super::{Netns, eventually, run};
use fairway_control::api::client;
use fairway_control::api::types::Status;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running control process of `node-a`, killed when dropped.
pub(crate) struct Control {
    child: Child,
    run_dir: PathBuf,
}

impl Control {
    pub(crate) fn command(netns: &Netns, dir: &Path, extra: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &netns.0, env!("CARGO_BIN_EXE_fairway-control"), "--node", "node-a"]);
        command
            .arg("--run-dir")
            .arg(dir.join("run"))
            .arg("--manifests")
            .arg(dir.join("manifests"))
            .args(extra);
        command.stderr(Stdio::piped());
        command
    }

    /// Starts the process and waits until it answers.
    pub(crate) fn start(netns: &Netns, dir: &Path) -> Control {
        let child = Control::command(netns, dir, &[]).stderr(Stdio::inherit()).spawn().unwrap();
        let control = Control { child, run_dir: dir.join("run") };
        eventually("start", || control.get::<Status>("/status").map(drop));
        control
    }

    pub(crate) fn get<T: serde::de::DeserializeOwned>(&self, page: &str) -> Result<T, String> {
        client::get_blocking(&self.run_dir, page).map_err(|e| e.to_string())
    }

    /// Sends the signal and waits for the end. `ip netns exec` replaces itself, so the child is the process.
    pub(crate) fn signal(&mut self, signal: i32) -> std::process::ExitStatus {
        run(&format!("kill -{signal} {}", self.child.id()));
        self.child.wait().unwrap()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
