//! Names of pods and services by their addresses, as control knows them.

use fairway_control::api::client::{ClientError, get_blocking};
use fairway_control::api::types;
use fairway_dataplane::wire::proto;
use fairway_tables::Ip;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

/// Address, port and protocol of a service.
pub(super) type ServiceAddress = (Ip, u16, u8);

#[derive(Default)]
pub(super) struct Names {
    pods: BTreeMap<Ip, String>,
    services: BTreeMap<ServiceAddress, String>,
}

impl Names {
    pub(super) fn ask(run_dir: &Path) -> Result<Names, ClientError> {
        Ok(Names::new(get_blocking(run_dir, "/endpoints")?, get_blocking(run_dir, "/services")?))
    }

    pub(super) fn new(endpoints: Vec<types::Endpoint>, services: Vec<types::Service>) -> Names {
        let pod = |e: types::Endpoint| Some((ip(&e.ip)?, format!("{}/{}", e.namespace, e.pod)));
        let service = |s: types::Service| {
            Some(((ip(&s.ip)?, s.port, protocol(&s.protocol)?), format!("{}/{}", s.namespace, s.name)))
        };
        Names {
            pods: endpoints.into_iter().filter_map(pod).collect(),
            services: services.into_iter().filter_map(service).collect(),
        }
    }

    pub(super) fn pod(&self, ip: Ip) -> Option<&str> {
        self.pods.get(&ip).map(String::as_str)
    }

    pub(super) fn service(&self, address: &ServiceAddress) -> Option<&str> {
        self.services.get(address).map(String::as_str)
    }

    /// Addresses of pods of this name, with or without their namespace.
    pub(super) fn pods_called<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Ip> + 'a {
        self.pods.iter().filter(move |(_, full)| is_called(full, name)).map(|(ip, _)| *ip)
    }

    /// Addresses of services of this name, with or without their namespace.
    pub(super) fn services_called<'a>(&'a self, name: &'a str) -> impl Iterator<Item = ServiceAddress> + 'a {
        self.services.iter().filter(move |(_, full)| is_called(full, name)).map(|(address, _)| *address)
    }
}

fn is_called(full: &str, name: &str) -> bool {
    full == name || full.split_once('/').is_some_and(|(_, short)| short == name)
}

fn ip(text: &str) -> Option<Ip> {
    text.parse::<IpAddr>().ok().map(Ip::from)
}

/// The number of a protocol, given by name or number.
pub(super) fn protocol(text: &str) -> Option<u8> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Some(proto::TCP),
        "udp" => Some(proto::UDP),
        "icmp" => Some(proto::ICMP),
        "sctp" => Some(132),
        number => number.parse().ok(),
    }
}

/// The name of a protocol, or its number.
pub(super) fn protocol_name(protocol: u8) -> String {
    match protocol {
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::ICMP => "icmp".to_owned(),
        132 => "sctp".to_owned(),
        number => number.to_string(),
    }
}
