//! Fairway's testbed: nodes, pods and the wire between them as network namespaces, with Fairway's real
//! programs inside. The demo and the end-to-end tests drive it; what it offers knows no test.
//!
//! | module | what lives there |
//! |---|---|
//! | [`testbed`] | the topology: a switch, nodes, pods, and the folder of manifests that describes them |
//! | [`node`] | one node: its uplink and its `fairway-control` and `fairway-dataplane` |
//! | [`station`] | a node that runs no part of Fairway: a kernel with its own tunnels |
//! | [`guest`] | another kernel in QEMU, as a node with the tunnels that it has |
//! | [`netns`], [`process`], [`sys`] | namespaces, child processes, and the system calls under them |
//! | [`engines`] | whether the engines carry the traffic, and not the kernel |
//! | [`programs`], [`kept`] | where the programs are; the testbed that was left running |
//! | [`manifests`] | Kubernetes manifests, written whole |
//! | [`dual_stack`] | IPv6 beside IPv4 |
//! | [`capture`] | what is on a wire |
//! | [`conntrack`] | the kernel's connection table of a namespace |
//! | [`bird`], [`frr`] | real routing daemons |
//! | [`matrix`] | every path of a packet in every mode, checked by captures |
//! | [`vpc`] | a cloud's network with ENIs |
//! | [`ping`], [`traceroute`], [`snmp`] | what the kernel's own tools and counters say |
//! | [`pod`] | what runs inside a pod: `fairway-pod` |
//! | [`gate`] | whether an end-to-end test may run, and whether it runs alone |
//! | [`kube`] | the real etcd, kube-apiserver and kube-proxy |
//! | [`report`] | figures as JSON, for comparison from run to run |

pub mod bird;
pub mod capture;
pub mod conntrack;
pub mod dual_stack;
pub mod engines;
pub mod error;
pub mod frr;
pub mod gate;
pub mod guest;
pub mod kept;
pub mod kube;
pub mod manifests;
pub mod matrix;
pub mod netns;
pub mod node;
pub mod ping;
pub mod pod;
pub mod process;
pub mod programs;
pub mod report;
pub mod snmp;
pub mod station;
pub mod sys;
pub mod testbed;
pub mod traceroute;
pub mod vectors;
pub mod vpc;

pub use error::{Error, Result};
pub use testbed::{Options, PodId, Testbed};
