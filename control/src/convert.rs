//! From Kubernetes objects to [`crate::object`]: every field that Fairway uses is checked here, once, and
//! an error names the field and says what to write instead.

use crate::object::{EndpointSlice, Node, Object, Pod, SliceEndpoint, SlicePort};
use crate::services::is_left_to_others;
use fairway_tables::{Ip, Prefix};
use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::net::IpAddr;

/// A field of an object that Fairway cannot use.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// Path of the field, such as `spec.ports[0].port`.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field, and what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// A required name is missing.
    #[error("is missing; give the object a name")]
    NoName,
    /// A service without ports.
    #[error("a service needs at least one port; add one, or set clusterIP: None")]
    NoPorts,
    /// A port number out of range.
    #[error("{0} is not a port number; use 1 to 65535")]
    BadPort(i32),
    /// An unknown protocol.
    #[error("'{0}' is not a protocol; use TCP, UDP or SCTP")]
    BadProtocol(String),
    /// Two ports of one service with the same number and protocol, or the same name.
    #[error("repeats an earlier port of this service; give every port its own number and name")]
    RepeatedPort,
    /// A port of a service with several ports has no name, so no endpoint can be matched to it.
    #[error("is missing; a service with more than one port must name each")]
    UnnamedPort,
    /// Not an IP address.
    #[error("'{0}' is not an IP address; write it as 10.0.0.1 or fd00::1")]
    BadIp(String),
    /// Not an address prefix.
    #[error("'{0}' is not an address range; write it as 10.244.1.0/24 or fd00:1::/64")]
    BadCidr(String),
    /// A pod range too small to hold the host's address and a pod.
    #[error("'{0}' is too small for pods; use a /30 or larger range (IPv6: /126)")]
    SmallCidr(String),
    /// No cluster address, and no API server that would give one.
    #[error("is missing, and there is no API server to choose one; set an address, or None for headless")]
    NoClusterIp,
    /// A node without a pod range.
    #[error("is missing; give the node the address range of its pods")]
    NoPodCidr,
    /// A node without an address.
    #[error("has no entry of type InternalIP; add the node's address on the network between the nodes")]
    NoInternalIp,
    /// An unknown endpoint address type.
    #[error("'{0}' is not an address type; use IPv4, IPv6 or FQDN")]
    BadAddressType(String),
    /// An address of the wrong family.
    #[error("{ip} is not of addressType {expected}; put it into a slice of its own family")]
    WrongFamily {
        /// The address.
        ip: Ip,
        /// What the slice holds.
        expected: &'static str,
    },
    /// An affinity timeout out of range.
    #[error("{0} is not a session affinity timeout; use 1 to 86400 seconds")]
    BadTimeout(i32),
    /// An unknown traffic policy.
    #[error("'{0}' is not a traffic policy; use Cluster or Local")]
    BadTrafficPolicy(String),
    /// An unknown mode of a pool.
    #[error("'{0}' is not a mode of a pool; use Always, CrossSubnet or Never")]
    BadPoolMode(String),
    /// IPIP and VXLAN at once.
    #[error("a pool cannot have both IPIP and VXLAN; set one of both to Never")]
    TwoEncapsulations,
    /// Not a family of addresses between nodes.
    #[error("'{0}' is not an address family; use IPv4 or IPv6")]
    BadFamily(String),
    /// An address or range of the other family.
    #[error("'{0}' is not of {1}")]
    NotOfFamily(String, &'static str),
    /// Flannel's ConfigMap without its configuration.
    #[error("is missing; it holds Flannel's network and backend")]
    NoNetConf,
    /// Broken YAML within a field.
    #[error("is not YAML that is understood: {0}")]
    BadYaml(String),
    /// Broken JSON.
    #[error("is not JSON that is understood: {0}")]
    BadJson(String),
    /// A VXLAN network identifier out of range.
    #[error("{0} is not a VXLAN network identifier; use 1 to 16777215")]
    BadVni(i64),
    /// A UDP port out of range.
    #[error("{0} is not a UDP port; use 1 to 65535")]
    BadUdpPort(i64),
    /// A backend of Flannel that is not known here.
    #[error("'{0}' is not a backend that Fairway knows; use vxlan, host-gw, udp or ipip")]
    BadBackend(String),
    /// Not an Ethernet address.
    #[error("'{0}' is not an Ethernet address; write it as 02:00:5e:00:53:01")]
    BadMac(String),
    /// Not a way to choose a backend.
    #[error("'{0}' is not a way to choose backends; use random or maglev")]
    BadBalancer(String),
    /// See the message.
    #[error("'{0}' is not a way to forward; use nat or dsr")]
    BadForwarding(String),
    /// Not a mode of a load balancer's address.
    #[error("'{0}' is not a mode of a load balancer's address; use VIP or Proxy")]
    BadIpMode(String),
    /// Not a type of Service.
    #[error("'{0}' is not a type of Service; use ClusterIP, NodePort, LoadBalancer or ExternalName")]
    BadServiceType(String),
    /// A second cluster address of one family.
    #[error("{0} is a second address of one family; give at most one IPv4 and one IPv6 address")]
    SecondClusterIp(Ip),
    /// An address that cannot be a service's.
    #[error(
        "{0} cannot be an address of a service; use one that is neither loopback, link-local nor multicast"
    )]
    UnusableIp(Ip),
    /// A health check port that is a node port too.
    #[error("{0} is a nodePort of this service too; give the health check a port of its own")]
    RepeatedHealthPort(u16),
    /// An unknown session affinity.
    #[error("'{0}' is not a session affinity; use None or ClientIP")]
    BadAffinity(String),
}

