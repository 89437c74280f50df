//! What the API answers, as JSON. docs/control.md shows an example of each.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `GET /status`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// This node's name.
    pub node: String,
    /// Version of fairway-control.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Number of the last batch applied to the tables.
    pub generation: u64,
    /// The last change of the tables, if there was one since the start.
    pub last_change: Option<LastChange>,
    /// The device towards the other nodes, once it is found.
    pub uplink: Option<Uplink>,
    /// Largest packet that pods may send, in bytes.
    pub pod_mtu: u32,
    /// The forwarding engine.
    pub dataplane: Dataplane,
    /// Who carries the pods' traffic.
    pub traffic: Traffic,
    /// The manifests folder.
    pub manifests: Manifests,
    /// How many objects of each kind are in force.
    pub objects: BTreeMap<String, usize>,
    /// What is asked for and cannot be given yet.
    pub pending: Vec<Pending>,
    /// What went wrong and still is; each text says what, where and what to do.
    pub errors: Vec<String>,
    /// Tables that are nearly full and cannot grow, and what to do.
    pub warnings: Vec<String>,
    /// How full the tables are.
    pub tables: Vec<TableUsage>,
}

/// The last change of the tables.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LastChange {
    /// Seconds ago.
    pub ago_s: f64,
    /// How long it took to apply, in microseconds.
    pub took_us: u64,
    /// Entries set or deleted.
    pub entries: usize,
}

/// The device towards the other nodes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Uplink {
    /// Device name.
    pub ifname: String,
    /// The kernel's number of the device.
    pub ifindex: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its Ethernet address.
    pub mac: String,
}

/// The forwarding engine, as its counters file tells.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Dataplane {
    /// Whether the process lives.
    pub alive: bool,
    /// `starting`, `running`, `stopped`, or `unknown`.
    pub state: String,
    /// Its process number.
    pub pid: u32,
    /// How many workers it has.
    pub workers: usize,
    /// Entries in the connection table, and how many it can hold.
    pub conntrack_used: u64,
    /// See `conntrack_used`.
    pub conntrack_capacity: u64,
    /// Why nothing is known of it.
    pub error: Option<String>,
}

/// Who carries the pods' traffic.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// `engine`, `kernel` (pod-to-pod only: no Services, no NetworkPolicy) or `none`.
    pub carried_by: String,
    /// For how many seconds, as far back as control remembers.
    pub for_s: u64,
    /// Whether the kernel is kept ready to take over.
    pub kernel_fallback: bool,
    /// What becomes of packets to service addresses: `forwarded`, `dropped` or `refused`.
    pub services: String,
    /// While the kernel carries the traffic: pod ranges of other nodes that it does not reach.
    pub not_carried: Vec<String>,
}

/// The manifests folder.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Manifests {
    /// Where it is.
    pub folder: String,
    /// How many manifest files it holds.
    pub files: usize,
    /// How many objects of kinds that Fairway does not read.
    pub ignored: BTreeMap<String, usize>,
    /// Errors of refused files; what these files said before stays in force.
    pub errors: Vec<String>,
}

/// Something that waits.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// What waits.
    pub what: String,
    /// What it waits for.
    pub reason: String,
}

/// How full a table is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TableUsage {
    /// Which table.
    pub table: String,
    /// Entries in use.
    pub used: u64,
    /// Entries that it can hold.
    pub capacity: u64,
    /// Entries that wait for readers to move on.
    pub retired: u64,
    /// Whether it becomes larger by itself when it is full.
    pub can_grow: bool,
    /// Entries that it has no room for now.
    pub left_out: u64,
    /// Entries that it had no room for when they came, since control's start.
    pub left_out_total: u64,
}

/// One entry of `GET /routes`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub prefix: String,
    /// `local`, `tunnel`, `gateway`, `host`, `blackhole` or `unreachable`.
    pub kind: String,
    /// Of a tunnel: `vxlan`, `ipip` or `udp`.
    pub encapsulation: Option<String>,
    /// Remote node or gateway.
    pub next_hop: Option<String>,
    /// Of several next hops: its share of the flows, relative to the others'.
    pub weight: Option<u32>,
    /// Name of the remote node that has the pods.
    pub node: Option<String>,
}

