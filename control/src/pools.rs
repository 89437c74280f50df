//! From the manifests of other network plugins to pools: Calico's `IPPool`, Flannel's ConfigMap, and what both say of
//! nodes in annotations.

use crate::convert::{Checked, FieldError, Problem, fail, name_of, namespace_of};
use crate::encapsulation::{Encapsulation, Pool, When};
use crate::object::{Kind, NodeHints, Object};
use fairway_tables::{Ip, Mac, Prefix};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use std::net::IpAddr;

/// Name of the ConfigMap that Flannel's manifests make, in whatever namespace.
pub const FLANNEL_CONFIG: &str = "kube-flannel-cfg";
const NET_CONF: &str = "net-conf.json";
/// Largest VXLAN network identifier (RFC 7348 section 5).
const MAX_VNI: i64 = (1 << 24) - 1;

/// Calico's `IPPool` (projectcalico.org/v3, crd.projectcalico.org/v1), as far as it is used.
#[derive(Deserialize)]
pub struct IpPool {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: IpPoolSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct IpPoolSpec {
    cidr: String,
    ipip_mode: Option<String>,
    vxlan_mode: Option<String>,
    nat_outgoing: bool,
    disabled: bool,
    node_selector: Option<String>,
}

/// Flannel's `net-conf.json`, as far as it is used.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetConf {
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: bool,
    network: String,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPv6Network")]
    ipv6_network: String,
    backend: Backend,
}

impl Default for NetConf {
    /// As Flannel has it.
    fn default() -> NetConf {
        NetConf {
            enable_ipv4: true,
            network: String::new(),
            enable_ipv6: false,
            ipv6_network: String::new(),
            backend: Backend::default(),
        }
    }
}

