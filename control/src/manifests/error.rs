//! What can be wrong with a manifest, and where.

use crate::convert::FieldError;
use crate::object::{Kind, ObjectKey};
use crate::{masquerade, pools};
use fairway_tables::{Ip, Prefix};
use std::fmt;

/// One error in one file of the manifests folder. Its text says what is wrong, where, and what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManifestError {
    /// The file's name in the folder.
    pub file: String,
    /// Number of the YAML document in the file, from 1; 0 if the file as a whole is meant.
    pub document: usize,
    /// Line in the file, from 1.
    pub line: Option<usize>,
    /// The object, as far as it is known.
    pub object: Option<String>,
    /// What is wrong.
    pub problem: FileProblem,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if self.document > 0 {
            write!(f, ": document {}", self.document)?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for ManifestError {}

/// What is wrong with a file or an object in it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FileProblem {
    /// The file cannot be read.
    #[error("cannot be read: {0}; check that it is a text file that fairway-control may read")]
    Unreadable(String),
    /// The file is larger than any manifest.
    #[error("is {size_bytes} bytes long, more than {limit_bytes}; split it")]
    TooLarge {
        /// Its size.
        size_bytes: u64,
        /// The largest that is read.
        limit_bytes: u64,
    },
    /// Broken YAML.
    #[error("not valid YAML: {0}")]
    Yaml(String),
    /// A document that is no Kubernetes object.
    #[error("not a Kubernetes object: {0} is missing; add it, or remove the document")]
    NotAnObject(&'static str),
    /// An API version that Fairway does not read.
    #[error("apiVersion {found} is not read; use {expected}")]
    Version {
        /// What the file says.
        found: String,
        /// What to write.
        expected: &'static str,
    },
    /// A field of the wrong type, or a required field that is missing.
    #[error("does not fit its kind: {0}")]
    Shape(String),
    /// A field whose value cannot be used.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The same object twice.
    #[error("is already in {0}; remove one of the two")]
    Duplicate(Place),
    /// Pod ranges of two nodes share addresses.
    #[error("spec.podCIDR: {cidr} overlaps {other_cidr} of {other}; give each node a range of its own")]
    OverlappingPodCidr {
        /// This node's range.
        cidr: Prefix,
        /// The other's.
        other_cidr: Prefix,
        /// The other node.
        other: Box<Claimant>,
    },
    /// Two nodes have one address.
    #[error("status.addresses: {ip} is also the address of {other}; correct one of the two")]
    DuplicateNodeIp {
        /// The address.
        ip: Ip,
        /// The other node.
        other: Box<Claimant>,
    },
    /// Two pods have one address.
    #[error("status.podIP: {ip} is also the address of {other}; give each pod its own")]
    DuplicatePodIp {
        /// The address.
        ip: Ip,
        /// The other pod.
        other: Box<Claimant>,
    },
    /// A pod's address lies outside its node's ranges, so no other node would find it.
    #[error("status.podIP: {ip} is outside the pod range {cidrs} of Node {node}; use an address inside it")]
    OutsidePodCidr {
        /// The address.
        ip: Ip,
        /// The pod's node.
        node: String,
        /// The node's ranges.
        cidrs: String,
    },
    /// A pod has the address that belongs to the node's own side.
    #[error("status.podIP: {ip} is reserved for Node {node} itself (the first of its range); use another")]
    HostAddress {
        /// The address.
        ip: Ip,
        /// The pod's node.
        node: String,
    },
    /// Pools share addresses.
    #[error("{cidr} overlaps {other_cidr} of {other}; give each pool a range of its own")]
    OverlappingPool {
        /// This pool's range.
        cidr: Prefix,
        /// The other's.
        other_cidr: Prefix,
        /// The other pool.
        other: Box<Claimant>,
    },
    /// Two ENIs carry one address, or have one Ethernet address.
    #[error(
        "status.networkInterfaces[{eni}]: {address} is also that of {other_eni} of {other}; correct one of the two"
    )]
    DuplicateEniAddress {
        /// What both have.
        address: String,
        /// This ENI.
        eni: String,
        /// The other one.
        other_eni: String,
        /// The object that lists that.
        other: Box<Claimant>,
    },
    /// Flannel is configured twice.
    #[error("{other} configures Flannel already; remove one of the two")]
    SecondFlannel {
        /// The other one.
        other: Box<Claimant>,
    },
    /// Two services have one address and port.
    #[error(
        "spec.clusterIP: {ip} port {port} {} is also that of {other}; change one of the two",
        proto_name(*proto)
    )]
    DuplicateServiceAddress {
        /// The service address.
        ip: Ip,
        /// The port.
        port: u16,
        /// IP protocol number.
        proto: u8,
        /// The other service.
        other: Box<Claimant>,
    },
    /// Two services with one node port.
    #[error("nodePort {port} {} is also a port of {other}; change one of the two", proto_name(*proto))]
    DuplicateNodePort {
        /// The port: a node port, or one for health checks.
        port: u16,
        /// IP protocol number.
        proto: u8,
        /// The other service.
        other: Box<Claimant>,
    },
}

/// File and document of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// Number of the document, from 1.
    pub document: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} document {}", self.file, self.document)
    }
}

/// The other party of a conflict.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claimant {
    /// The object.
    pub object: ObjectKey,
    /// Where it stands.
    pub place: Place,
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.object, self.place)
    }
}

/// TCP, UDP, SCTP, or the number.
pub fn proto_name(proto: u8) -> String {
    match proto {
        6 => "TCP".into(),
        17 => "UDP".into(),
        132 => "SCTP".into(),
        other => other.to_string(),
    }
}

/// API versions that Fairway reads, by kind; of kinds of one name the version's group tells which is meant.
pub(super) fn known_kind(
    kind: &str,
    version: &str,
    name: Option<&str>,
) -> Option<(Kind, &'static [&'static str])> {
    match kind {
        "Node" if version.starts_with("network.alibabacloud.com/") => {
            Some((Kind::NodeEnis, &["network.alibabacloud.com/v1beta1"]))
        }
        "Node" => Some((Kind::Node, &["v1"])),
        "Namespace" => Some((Kind::Namespace, &["v1"])),
        "Pod" => Some((Kind::Pod, &["v1"])),
        "Service" => Some((Kind::Service, &["v1"])),
        "EndpointSlice" => Some((Kind::EndpointSlice, &["discovery.k8s.io/v1"])),
        "IPPool" => Some((Kind::IpPool, &["projectcalico.org/v3", "crd.projectcalico.org/v1"])),
        // Of all ConfigMaps only these.
        "ConfigMap" if name == Some(pools::FLANNEL_CONFIG) => Some((Kind::FlannelConfig, &["v1"])),
        "ConfigMap" if name == Some(masquerade::CONFIG) => Some((Kind::MasqueradeConfig, &["v1"])),
        _ => None,
    }
}