/// One entry of `GET /services`: one port of one address of a service.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Namespace of the Service object.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Name of the port; empty if it has none.
    pub port_name: String,
    /// Address: the cluster's, the node's own for a node port, a load balancer's or an external one.
    pub ip: String,
    /// Port number.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Number that stays with the service port as long as it lives.
    pub id: u32,
    /// Session affinity in seconds; 0 is none.
    pub affinity_timeout_s: u32,
    /// Whether the address is another than the cluster's.
    pub external: bool,
    /// Whether backends see the node's address instead of the client's.
    pub masquerade: bool,
    /// `random` or `maglev`.
    pub balancer: String,
    /// `nat`, or `dsr`: clients from outside are answered straight from the backend's node.
    pub forwarding: String,
    /// The only clients admitted; empty: all.
    pub source_ranges: Vec<String>,
    /// Endpoints in use.
    pub backends: Vec<Backend>,
    /// Under `externalTrafficPolicy: Local`, those in use for clients that are neither pods nor this node; with DSR, those of
    /// this node.
    pub local_backends: Option<Vec<Backend>>,
}

/// A ready endpoint of a service.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Backend {
    /// Its address.
    pub ip: String,
    /// Its port.
    pub port: u16,
}

/// One entry of `GET /endpoints`: a pod address on this node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// The pod's address.
    pub ip: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Number of its port.
    pub port: u16,
    /// Device of its port.
    pub ifname: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Its name.
    pub pod: String,
}

/// One entry of `GET /neighbours`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Neighbour {
    /// The neighbour's address.
    pub ip: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Number of the port that it is on.
    pub port: u16,
    /// Remote nodes that are reached through it.
    pub nodes: Vec<String>,
}

/// One entry of `GET /tunnels`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Tunnel {
    /// Name of the remote node.
    pub node: String,
    /// Its underlay address.
    pub remote: String,
    /// This node's.
    pub local: String,
    /// Neighbour that leads there.
    pub next_hop: String,
    /// That neighbour's Ethernet address, once it is resolved.
    pub next_hop_mac: Option<String>,
    /// VXLAN network identifier.
    pub vni: u32,
    /// VXLAN's UDP port.
    pub udp_port: u16,
    /// Number of the uplink's port.
    pub port: u16,
    /// The remote node's VTEP address.
    pub remote_mac: String,
    /// This node's VTEP address.
    pub local_mac: String,
}

/// One entry of `GET /ports`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Its number.
    pub id: u16,
    /// Its device.
    pub ifname: String,
    /// `uplink`, `host` or `pod`.
    pub kind: String,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// The device's Ethernet address.
    pub mac: String,
    /// Namespace and name of the pod behind it.
    pub pod: Option<String>,
}

/// `GET /counters`: sums over all workers, and each worker's loop.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// The process that counts.
    pub dataplane: Dataplane,
    /// Packets and events.
    pub counters: BTreeMap<String, u64>,
    /// Dropped packets by reason; reasons that never occurred are left out.
    pub drops: BTreeMap<String, u64>,
    /// What each part of the work costs.
    pub stages: BTreeMap<String, Stage>,
    /// Per port.
    pub ports: Vec<PortCounters>,
}

/// What a part of the work costs, in nanoseconds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Stage {
    /// How often it ran.
    pub count: u64,
    /// Mean.
    pub mean_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// Longest.
    pub max_ns: u64,
}

/// What went through a port.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PortCounters {
    /// Its number.
    pub id: u16,
    /// Its device.
    pub ifname: String,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets dropped that came in here.
    pub drops: u64,
    /// Packets that the kernel dropped before they came in here, for want of room in the rx ring or of a frame.
    pub kernel_rx_dropped: u64,
    /// Times that the kernel found no frame to receive into.
    pub kernel_fill_empty: u64,
}