pub(crate) type Checked<T> = Result<T, FieldError>;

pub(crate) fn fail<T>(field: impl Into<String>, problem: Problem) -> Checked<T> {
    Err(FieldError { field: field.into(), problem })
}

pub(crate) fn name_of(meta: &ObjectMeta) -> Checked<String> {
    match &meta.name {
        Some(name) if !name.is_empty() => Ok(name.clone()),
        _ => fail("metadata.name", Problem::NoName),
    }
}

/// As kubectl does, an object without a namespace goes to `default`.
pub(crate) fn namespace_of(meta: &ObjectMeta) -> String {
    meta.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned())
}

pub(crate) fn ip(field: impl Into<String>, text: &str) -> Checked<Ip> {
    match text.parse::<IpAddr>() {
        Ok(addr) => Ok(addr.into()),
        Err(_) => fail(field, Problem::BadIp(text.to_owned())),
    }
}

pub(crate) fn port(field: impl Into<String>, number: i32) -> Checked<u16> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => fail(field, Problem::BadPort(number)),
    }
}

pub(crate) fn protocol(field: impl Into<String>, name: Option<&str>) -> Checked<u8> {
    match name {
        None | Some("TCP") => Ok(6),
        Some("UDP") => Ok(17),
        Some("SCTP") => Ok(132),
        Some(other) => fail(field, Problem::BadProtocol(other.to_owned())),
    }
}

/// Joins the plural field with the older singular one, which Kubernetes keeps equal to its first entry.
pub(crate) fn plural<'a>(
    many: Option<&'a Vec<String>>,
    field: &str,
    one: Option<&'a String>,
) -> Vec<(String, &'a str)> {
    match many {
        Some(list) if !list.is_empty() => {
            list.iter().enumerate().map(|(i, v)| (format!("{field}s[{i}]"), v.as_str())).collect()
        }
        _ => one.iter().map(|v| (field.to_owned(), v.as_str())).collect(),
    }
}

/// Checks a Node: it needs a pod range and an InternalIP.
pub fn node(node: &v1::Node) -> Checked<Object> {
    let name = name_of(&node.metadata)?;
    let spec = node.spec.as_ref();
    let texts = plural(
        spec.and_then(|s| s.pod_cidrs.as_ref()),
        "spec.podCIDR",
        spec.and_then(|s| s.pod_cidr.as_ref()),
    );
    let mut pod_cidrs = Vec::new();
    for (field, text) in texts {
        let prefix: Prefix = match text.parse() {
            Ok(prefix) if text.contains('/') => prefix,
            _ => return fail(field, Problem::BadCidr(text.to_owned())),
        };
        if prefix.len() > if prefix.addr().is_v4() { 30 } else { 126 } {
            return fail(field, Problem::SmallCidr(text.to_owned()));
        }
        pod_cidrs.push(prefix);
    }
    if pod_cidrs.is_empty() {
        return fail("spec.podCIDR", Problem::NoPodCidr);
    }
    let mut internal_ips = Vec::new();
    let addresses = node.status.as_ref().and_then(|s| s.addresses.as_ref());
    for (i, address) in addresses.into_iter().flatten().enumerate() {
        if address.type_ == "InternalIP" {
            internal_ips.push(ip(format!("status.addresses[{i}].address"), &address.address)?);
        }
    }
    if internal_ips.is_empty() {
        return fail("status.addresses", Problem::NoInternalIp);
    }
    let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get("topology.kubernetes.io/zone"));
    let zone = zone.cloned().unwrap_or_default();
    let hints = crate::pools::node_hints(&node.metadata)?;
    Ok(Object::Node(Node { name, pod_cidrs, internal_ips, zone, hints }))
}

