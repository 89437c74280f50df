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
#[serde(rename_all = "PascalCase")]
struct NetConf {
    #[serde(default)]
    network: String,
    #[serde(default)]
    backend: Backend,
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

/// Checks an IPPool. A disabled one counts too: Calico gives out no new addresses of it, but those given are in use.
pub fn ip_pool(pool: &IpPool) -> Checked<Object> {
    let name = name_of(&pool.metadata)?;
    let spec = &pool.spec;
    let cidr = cidr("spec.cidr", &spec.cidr)?;
    let ipip = when("spec.ipipMode", spec.ipip_mode.as_deref())?;
    let vxlan = when("spec.vxlanMode", spec.vxlan_mode.as_deref())?;
    let (encapsulation, when) = match (ipip, vxlan) {
        (Some(_), Some(_)) => return fail("spec.ipipMode", Problem::TwoEncapsulations),
        (Some(_), None) if !cidr.addr().is_v4() => return fail("spec.ipipMode", Problem::IpipOverIpv6),
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
    let network = cidr(&field(".Network"), &conf.network)?;
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
        cidrs: vec![network],
        encapsulation,
        when,
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
    if let Some((field, text)) = annotation("projectcalico.org/IPv4Address") {
        hints.subnet = Some(address_and_length(&field, text)?);
    }
    if let Some((field, text)) = annotation("projectcalico.org/VXLANTunnelMACAddr") {
        hints.calico_vtep_mac = Some(mac(&field, text)?);
    }
    if let Some((field, text)) = annotation("flannel.alpha.coreos.com/public-ip") {
        match text.parse::<IpAddr>() {
            Ok(ip) => hints.flannel_ip = Some(ip.into()),
            Err(_) => return fail(field, Problem::BadIp(text.to_owned())),
        }
    }
    if let Some((field, text)) = annotation("flannel.alpha.coreos.com/backend-data") {
        // "null" where the backend has nothing to say.
        let data: Option<BackendData> = serde_json::from_str(text).map_err(|error| FieldError {
            field: field.clone(),
            problem: Problem::BadJson(error.to_string()),
        })?;
        if let Some(text) = data.and_then(|data| data.vtep_mac) {
            hints.flannel_vtep_mac = Some(mac(&format!("{field}.VtepMAC"), &text)?);
        }
    }
    Ok(hints)
}

/// An address with the length of the subnet that it is in; without one it is alone in its subnet.
fn address_and_length(field: &str, text: &str) -> Checked<(Ip, Prefix)> {
    let ip = text.split('/').next().and_then(|ip| ip.parse::<IpAddr>().ok());
    match (ip, text.parse::<Prefix>()) {
        (Some(ip), Ok(subnet)) => Ok((ip.into(), subnet)),
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
        for (spec, words) in [
            ("", "spec.cidr: '' is not an address range"),
            ("cidr: 10.244.0.0/16, ipipMode: Sometimes", "spec.ipipMode: 'Sometimes' is not a mode"),
            ("cidr: 10.244.0.0/16, ipipMode: Always, vxlanMode: CrossSubnet", "one of both"),
            ("cidr: 'fd00::/48', ipipMode: Always", "vxlanMode"),
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
        assert!(net_conf("{").unwrap_err().contains("is not JSON"));
        assert!(net_conf("{}").unwrap_err().contains(".Network"));
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
        for (name, text) in [
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
