//! etcd and kube-apiserver on the loopback of one namespace. Whoever has the token may do everything; there is nobody
//! else in the namespace.

use super::Programs;
use crate::error::{Error, Result};
use crate::netns::Netns;
use crate::process::{Process, wait_for};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";
const PORT: &str = "6443";
const TOKEN: &str = "testbed";
/// Namespace of all objects in the Kubernetes sense.
pub const NAMESPACE: &str = "testbed";
/// Ranges of Service addresses.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:96::/112";
const STARTED: Duration = Duration::from_secs(60);
/// Longest time to write the largest state, 10,000 Services.
const HELD: Duration = Duration::from_secs(300);

/// A running API server with its store. Both end when dropped.
#[derive(Debug)]
pub struct ApiServer {
    programs: Programs,
    dir: PathBuf,
    // The server before its store.
    server: Process,
    etcd: Process,
}

impl ApiServer {
    /// Starts both in a namespace, with their files in `dir`, and waits until the server is ready.
    pub fn start(programs: &Programs, netns: &Netns, dir: &Path) -> Result<ApiServer> {
        let dir = dir.join("kube");
        std::fs::create_dir_all(&dir).map_err(Error::io(format!("make the folder {}", dir.display())))?;
        let etcd = start_etcd(programs, netns, &dir)?;
        let server = start_server(programs, netns, &dir)?;
        let mut api = ApiServer { programs: programs.clone(), dir, server, etcd };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        // One that wants an address, too: the ranges of these are made a moment after the server is ready.
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": NAMESPACE, "name": "first"},
            "spec": {"ports": [{"port": 80}]},
        });
        wait_for("kube-apiserver takes objects", STARTED, || {
            api.etcd.expect_alive()?;
            api.server.expect_alive()?;
            let steps = [&namespace, &service].map(std::slice::from_ref);
            let held = api.hold(netns, &steps);
            Ok(held.map(drop).map_err(|error| error.to_string()))
        })?;
        Ok(api)
    }

    /// Makes the server hold exactly these Nodes, Services and EndpointSlices, the latter two in [`NAMESPACE`], and
    /// returns them as it holds them, with its defaults filled in. The objects of each step are written
    /// when all of the step before it are.
    pub fn hold(&self, netns: &Netns, steps: &[&[Value]]) -> Result<Vec<Value>> {
        let mut files = Vec::new();
        for (number, objects) in steps.iter().enumerate() {
            let file = self.dir.join(format!("objects-{number}.json"));
            let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
            std::fs::write(&file, list.to_string())
                .map_err(Error::io(format!("write {}", file.display())))?;
            files.push(file.display().to_string());
        }
        let (ca, server) = (self.ca(), url());
        let mut args = vec!["--server", &server, "--ca", &ca, "--token", TOKEN];
        args.extend(files.iter().map(String::as_str));
        let output = netns.run(self.programs.path("hold"), &args, HELD)?;
        let command = output.command.clone();
        let held: Value = serde_json::from_str(&output.success()?)
            .map_err(|error| Error::Answer { what: command, reason: error.to_string() })?;
        Ok(held["items"].as_array().cloned().unwrap_or_default())
    }

    /// A kubeconfig for clients in the same namespace.
    pub(super) fn kubeconfig(&self) -> Result<PathBuf> {
        let path = self.dir.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "testbed",
            "clusters": [{"name": "testbed", "cluster": {"server": url(), "certificate-authority": self.ca()}}],
            "users": [{"name": "testbed", "user": {"token": TOKEN}}],
            "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "testbed"}}],
        });
        std::fs::write(&path, config.to_string()).map_err(Error::io(format!("write {}", path.display())))?;
        Ok(path)
    }

    /// Folder of its files and logs.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The certificate that the server has made for itself.
    fn ca(&self) -> String {
        self.dir.join("apiserver.crt").display().to_string()
    }
}

fn url() -> String {
    format!("https://127.0.0.1:{PORT}")
}

fn start_etcd(programs: &Programs, netns: &Netns, dir: &Path) -> Result<Process> {
    let mut command = netns.command(programs.path("etcd"));
    command.arg("--data-dir").arg(dir.join("etcd"));
    command.args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]);
    command.args(["--listen-peer-urls", ETCD_PEER, "--initial-advertise-peer-urls", ETCD_PEER]);
    command.args(["--initial-cluster", &format!("default={ETCD_PEER}")]);
    // What it stores need not outlive it.
    command.args(["--unsafe-no-fsync", "--log-level", "warn"]);
    Process::spawn("etcd", command, &dir.join("etcd.log"), true)
}

fn start_server(programs: &Programs, netns: &Netns, dir: &Path) -> Result<Process> {
    let tokens = dir.join("tokens.csv");
    std::fs::write(&tokens, format!("{TOKEN},testbed,testbed,system:masters\n"))
        .map_err(Error::io(format!("write {}", tokens.display())))?;
    let mut command = netns.command(programs.path("kube-apiserver"));
    command.args(["--etcd-servers", ETCD, "--service-cluster-ip-range", SERVICE_CIDRS]);
    command.args(["--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--secure-port", PORT]);
    command.arg("--cert-dir").arg(dir).arg("--token-auth-file").arg(&tokens);
    command.args(["--authorization-mode", "AlwaysAllow", "--enable-priority-and-fairness=false"]);
    // It must have a key to sign service accounts' tokens with, which nobody asks for: its own.
    for option in ["--service-account-signing-key-file", "--service-account-key-file"] {
        command.arg(option).arg(dir.join("apiserver.key"));
    }
    command.args(["--service-account-issuer", "https://testbed.invalid"]);
    command.args(["--disable-admission-plugins", "ServiceAccount", "--endpoint-reconciler-type", "none"]);
    Process::spawn("kube-apiserver", command, &dir.join("kube-apiserver.log"), true)
}