/// Checks a Namespace.
pub fn namespace(namespace: &v1::Namespace) -> Checked<Object> {
    Ok(Object::Namespace(name_of(&namespace.metadata)?))
}

/// Checks a Pod; it may lack an address or a node still.
pub fn pod(pod: &v1::Pod) -> Checked<Object> {
    let name = name_of(&pod.metadata)?;
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let mut ips = Vec::new();
    let many: Vec<_> =
        status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|p| p.ip.clone()).collect();
    for (i, text) in many.iter().enumerate() {
        ips.push(ip(format!("status.podIPs[{i}].ip"), text)?);
    }
    if let (true, Some(text)) = (ips.is_empty(), status.and_then(|s| s.pod_ip.as_ref())) {
        ips.push(ip("status.podIP", text)?);
    }
    Ok(Object::Pod(Pod {
        namespace: namespace_of(&pod.metadata),
        name,
        node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        ips,
        host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
        finished: matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")),
    }))
}

/// Checks an EndpointSlice.
pub fn endpoint_slice(slice: &discovery::EndpointSlice) -> Checked<Object> {
    let name = name_of(&slice.metadata)?;
    let namespace = namespace_of(&slice.metadata);
    let labels = slice.metadata.labels.as_ref();
    let service =
        labels.and_then(|l| l.get("kubernetes.io/service-name")).filter(|_| !is_left_to_others(labels));
    let service = service.cloned().unwrap_or_default();
    let is_v4 = slice.address_type == "IPv4";
    let mut out = EndpointSlice { namespace, name, service, is_v4, ports: Vec::new(), endpoints: Vec::new() };
    match slice.address_type.as_str() {
        "IPv4" | "IPv6" => {}
        // Domain names are no backends of a cluster address.
        "FQDN" => return Ok(Object::EndpointSlice(out)),
        other => return fail("addressType", Problem::BadAddressType(other.to_owned())),
    }
    for (i, p) in slice.ports.iter().flatten().enumerate() {
        let proto = protocol(format!("ports[{i}].protocol"), p.protocol.as_deref())?;
        if let Some(number) = p.port {
            let port = port(format!("ports[{i}].port"), number)?;
            out.ports.push(SlicePort { name: p.name.clone().unwrap_or_default(), port, proto });
        }
    }
    for (i, endpoint) in slice.endpoints.iter().flatten().enumerate() {
        for (j, text) in endpoint.addresses.iter().enumerate() {
            let field = format!("endpoints[{i}].addresses[{j}]");
            let addr = ip(field.as_str(), text)?;
            if addr.is_v4() != is_v4 {
                let expected = if is_v4 { "IPv4" } else { "IPv6" };
                return fail(field, Problem::WrongFamily { ip: addr, expected });
            }
            if j == 0 {
                out.endpoints.push(slice_endpoint(addr, endpoint));
            }
        }
    }
    Ok(Object::EndpointSlice(out))
}

fn slice_endpoint(ip: Ip, endpoint: &discovery::Endpoint) -> SliceEndpoint {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let hints = endpoint.hints.clone().unwrap_or_default();
    SliceEndpoint {
        ip,
        ready: conditions.ready != Some(false),
        serving: conditions.serving != Some(false),
        terminating: conditions.terminating == Some(true),
        node: endpoint.node_name.clone().unwrap_or_default().into(),
        for_nodes: hints.for_nodes.into_iter().flatten().map(|node| node.name.into()).collect(),
        for_zones: hints.for_zones.into_iter().flatten().map(|zone| zone.name.into()).collect(),
    }
}
