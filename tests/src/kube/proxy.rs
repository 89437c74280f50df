//! kube-proxy in nftables mode in a node's namespace, beside the kernel's own forwarding.

use super::{ApiServer, Programs};
use crate::error::{Error, Result};
use crate::netns::Netns;
use crate::process::Process;
use serde_json::json;

/// A running kube-proxy. Ends when dropped; its rules stay in the namespace.
#[derive(Debug)]
pub struct KubeProxy(Process);

impl KubeProxy {
    /// Starts it for the node of this name, in the namespace of an API server that holds the Node. Traffic from
    /// `cluster_cidrs` counts as pods'; from elsewhere to a Service it is masqueraded.
    pub fn start(
        programs: &Programs,
        api: &ApiServer,
        netns: &Netns,
        node: &str,
        cluster_cidrs: &str,
    ) -> Result<KubeProxy> {
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "hostnameOverride": node,
            "clientConnection": {"kubeconfig": api.kubeconfig()?},
            "clusterCIDR": cluster_cidrs,
            "detectLocalMode": "ClusterCIDR",
            // Every change is taken in at once.
            "nftables": {"minSyncPeriod": "0s", "syncPeriod": "1h"},
            // The machine's limit of connections is not a namespace's to change.
            "conntrack": {"maxPerCore": 0, "min": 0},
        });
        let path = api.dir().join("kube-proxy.json");
        std::fs::write(&path, config.to_string()).map_err(Error::io(format!("write {}", path.display())))?;
        let mut command = netns.command(programs.path("kube-proxy"));
        command.arg("--config").arg(path);
        Process::spawn("kube-proxy", command, &api.dir().join("kube-proxy.log"), true).map(KubeProxy)
    }

    /// An error if it has ended by itself.
    pub fn expect_alive(&mut self) -> Result<()> {
        self.0.expect_alive()
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        self.0.log_tail(lines)
    }
}
