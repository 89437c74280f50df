//! The folder of Kubernetes manifests that feeds a testbed, written as a careful user would: every file
//! is replaced whole, so that no reader sees half of one.

use crate::error::{Error, Result};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// One backend of a service.
#[derive(Debug, Clone)]
pub struct EndpointSpec {
    /// The pod's name.
    pub pod: String,
    /// The pod's address.
    pub ip: Ipv4Addr,
    /// The node it runs on.
    pub node: String,
}

/// A service of one TCP port.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service address.
    pub cluster_ip: Ipv4Addr,
    /// Port of the service.
    pub port: u16,
    /// Port of the backends.
    pub target_port: u16,
}

/// A folder of manifests.
#[derive(Debug, Clone)]
pub struct Manifests {
    folder: PathBuf,
    /// Where files are written before they move into the folder at once.
    staging: PathBuf,
}

impl Manifests {
    /// Makes the folder `manifests` inside `dir`.
    pub fn create(dir: &Path) -> Result<Manifests> {
        let (folder, staging) = (dir.join("manifests"), dir.join("manifests.staging"));
        for path in [&folder, &staging] {
            std::fs::create_dir_all(path)
                .map_err(Error::io(format!("make the folder {}", path.display())))?;
        }
        Ok(Manifests { folder, staging })
    }

    /// The folder, for `fairway-control --manifests`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes or replaces the file `name.yaml`.
    pub fn write(&self, name: &str, yaml: &str) -> Result<()> {
        let file = format!("{name}.yaml");
        let (staged, target) = (self.staging.join(&file), self.folder.join(&file));
        std::fs::write(&staged, yaml).map_err(Error::io(format!("write {}", staged.display())))?;
        std::fs::rename(&staged, &target).map_err(Error::io(format!("replace {}", target.display())))
    }

    /// Deletes the file `name.yaml`.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.folder.join(format!("{name}.yaml"));
        std::fs::remove_file(&path).map_err(Error::io(format!("delete {}", path.display())))
    }

    /// Writes a Node with addresses and pod ranges of one or both families.
    pub fn node(&self, name: &str, ips: &[IpAddr], pod_cidrs: &[String]) -> Result<()> {
        let first = pod_cidrs.first().map_or("", String::as_str);
        let mut yaml = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\nspec:\n  podCIDR: '{first}'\n  \
             podCIDRs: {pod_cidrs:?}\nstatus:\n  addresses:\n  - type: Hostname\n    address: {name}\n"
        );
        for ip in ips {
            // Writing to a String cannot fail.
            let _ = write!(yaml, "  - type: InternalIP\n    address: '{ip}'\n");
        }
        self.write(&format!("node-{name}"), &yaml)
    }

    /// Writes a Namespace.
    pub fn namespace(&self, name: &str) -> Result<()> {
        let yaml = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n");
        self.write(&format!("namespace-{name}"), &yaml)
    }

    /// Writes a running Pod with one container and addresses of one or both families.
    pub fn pod(&self, namespace: &str, name: &str, node: &str, ips: &[IpAddr]) -> Result<()> {
        let first = ips.first().map(IpAddr::to_string).unwrap_or_default();
        let mut yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: {namespace}\n  name: {name}\n  labels:\n    \
             app: {name}\nspec:\n  nodeName: {node}\n  containers:\n  - name: main\n    image: \
             fairway-pod\nstatus:\n  phase: Running\n  conditions:\n  - type: Ready\n    status: \"True\"\n  \
             podIP: '{first}'\n  podIPs:\n"
        );
        for ip in ips {
            let _ = writeln!(yaml, "  - ip: '{ip}'");
        }
        self.write(&pod_file(namespace, name), &yaml)
    }

    /// Deletes a Pod.
    pub fn remove_pod(&self, namespace: &str, name: &str) -> Result<()> {
        self.remove(&pod_file(namespace, name))
    }

    /// Writes a Service of type ClusterIP.
    pub fn service(&self, service: &ServiceSpec) -> Result<()> {
        let ServiceSpec { namespace, name, cluster_ip, port, target_port } = service;
        let yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: {namespace}\n  name: {name}\nspec:\n  \
             type: ClusterIP\n  clusterIP: {cluster_ip}\n  clusterIPs:\n  - {cluster_ip}\n  selector:\n    \
             service: {name}\n  ports:\n  - name: http\n    protocol: TCP\n    port: {port}\n    \
             targetPort: {target_port}\n"
        );
        self.write(&format!("service-{namespace}-{name}"), &yaml)
    }

    /// Writes the EndpointSlice of a service, whole: endpoints that are not given are no more.
    pub fn endpoints(&self, service: &ServiceSpec, endpoints: &[EndpointSpec]) -> Result<()> {
        let ServiceSpec { namespace, name, target_port, .. } = service;
        let mut yaml = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: {namespace}\n  \
             name: {name}-1\n  labels:\n    kubernetes.io/service-name: {name}\naddressType: IPv4\nports:\n\
             - name: http\n  protocol: TCP\n  port: {target_port}\n"
        );
        yaml.push_str(if endpoints.is_empty() { "endpoints: []\n" } else { "endpoints:\n" });
        for EndpointSpec { pod, ip, node } in endpoints {
            // Writing to a String cannot fail.
            let _ = write!(
                yaml,
                "- addresses:\n  - {ip}\n  conditions:\n    ready: true\n    serving: true\n    \
                 terminating: false\n  nodeName: {node}\n  targetRef:\n    kind: Pod\n    \
                 namespace: {namespace}\n    name: {pod}\n"
            );
        }
        self.write(&format!("endpoints-{namespace}-{name}"), &yaml)
    }
}

fn pod_file(namespace: &str, name: &str) -> String {
    format!("pod-{namespace}-{name}")
}
