//! From a Kubernetes Service to [`crate::object::Service`]: every field that kube-proxy obeys, checked as the API server
//! would.

use crate::convert::{Checked, Problem, fail, ip, name_of, namespace_of, plural, port, protocol};
use crate::object::{Object, Service, ServicePort};
use fairway_tables::{Ip, Prefix};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;

/// Annotation that says how backends are chosen: `random` (the default) or `maglev`.
pub const BALANCER: &str = "fairway.io/load-balancer";
/// Annotation that says how packets get to backends on other nodes: `nat` (the default) or `dsr`.
pub const FORWARDING: &str = "fairway.io/forwarding";
/// Labels of Services and EndpointSlices that the cluster's own proxy leaves alone.
const LEFT_TO_OTHERS: [&str; 2] =
    ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// Whether labels say that an object is not for this proxy, as kube-proxy reads them.
pub(crate) fn is_left_to_others(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels.is_some_and(|labels| LEFT_TO_OTHERS.iter().any(|label| labels.contains_key(*label)))
}

/// Checks a Service. Headless and ExternalName services, and those left to another proxy, produce nothing.
pub fn service(service: &v1::Service) -> Checked<Object> {
    let mut out = Service {
        namespace: namespace_of(&service.metadata),
        name: name_of(&service.metadata)?,
        ..Service::default()
    };
    let empty = v1::ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&empty);
    let kind = service_type(spec)?;
    let texts = plural(spec.cluster_ips.as_ref(), "spec.clusterIP", spec.cluster_ip.as_ref());
    let is_headless = texts.iter().any(|(_, text)| *text == "None");
    out.ports = service_ports(spec)?;
    if kind == Type::ExternalName || is_headless || is_left_to_others(service.metadata.labels.as_ref()) {
        return Ok(Object::Service(out));
    }
    if out.ports.is_empty() {
        return fail("spec.ports", Problem::NoPorts);
    }
    out.cluster_ips = cluster_ips(&texts)?;
    out.internal_local = is_local("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref())?;
    out.external_ips = external_ips(spec)?;
    let policy = is_local("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref())?;
    // The API server refuses the policy elsewhere; kube-proxy does not read it there.
    out.external_local = policy && (kind != Type::ClusterIp || !out.external_ips.is_empty());
    out.load_balancer_ips = load_balancer_ips(service)?;
    out.source_ranges = source_ranges(spec)?;
    if kind == Type::LoadBalancer && policy {
        out.health_check_node_port = health_check_node_port(spec, &out.ports)?;
    }
    out.affinity_timeout_s = affinity(spec)?;
    out.maglev = annotation(&service.metadata, BALANCER, ["random", "maglev"], Problem::BadBalancer)?;
    out.dsr = annotation(&service.metadata, FORWARDING, ["nat", "dsr"], Problem::BadForwarding)?;
    Ok(Object::Service(out))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

fn service_type(spec: &v1::ServiceSpec) -> Checked<Type> {
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => Ok(Type::ClusterIp),
        Some("NodePort") => Ok(Type::NodePort),
        Some("LoadBalancer") => Ok(Type::LoadBalancer),
        Some("ExternalName") => Ok(Type::ExternalName),
        Some(other) => fail("spec.type", Problem::BadServiceType(other.to_owned())),
    }
}

/// At most one address of each family, as the API has it.
fn cluster_ips(texts: &[(String, &str)]) -> Checked<Vec<Ip>> {
    let mut out: Vec<Ip> = Vec::new();
    for (field, text) in texts.iter().filter(|(_, text)| !text.is_empty()) {
        let addr = ip(field.as_str(), text)?;
        if out.iter().any(|other| other.is_v4() == addr.is_v4()) {
            return fail(field.as_str(), Problem::SecondClusterIp(addr));
        }
        out.push(addr);
    }
    if out.is_empty() { fail("spec.clusterIP", Problem::NoClusterIp) } else { Ok(out) }
}

/// An address at which a service is reached from outside.
fn reachable_ip(field: String, text: &str) -> Checked<Ip> {
    let addr = ip(field.as_str(), text)?;
    let usable = match std::net::IpAddr::from(addr) {
        std::net::IpAddr::V4(a) => {
            !(a.is_loopback()
                || a.is_multicast()
                || a.is_unspecified()
                || a.is_link_local()
                || a.is_broadcast())
        }
        std::net::IpAddr::V6(a) => {
            !(a.is_loopback() || a.is_multicast() || a.is_unspecified() || a.is_unicast_link_local())
        }
    };
    if usable { Ok(addr) } else { fail(field, Problem::UnusableIp(addr)) }
}

fn external_ips(spec: &v1::ServiceSpec) -> Checked<Vec<Ip>> {
    let list = spec.external_ips.iter().flatten().enumerate();
    list.map(|(i, text)| reachable_ip(format!("spec.externalIPs[{i}]"), text)).collect()
}

/// The addresses to which packets come as clients sent them. An address of mode Proxy is left to the load balancer, which
/// sends packets to the node's own address or a pod's.
fn load_balancer_ips(service: &v1::Service) -> Checked<Vec<Ip>> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut out = Vec::new();
    for (i, entry) in status.and_then(|status| status.ingress.as_ref()).into_iter().flatten().enumerate() {
        let field = |name| format!("status.loadBalancer.ingress[{i}].{name}");
        let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        let addr = reachable_ip(field("ip"), text)?;
        match entry.ip_mode.as_deref() {
            None | Some("VIP") => out.push(addr),
            Some("Proxy") => {}
            Some(other) => return fail(field("ipMode"), Problem::BadIpMode(other.to_owned())),
        }
    }
    Ok(out)
}