impl NetConf {
    /// The networks of the families that are enabled.
    fn networks(&self, field: impl Fn(&str) -> String) -> Checked<Vec<Prefix>> {
        let mut out = Vec::new();
        let v4 = self.enable_ipv4.then_some((".Network", &self.network, true));
        let v6 = self.enable_ipv6.then_some((".IPv6Network", &self.ipv6_network, false));
        for (name, text, is_v4) in v4.into_iter().chain(v6) {
            let network = cidr(&field(name), text)?;
            if network.addr().is_v4() != is_v4 {
                let family = if is_v4 { "IPv4" } else { "IPv6" };
                return fail(field(name), Problem::NotOfFamily(text.clone(), family));
            }
            out.push(network);
        }
        Ok(out)
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Backend {
    r#type: Option<String>,
    #[serde(rename = "VNI")]
    vni: Option<i64>,
    port: Option<i64>,
    direct_routing: bool,
}

/// Flannel's `flannel.alpha.coreos.com/backend-data`.
#[derive(Deserialize)]
struct BackendData {
    #[serde(rename = "VtepMAC")]
    vtep_mac: Option<String>,
}

fn cidr(field: &str, text: &str) -> Checked<Prefix> {
    match text.parse() {
        Ok(prefix) if text.contains('/') => Ok(prefix),
        _ => fail(field, Problem::BadCidr(text.to_owned())),
    }
}

fn when(field: &str, mode: Option<&str>) -> Checked<Option<When>> {
    match mode {
        None | Some("" | "Never") => Ok(None),
        Some("Always") => Ok(Some(When::Always)),
        Some("CrossSubnet") => Ok(Some(When::CrossSubnet)),
        Some(other) => fail(field, Problem::BadPoolMode(other.to_owned())),
    }
}

/// Annotation of a pool, or of Flannel's ConfigMap: the address family between nodes.
pub const OUTER_FAMILY: &str = "fairway.io/outer-family";

fn outer_family(meta: &ObjectMeta) -> Checked<Option<bool>> {
    match meta.annotations.as_ref().and_then(|all| all.get(OUTER_FAMILY)).map(String::as_str) {
        None => Ok(None),
        Some("IPv4") => Ok(Some(true)),
        Some("IPv6") => Ok(Some(false)),
        Some(other) => {
            fail(format!("metadata.annotations[{OUTER_FAMILY}]"), Problem::BadFamily(other.to_owned()))
        }
    }
}

/// Checks an IPPool. A disabled one counts too: Calico gives out no new addresses of it, but those given are in use.
pub fn ip_pool(pool: &IpPool) -> Checked<Object> {
    let name = name_of(&pool.metadata)?;
    let spec = &pool.spec;
    let cidr = cidr("spec.cidr", &spec.cidr)?;
    let ipip = when("spec.ipipMode", spec.ipip_mode.as_deref())?;
    let vxlan = when("spec.vxlanMode", spec.vxlan_mode.as_deref())?;
    let (encapsulation, when) = match (ipip, vxlan) {
        (Some(_), Some(_)) => return fail("spec.ipipMode", Problem::TwoEncapsulations),
        (Some(when), None) => (Encapsulation::Ipip, when),
        (None, Some(when)) => (Encapsulation::Vxlan, when),
        (None, None) => (Encapsulation::Direct, When::Always),
    };
    let selects_all = |text: &&String| !text.is_empty() && text.as_str() != "all()";
    Ok(Object::Pool(Pool {
        kind: Kind::IpPool,
        namespace: String::new(),
        name,
        cidrs: vec![cidr],
        encapsulation,
        when,
        outer_is_v4: outer_family(&pool.metadata)?,
        nat_outgoing: spec.nat_outgoing,
        disabled: spec.disabled,
        node_selector: spec.node_selector.as_ref().filter(selects_all).cloned(),
    }))
}

/// Checks Flannel's ConfigMap.
pub fn flannel(config: &v1::ConfigMap) -> Checked<Object> {
    let name = name_of(&config.metadata)?;
    let field = |path: &str| format!("data[{NET_CONF}]{path}");
    let Some(text) = config.data.as_ref().and_then(|data| data.get(NET_CONF)) else {
        return fail(field(""), Problem::NoNetConf);
    };
    let conf: NetConf = serde_json::from_str(text)
        .map_err(|error| FieldError { field: field(""), problem: Problem::BadJson(error.to_string()) })?;
    let cidrs = conf.networks(field)?;
    let backend = &conf.backend;
    let port = |default: u16| match backend.port {
        None | Some(0) => Ok(default),
        Some(number) => match u16::try_from(number) {
            Ok(port) => Ok(port),
            Err(_) => fail(field(".Backend.Port"), Problem::BadUdpPort(number)),
        },
    };
    let encapsulation = match backend.r#type.as_deref() {
        // Flannel's own default.
        None | Some("" | "udp") => Encapsulation::Udp { udp_port: port(8285)? },
        Some("vxlan") => match backend.vni {
            Some(vni) if !(1..=MAX_VNI).contains(&vni) => {
                return fail(field(".Backend.VNI"), Problem::BadVni(vni));
            }
            vni => Encapsulation::FlannelVxlan { vni: vni.unwrap_or(1) as u32, udp_port: port(8472)? },
        },
        Some("host-gw") => Encapsulation::Direct,
        Some("ipip") => Encapsulation::Ipip,
        Some(other) => return fail(field(".Backend.Type"), Problem::BadBackend(other.to_owned())),
    };
    // Only these two backends know DirectRouting.
    let knows = matches!(encapsulation, Encapsulation::FlannelVxlan { .. } | Encapsulation::Ipip);
    let when = if backend.direct_routing && knows { When::CrossSubnet } else { When::Always };
    Ok(Object::Pool(Pool {
        kind: Kind::FlannelConfig,
        namespace: namespace_of(&config.metadata),
        name,
        cidrs,
        encapsulation,
        when,
        outer_is_v4: outer_family(&config.metadata)?,
        // Its manifests start flanneld with --ip-masq.
        nat_outgoing: true,
        disabled: false,
        node_selector: None,
    }))
}

/// What Calico and Flannel noted of a node in its annotations.
pub fn node_hints(meta: &ObjectMeta) -> Checked<NodeHints> {
    let annotation = |name: &str| {
        let text = meta.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str);
        text.filter(|text| !text.is_empty()).map(|text| (format!("metadata.annotations[{name}]"), text))
    };
    let mut hints = NodeHints::default();
    for (name, is_v4, place) in [
        ("projectcalico.org/IPv4Address", true, &mut hints.subnet),
        ("projectcalico.org/IPv6Address", false, &mut hints.subnet6),
    ] {
        if let Some((field, text)) = annotation(name) {
            *place = Some(address_and_length(&field, text, is_v4)?);
        }
    }
    for (name, place) in [
        ("projectcalico.org/VXLANTunnelMACAddr", &mut hints.calico_vtep_mac),
        ("projectcalico.org/VXLANTunnelMACAddrV6", &mut hints.calico_vtep_mac6),
    ] {
        if let Some((field, text)) = annotation(name) {
            *place = Some(mac(&field, text)?);
        }
    }
    for (name, is_v4, place) in [
        ("flannel.alpha.coreos.com/public-ip", true, &mut hints.flannel_ip),
        ("flannel.alpha.coreos.com/public-ipv6", false, &mut hints.flannel_ip6),
    ] {
        if let Some((field, text)) = annotation(name) {
            *place = Some(address(&field, text, is_v4)?);
        }
    }
    for (name, place) in [
        ("flannel.alpha.coreos.com/backend-data", &mut hints.flannel_vtep_mac),
        ("flannel.alpha.coreos.com/backend-v6-data", &mut hints.flannel_vtep_mac6),
    ] {
        let Some((field, text)) = annotation(name) else { continue };
        // "null" where the backend has nothing to say.
        let data: Option<BackendData> = serde_json::from_str(text).map_err(|error| FieldError {
            field: field.clone(),
            problem: Problem::BadJson(error.to_string()),
        })?;
        if let Some(text) = data.and_then(|data| data.vtep_mac) {
            *place = Some(mac(&format!("{field}.VtepMAC"), &text)?);
        }
    }
    Ok(hints)
}

