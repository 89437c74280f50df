//! What the operator says of pods' packets to the outside: options of the control process, and ip-masq-agent's ConfigMap.

use crate::convert::{Checked, FieldError, Problem, fail, name_of, namespace_of};
use crate::object::Object;
use fairway_tables::{Ip, Prefix};
use k8s_openapi::api::core::v1;
use serde::Deserialize;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Name of ip-masq-agent's ConfigMap, in whatever namespace.
pub const CONFIG: &str = "ip-masq-agent";
/// Its key that holds the configuration.
const KEY: &str = "config";

/// Ports that translated sources are given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnatPorts {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl Default for SnatPorts {
    /// Above the kernel's ephemeral ports.
    fn default() -> SnatPorts {
        SnatPorts { first: 61_000, last: 65_535 }
    }
}

impl SnatPorts {
    /// As a range.
    pub fn range(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

/// A text is not a range of ports.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a range of ports; write it as 61000-65535, from 1024 on")]
pub struct SnatPortsError(String);

impl FromStr for SnatPorts {
    type Err = SnatPortsError;

    fn from_str(text: &str) -> Result<SnatPorts, SnatPortsError> {
        let ends = text.split_once('-').map(|(first, last)| (first.trim().parse(), last.trim().parse()));
        match ends {
            Some((Ok(first), Ok(last))) if first >= 1024 && first <= last => Ok(SnatPorts { first, last }),
            _ => Err(SnatPortsError(text.to_owned())),
        }
    }
}

/// The options about source translation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NatOptions {
    /// `--no-masquerade`: pods' packets leave with the pods' own addresses.
    pub no_masquerade: bool,
    /// `--non-masquerade-cidr`: destinations that see pods' own addresses.
    pub non_masquerade_cidrs: Vec<Prefix>,
    /// `--snat-ports`.
    pub snat_ports: SnatPorts,
}

/// ip-masq-agent's configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MasqueradeConfig {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `nonMasqueradeCIDRs`, and link-local addresses unless `masqLinkLocal` is true.
    pub cidrs: Vec<Prefix>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Agent {
    #[serde(rename = "nonMasqueradeCIDRs", alias = "NonMasqueradeCIDRs")]
    non_masquerade_cidrs: Vec<String>,
    #[serde(rename = "masqLinkLocal", alias = "MasqLinkLocal")]
    masq_link_local: bool,
}

/// Link-local addresses (RFC 3927), which see pods' own addresses where nothing else is said.
pub fn link_local() -> Option<Prefix> {
    Prefix::new(Ip::v4([169, 254, 0, 0]), 16)
}

/// Checks ip-masq-agent's ConfigMap.
pub fn config(config: &v1::ConfigMap) -> Checked<Object> {
    let name = name_of(&config.metadata)?;
    let field = |path: &str| format!("data[{KEY}]{path}");
    let text = config.data.as_ref().and_then(|data| data.get(KEY)).map_or("{}", String::as_str);
    let agent: Option<Agent> = serde_norway::from_str(text)
        .map_err(|error| FieldError { field: field(""), problem: Problem::BadYaml(error.to_string()) })?;
    let agent = agent.unwrap_or_default();
    let mut cidrs = Vec::new();
    for (i, text) in agent.non_masquerade_cidrs.iter().enumerate() {
        match text.parse::<Prefix>() {
            Ok(cidr) if text.contains('/') => cidrs.push(cidr),
            _ => return fail(field(&format!(".nonMasqueradeCIDRs[{i}]")), Problem::BadCidr(text.clone())),
        }
    }
    cidrs.extend(link_local().filter(|_| !agent.masq_link_local));
    Ok(Object::Masquerade(MasqueradeConfig { namespace: namespace_of(&config.metadata), name, cidrs }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let metadata = ObjectMeta { name: Some(CONFIG.into()), ..ObjectMeta::default() };
        let data = Some([(KEY.to_owned(), text.to_owned())].into());
        match config(&v1::ConfigMap { metadata, data, ..v1::ConfigMap::default() }) {
            Ok(Object::Masquerade(config)) => Ok(config.cidrs.iter().map(Prefix::to_string).collect()),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_agents_configuration_is_read_in_yaml_and_json_and_its_mistakes_named() {
        let yaml = "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- fd00::/8\nresyncInterval: 60s\n";
        assert_eq!(read(yaml).unwrap(), ["10.0.0.0/8", "fd00::/8", "169.254.0.0/16"]);
        let json = r#"{"nonMasqueradeCIDRs": ["10.0.0.0/8"], "masqLinkLocal": true}"#;
        assert_eq!(read(json).unwrap(), ["10.0.0.0/8"]);
        assert_eq!(read("").unwrap(), ["169.254.0.0/16"]);
        let error = read("nonMasqueradeCIDRs: [10.0.0.0/8, 10.0.0.1]").unwrap_err();
        assert!(
            error.starts_with("data[config].nonMasqueradeCIDRs[1]: '10.0.0.1' is not an address range"),
            "{error}"
        );
        let error = read("nonMasqueradeCIDRs: many").unwrap_err();
        assert!(error.starts_with("data[config]: "), "{error}");
    }

    #[test]
    fn ranges_of_ports_are_read_or_refused() {
        assert_eq!("61000-65535".parse::<SnatPorts>().unwrap(), SnatPorts::default());
        for bad in ["", "61000", "65535-61000", "80-90", "1024-70000", "a-b"] {
            assert!(bad.parse::<SnatPorts>().unwrap_err().to_string().contains("write it as"), "{bad}");
        }
    }
}