fn source_ranges(spec: &v1::ServiceSpec) -> Checked<Vec<Prefix>> {
    let mut out = Vec::new();
    for (i, text) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        // The API server lets space around a range pass.
        match text.trim().parse::<Prefix>() {
            Ok(prefix) if text.contains('/') => out.push(prefix),
            _ => {
                let field = format!("spec.loadBalancerSourceRanges[{i}]");
                return fail(field, Problem::BadCidr(text.clone()));
            }
        }
    }
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

fn health_check_node_port(spec: &v1::ServiceSpec, ports: &[ServicePort]) -> Checked<u16> {
    const FIELD: &str = "spec.healthCheckNodePort";
    match spec.health_check_node_port {
        None | Some(0) => Ok(0),
        Some(number) => {
            let number = port(FIELD, number)?;
            if ports.iter().any(|p| p.node_port == number && p.proto == 6) {
                return fail(FIELD, Problem::RepeatedHealthPort(number));
            }
            Ok(number)
        }
    }
}

/// Whether an annotation has the second of the values that it may have, instead of the first, its default.
fn annotation(
    metadata: &ObjectMeta,
    name: &str,
    [default, other]: [&str; 2],
    problem: fn(String) -> Problem,
) -> Checked<bool> {
    match metadata.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str) {
        None => Ok(false),
        Some(text) if text == default || text == other => Ok(text == other),
        Some(text) => fail(format!("metadata.annotations[{name}]"), problem(text.to_owned())),
    }
}

/// Reads a traffic policy; the API's default is Cluster.
fn is_local(field: &str, policy: Option<&str>) -> Checked<bool> {
    match policy {
        None | Some("" | "Cluster") => Ok(false),
        Some("Local") => Ok(true),
        Some(other) => fail(field, Problem::BadTrafficPolicy(other.to_owned())),
    }
}

/// Seconds of session affinity; 0 for none.
fn affinity(spec: &v1::ServiceSpec) -> Checked<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => Ok(0),
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
            match config.and_then(|c| c.timeout_seconds) {
                None => Ok(10_800), // the API's default, three hours
                Some(seconds @ 1..=86_400) => Ok(seconds as u32),
                Some(other) => {
                    let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
                    fail(field, Problem::BadTimeout(other))
                }
            }
        }
        Some(other) => fail("spec.sessionAffinity", Problem::BadAffinity(other.to_owned())),
    }
}

fn service_ports(spec: &v1::ServiceSpec) -> Checked<Vec<ServicePort>> {
    let list = spec.ports.as_deref().unwrap_or_default();
    let mut ports: Vec<ServicePort> = Vec::new();
    for (i, p) in list.iter().enumerate() {
        let name = p.name.clone().unwrap_or_default();
        let number = port(format!("spec.ports[{i}].port"), p.port)?;
        let proto = protocol(format!("spec.ports[{i}].protocol"), p.protocol.as_deref())?;
        let node_port = match p.node_port {
            None | Some(0) => 0,
            Some(number) => port(format!("spec.ports[{i}].nodePort"), number)?,
        };
        if list.len() > 1 && name.is_empty() {
            return fail(format!("spec.ports[{i}].name"), Problem::UnnamedPort);
        }
        let repeats = |o: &ServicePort| {
            let same = o.port == number || (node_port != 0 && o.node_port == node_port);
            o.name == name || (same && o.proto == proto)
        };
        if ports.iter().any(repeats) {
            return fail(format!("spec.ports[{i}]"), Problem::RepeatedPort);
        }
        ports.push(ServicePort { name, port: number, proto, node_port });
    }
    Ok(ports)
}