/// An address of a family.
fn address(field: &str, text: &str, is_v4: bool) -> Checked<Ip> {
    let Ok(ip) = text.parse::<IpAddr>() else { return fail(field, Problem::BadIp(text.to_owned())) };
    if ip.is_ipv4() != is_v4 {
        let family = if is_v4 { "IPv4" } else { "IPv6" };
        return fail(field, Problem::NotOfFamily(text.to_owned(), family));
    }
    Ok(ip.into())
}

/// An address of a family with the length of the subnet that it is in; without one it is alone in its subnet.
fn address_and_length(field: &str, text: &str, is_v4: bool) -> Checked<(Ip, Prefix)> {
    let ip = text.split('/').next().filter(|ip| ip.parse::<IpAddr>().is_ok());
    match (ip, text.parse::<Prefix>()) {
        (Some(ip), Ok(subnet)) => Ok((address(field, ip, is_v4)?, subnet)),
        _ => fail(field, Problem::BadCidr(text.to_owned())),
    }
}

fn mac(field: &str, text: &str) -> Checked<Mac> {
    text.parse().or_else(|_| fail(field, Problem::BadMac(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(spec: &str) -> Result<Pool, String> {
        let yaml = format!("metadata: {{name: p}}\nspec: {{{spec}}}");
        match ip_pool(&serde_norway::from_str(&yaml).unwrap()) {
            Ok(Object::Pool(pool)) => Ok(pool),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    fn net_conf(json: &str) -> Result<(Encapsulation, When), String> {
        let data = [(NET_CONF.to_owned(), json.to_owned())].into();
        let metadata = ObjectMeta { name: Some(FLANNEL_CONFIG.into()), ..ObjectMeta::default() };
        match flannel(&v1::ConfigMap { metadata, data: Some(data), ..v1::ConfigMap::default() }) {
            Ok(Object::Pool(pool)) => Ok((pool.encapsulation, pool.when)),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn calicos_modes_are_read_and_its_mistakes_named() {
        let read = |spec: &str| pool(spec).map(|pool| (pool.encapsulation, pool.when));
        let base = "cidr: 10.244.0.0/16";
        for (more, expected) in [
            ("", (Encapsulation::Direct, When::Always)),
            (", ipipMode: Never, vxlanMode: Never", (Encapsulation::Direct, When::Always)),
            (", ipipMode: Always", (Encapsulation::Ipip, When::Always)),
            (", vxlanMode: CrossSubnet, ipipMode: Never", (Encapsulation::Vxlan, When::CrossSubnet)),
        ] {
            assert_eq!(read(&format!("{base}{more}")), Ok(expected), "{more}");
        }
        assert_eq!(read("cidr: 'fd00::/48', ipipMode: Always"), Ok((Encapsulation::Ipip, When::Always)));
        for (spec, words) in [
            ("", "spec.cidr: '' is not an address range"),
            ("cidr: 10.244.0.0/16, ipipMode: Sometimes", "spec.ipipMode: 'Sometimes' is not a mode"),
            ("cidr: 10.244.0.0/16, ipipMode: Always, vxlanMode: CrossSubnet", "one of both"),
        ] {
            let error = read(spec).unwrap_err();
            assert!(error.contains(words), "{spec}: {error}");
        }
        let pool = pool("cidr: 10.244.0.0/16, natOutgoing: true, nodeSelector: zone == 'a'").unwrap();
        assert_eq!((pool.nat_outgoing, pool.node_selector.as_deref()), (true, Some("zone == 'a'")));
    }

    #[test]
    fn flannels_backends_are_read_with_its_defaults_and_its_mistakes_named() {
        let network = r#""Network": "10.244.0.0/16""#;
        let read = |backend: &str| net_conf(&format!(r#"{{{network}, "Backend": {{{backend}}}}}"#));
        let vxlan = |vni, udp_port| Encapsulation::FlannelVxlan { vni, udp_port };
        for (backend, expected) in [
            (r#""Type": "vxlan""#, (vxlan(1, 8472), When::Always)),
            (r#""Type": "vxlan", "VNI": 4096, "Port": 4789"#, (vxlan(4096, 4789), When::Always)),
            (r#""Type": "vxlan", "DirectRouting": true"#, (vxlan(1, 8472), When::CrossSubnet)),
            (r#""Type": "host-gw""#, (Encapsulation::Direct, When::Always)),
            (r#""Type": "ipip", "DirectRouting": true"#, (Encapsulation::Ipip, When::CrossSubnet)),
            (r#""Type": "udp""#, (Encapsulation::Udp { udp_port: 8285 }, When::Always)),
            ("", (Encapsulation::Udp { udp_port: 8285 }, When::Always)),
        ] {
            assert_eq!(read(backend), Ok(expected), "{backend}");
        }
        for (backend, words) in [
            (
                r#""Type": "vxlan", "VNI": 16777216"#,
                "Backend.VNI: 16777216 is not a VXLAN network identifier",
            ),
            (r#""Type": "vxlan", "VNI": 0"#, "use 1 to 16777215"),
            (r#""Type": "vxlan", "Port": 70000"#, "Backend.Port: 70000"),
            (r#""Type": "wireguard""#, "'wireguard' is not a backend"),
        ] {
            let error = read(backend).unwrap_err();
            assert!(error.contains(words), "{backend}: {error}");
        }
        let six = |more: &str| net_conf(&format!(r#"{{{more}, "Backend": {{"Type": "host-gw"}}}}"#));
        for (conf, words) in [
            (r#""Network": "10.244.0.0/16", "EnableIPv6": true"#, ".IPv6Network: '' is not an address range"),
            (r#""EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "10.0.0.0/8""#, "is not of IPv6"),
            (r#""Network": "fd00::/48""#, "'fd00::/48' is not of IPv4"),
        ] {
            let error = six(conf).unwrap_err();
            assert!(error.contains(words), "{conf}: {error}");
        }
        assert!(net_conf("{").unwrap_err().contains("is not JSON"));
        assert!(net_conf("{}").unwrap_err().contains(".Network"));
    }

    #[test]
    fn flannels_networks_are_those_of_the_families_that_it_enables() {
        let data = |json: &str| Some([(NET_CONF.to_owned(), json.to_owned())].into());
        let metadata = ObjectMeta { name: Some(FLANNEL_CONFIG.into()), ..ObjectMeta::default() };
        let cidrs = |conf: &str| match flannel(&v1::ConfigMap {
            metadata: metadata.clone(),
            data: data(conf),
            ..v1::ConfigMap::default()
        }) {
            Ok(Object::Pool(pool)) => pool.cidrs.iter().map(Prefix::to_string).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let (v4, v6) = (r#""Network": "10.244.0.0/16""#, r#""IPv6Network": "fd00:244::/48""#);
        assert_eq!(cidrs(&format!("{{{v4}, {v6}}}")), ["10.244.0.0/16"]);
        let enabled = format!(r#"{{{v4}, {v6}, "EnableIPv6": true}}"#);
        assert_eq!(cidrs(&enabled), ["10.244.0.0/16", "fd00:244::/48"]);
        let only = format!(r#"{{{v6}, "EnableIPv4": false, "EnableIPv6": true}}"#);
        assert_eq!(cidrs(&only), ["fd00:244::/48"]);
    }

    #[test]
    fn a_pool_may_ask_for_the_family_between_nodes() {
        let read = |family: &str| {
            let yaml = format!(
                "metadata: {{name: p, annotations: {{'{OUTER_FAMILY}': '{family}'}}}}\nspec: {{cidr: 10.244.0.0/16}}"
            );
            ip_pool(&serde_norway::from_str(&yaml).unwrap())
        };
        for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
            let Ok(Object::Pool(pool)) = read(family) else { panic!("{family}") };
            assert_eq!(pool.outer_is_v4, Some(is_v4));
        }
        for family in ["ipv6", "6", ""] {
            let error = read(family).unwrap_err().to_string();
            assert!(error.contains(OUTER_FAMILY) && error.contains("use IPv4 or IPv6"), "{error}");
        }
    }

    #[test]
    fn annotations_tell_a_nodes_subnet_and_vteps() {
        let meta = |name: &str, text: &str| ObjectMeta {
            annotations: Some([(name.to_owned(), text.to_owned())].into()),
            ..ObjectMeta::default()
        };
        let hints = node_hints(&meta("projectcalico.org/IPv4Address", "192.0.2.7/24")).unwrap();
        assert_eq!(hints.subnet, Some((Ip::v4([192, 0, 2, 7]), "192.0.2.0/24".parse().unwrap())));
        let data = r#"{"VNI":1,"VtepMAC":"a6:1b:2c:3d:4e:5f"}"#;
        let hints = node_hints(&meta("flannel.alpha.coreos.com/backend-data", data)).unwrap();
        assert_eq!(hints.flannel_vtep_mac, Some(Mac([0xa6, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f])));
        let hints = node_hints(&meta("flannel.alpha.coreos.com/backend-data", "null")).unwrap();
        assert_eq!(hints, NodeHints::default());
        let hints = node_hints(&meta("projectcalico.org/IPv6Address", "fd00:77::7/64")).unwrap();
        let ip: IpAddr = "fd00:77::7".parse().unwrap();
        assert_eq!(hints.subnet6, Some((ip.into(), "fd00:77::/64".parse().unwrap())));
        let hints = node_hints(&meta("flannel.alpha.coreos.com/backend-v6-data", data)).unwrap();
        assert_eq!(hints.flannel_vtep_mac6, Some(Mac([0xa6, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f])));
        let hints = node_hints(&meta("flannel.alpha.coreos.com/public-ipv6", "fd00:77::7")).unwrap();
        assert_eq!(hints.flannel_ip6, Some(ip.into()));
        for (name, text) in [
            ("projectcalico.org/IPv6Address", "192.0.2.7/24"),
            ("projectcalico.org/IPv4Address", "fd00:77::7/64"),
            ("projectcalico.org/VXLANTunnelMACAddrV6", "66:aa"),
            ("flannel.alpha.coreos.com/public-ipv6", "192.0.2.7"),
            ("flannel.alpha.coreos.com/backend-v6-data", "{"),
            ("projectcalico.org/IPv4Address", "192.0.2.7/40"),
            ("projectcalico.org/VXLANTunnelMACAddr", "66:aa"),
            ("flannel.alpha.coreos.com/public-ip", "here"),
            ("flannel.alpha.coreos.com/backend-data", r#"{"VtepMAC": "no"}"#),
        ] {
            let error = node_hints(&meta(name, text)).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
