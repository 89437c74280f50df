//! The scenario file: what is sent, how fast, through which tables. docs/pktgen.md lists the fields.

use crate::pktgen::paths::{Entry, PathName};
use crate::pktgen::ranges::{Addresses, Family, Ports};
use crate::pktgen::sessions::Sessions;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Bytes of the frame check sequence, which a size counts and memory does not hold.
pub const FCS_LEN: usize = 4;
/// Largest frame with FCS: an IP packet of a pod's MTU, 1450.
pub const MAX_SIZE: u16 = 1468;
/// Smallest UDP frame with FCS, the smallest of Ethernet.
pub const MIN_UDP_SIZE: u16 = 64;
/// Smallest TCP frame with FCS: headers of 54 bytes and the stamp.
pub const MIN_TCP_SIZE: u16 = 76;
/// What IPv6 headers are longer.
const IPV6_MORE: u16 = 20;
/// Most senders of a scenario.
pub const MAX_SENDERS: u32 = 8;
/// Most flows of a scenario.
pub const MAX_FLOWS: u32 = 1 << 22;

/// Why a scenario is refused.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("scenario {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It is not YAML of the right form.
    #[error("scenario {}: {source}; docs/pktgen.md lists the fields", file.display())]
    Form {
        /// The file.
        file: PathBuf,
        /// Field, line and column, and what was expected.
        source: serde_norway::Error,
    },
    /// A field has a value that makes no sense.
    #[error("scenario {}: {field} is {value}; {instead}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The field, such as `streams[0].flows`.
        field: String,
        /// What it is.
        value: String,
        /// What to write instead.
        instead: String,
    },
}

/// A scenario.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name in reports.
    pub name: String,
    /// Of everything random.
    #[serde(default = "one")]
    pub seed: u64,
    /// What is sent, mixed by weight.
    pub streams: Vec<Stream>,
    /// Pods that send, each by a queue and a thread of its own.
    #[serde(default = "one_u32")]
    pub senders: u32,
    /// Frame sizes.
    #[serde(default)]
    pub frames: Frames,
    /// When packets are due.
    #[serde(default)]
    pub arrival: Arrival,
    /// The device's tables.
    #[serde(default)]
    pub tables: TableSizes,
    /// How long.
    #[serde(default)]
    pub trial: TrialLimits,
    /// TCP-like sessions over the first stream's addresses, instead of its packets.
    #[serde(default)]
    pub sessions: Option<Sessions>,
}

/// Packets that take one path.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Which way.
    pub path: PathName,
    /// Its share of all packets.
    #[serde(default = "one_u32")]
    pub weight: u32,
    /// Address family.
    #[serde(default)]
    pub family: Family,
    /// Transport.
    #[serde(default)]
    pub protocol: Protocol,
    /// Different 5-tuples.
    #[serde(default = "one_u32")]
    pub flows: u32,
    /// Which flow comes next.
    #[serde(default)]
    pub order: Order,
    /// Source addresses instead of the path's.
    pub sources: Option<Addresses>,
    /// Destination addresses instead of the path's.
    pub destinations: Option<Addresses>,
    /// Source ports instead of 1024-65535.
    pub source_ports: Option<Ports>,
    /// Destination ports instead of the path's.
    pub destination_ports: Option<Ports>,
}

/// A stream's transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// UDP.
    #[default]
    Udp,
    /// TCP data segments without a handshake.
    Tcp,
}

/// Which flow comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Any, evenly.
    #[default]
    Random,
    /// One after the other.
    RoundRobin,
}

/// Frame sizes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frames {
    /// One, several in turn by chance, or the IMIX.
    pub size_bytes: Sizes,
}

/// Frame sizes in bytes with FCS.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "size_bytes must be a size such as 64, a list such as [64, 512], or imix")]
pub enum Sizes {
    /// All alike.
    One(u16),
    /// Each as often as the others.
    List(Vec<u16>),
    /// A known mixture.
    Mix(Mix),
}

/// A known mixture of sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mix {
    /// 7 × 64, 4 × 594, 1 × [`MAX_SIZE`].
    Imix,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes::One(MIN_UDP_SIZE)
    }
}

impl Sizes {
    /// The sizes, each as often as its weight asks.
    pub fn deck(&self) -> Vec<u16> {
        match self {
            Sizes::One(size) => vec![*size],
            Sizes::List(sizes) => sizes.clone(),
            Sizes::Mix(Mix::Imix) => [[64; 7].as_slice(), &[594; 4], &[MAX_SIZE]].concat(),
        }
    }
}

/// When packets are due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "WrittenArrival")]
pub enum Arrival {
    /// Always: as fast as the driver takes them.
    #[default]
    LineRate,
    /// At equal distances.
    Paced {
        /// Packets a second.
        rate_pps: f64,
    },
    /// Several at once, the bursts at equal distances.
    Bursts {
        /// Packets a second on average.
        rate_pps: f64,
        /// Packets in a burst.
        burst: u32,
    },
    /// At exponentially distributed distances.
    Poisson {
        /// Packets a second on average.
        rate_pps: f64,
    },
}

/// `arrival` as a file writes it: which fields there must be depends on the kind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenArrival {
    kind: ArrivalKind,
    rate_pps: Option<f64>,
    burst: Option<u32>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ArrivalKind {
    LineRate,
    Paced,
    Bursts,
    Poisson,
}

impl TryFrom<WrittenArrival> for Arrival {
    type Error = &'static str;

    fn try_from(written: WrittenArrival) -> Result<Arrival, &'static str> {
        match (written.kind, written.rate_pps, written.burst) {
            (ArrivalKind::LineRate, None, None) => Ok(Arrival::LineRate),
            (ArrivalKind::Paced, Some(rate_pps), None) => Ok(Arrival::Paced { rate_pps }),
            (ArrivalKind::Poisson, Some(rate_pps), None) => Ok(Arrival::Poisson { rate_pps }),
            (ArrivalKind::Bursts, Some(rate_pps), Some(burst)) => Ok(Arrival::Bursts { rate_pps, burst }),
            (ArrivalKind::LineRate, ..) => Err("arrival.kind line-rate takes neither rate_pps nor burst"),
            (_, None, _) => Err("arrival.rate_pps is missing; this kind needs packets a second"),
            (ArrivalKind::Bursts, ..) => Err("arrival.burst is missing; bursts need packets per burst"),
            _ => Err("arrival.burst is for kind bursts only; remove it"),
        }
    }
}

impl Arrival {
    /// What each of so many senders has to send.
    pub fn shared_by(self, senders: u32) -> Arrival {
        let share = |rate_pps: f64| rate_pps / f64::from(senders.max(1));
        match self {
            Arrival::LineRate => Arrival::LineRate,
            Arrival::Paced { rate_pps } => Arrival::Paced { rate_pps: share(rate_pps) },
            Arrival::Bursts { rate_pps, burst } => Arrival::Bursts { rate_pps: share(rate_pps), burst },
            Arrival::Poisson { rate_pps } => Arrival::Poisson { rate_pps: share(rate_pps) },
        }
    }

    /// The average rate in packets a second; `None` for line rate.
    pub fn rate_pps(&self) -> Option<f64> {
        match *self {
            Arrival::LineRate => None,
            Arrival::Paced { rate_pps }
            | Arrival::Bursts { rate_pps, .. }
            | Arrival::Poisson { rate_pps } => Some(rate_pps),
        }
    }
}

/// What the device's tables hold besides what the paths need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TableSizes {
    /// Services.
    pub services: u32,
    /// Backends of each.
    pub backends: u32,
    /// Further routes.
    pub routes: u32,
    /// Changes of a Service while packets flow, a second.
    pub changes_per_s: u32,
    /// Changes of a route while packets flow, a second.
    pub route_changes_per_s: u32,
}

impl Default for TableSizes {
    fn default() -> TableSizes {
        TableSizes { services: 1, backends: 1, routes: 0, changes_per_s: 0, route_changes_per_s: 0 }
    }
}

/// How long a trial lasts: whichever comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrialLimits {
    /// Time during which packets are sent.
    pub duration_ms: u32,
    /// Packets sent.
    pub max_packets: u32,
}

impl Default for TrialLimits {
    fn default() -> TrialLimits {
        TrialLimits { duration_ms: 1000, max_packets: 100_000_000 }
    }
}

fn one() -> u64 {
    1
}

fn one_u32() -> u32 {
    1
}

struct Checks<'a> {
    file: &'a Path,
}

impl Checks<'_> {
    fn wrong(&self, field: &str, value: impl ToString, instead: impl Into<String>) -> ScenarioError {
        ScenarioError::Value {
            file: self.file.to_owned(),
            field: field.to_owned(),
            value: value.to_string(),
            instead: instead.into(),
        }
    }

    fn between(&self, field: &str, value: u32, least: u32, most: u32) -> Result<(), ScenarioError> {
        if (least..=most).contains(&value) {
            return Ok(());
        }
        Err(self.wrong(field, value, format!("write a number from {least} to {most}")))
    }
}

impl Scenario {
    /// One UDP stream of so many flows by one path, 64 bytes, at line rate.
    pub fn plain(path: PathName, flows: u32) -> Scenario {
        let stream = Stream {
            path,
            weight: 1,
            family: Family::Ipv4,
            protocol: Protocol::Udp,
            flows,
            order: Order::Random,
            sources: None,
            destinations: None,
            source_ports: None,
            destination_ports: None,
        };
        Scenario {
            name: path.name().to_owned(),
            seed: 1,
            streams: vec![stream],
            senders: 1,
            frames: Frames::default(),
            arrival: Arrival::LineRate,
            tables: TableSizes::default(),
            trial: TrialLimits::default(),
            sessions: None,
        }
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ScenarioError`] names file, field and what to write instead.
    pub fn read(file: &Path) -> Result<Scenario, ScenarioError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ScenarioError::Read { file: file.to_owned(), source })?;
        Scenario::parse(file, &text)
    }

    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// As [`Scenario::read`].
    pub fn parse(file: &Path, text: &str) -> Result<Scenario, ScenarioError> {
        let scenario: Scenario = serde_norway::from_str(text)
            .map_err(|source| ScenarioError::Form { file: file.to_owned(), source })?;
        scenario.check(file)?;
        Ok(scenario)
    }

    /// Checks values that were set by hand, or on a command line; `file` is for messages.
    ///
    /// # Errors
    /// [`ScenarioError::Value`].
    pub fn check(&self, file: &Path) -> Result<(), ScenarioError> {
        let checks = Checks { file };
        if self.streams.is_empty() {
            return Err(checks.wrong("streams", "empty", "give at least one stream with its path"));
        }
        for (n, stream) in self.streams.iter().enumerate() {
            checks.between(&format!("streams[{n}].flows"), stream.flows, 1, MAX_FLOWS)?;
            checks.between(&format!("streams[{n}].weight"), stream.weight, 1, 1000)?;
            self.check_families(&checks, n)?;
        }
        let flows: u64 = self.streams.iter().map(|stream| u64::from(stream.flows)).sum();
        if flows > u64::from(MAX_FLOWS) {
            let instead = format!("keep the sum over all streams within {MAX_FLOWS}");
            return Err(checks.wrong("streams[].flows", flows, instead));
        }
        self.check_sizes(&checks)?;
        if let Some(rate) = self.arrival.rate_pps()
            && !(1.0..=1e9).contains(&rate)
        {
            return Err(checks.wrong("arrival.rate_pps", rate, "write a rate from 1 to 1000000000"));
        }
        if let Arrival::Bursts { burst, .. } = self.arrival {
            checks.between("arrival.burst", burst, 1, 1_000_000)?;
        }
        checks.between("tables.services", self.tables.services, 1, 10_000)?;
        checks.between("tables.backends", self.tables.backends, 1, 100)?;
        checks.between("tables.routes", self.tables.routes, 0, 1_000_000)?;
        checks.between("tables.changes_per_s", self.tables.changes_per_s, 0, 100_000)?;
        checks.between("tables.route_changes_per_s", self.tables.route_changes_per_s, 0, 100_000)?;
        self.check_sessions(&checks)?;
        self.check_senders(&checks)?;
        checks.between("trial.duration_ms", self.trial.duration_ms, 10, 600_000)?;
        checks.between("trial.max_packets", self.trial.max_packets, 1, u32::MAX)
    }

    fn check_sessions(&self, checks: &Checks<'_>) -> Result<(), ScenarioError> {
        let Some(sessions) = &self.sessions else { return Ok(()) };
        checks.between("sessions.concurrent", sessions.concurrent, 1, 100_000)?;
        checks.between("sessions.timeout_ms", sessions.timeout_ms, 10, 60_000)?;
        let first = &self.streams[0];
        let between_pods = first.path.ends_in_pod() && first.path.entry() == Entry::Pod;
        if self.streams.len() != 1 || !between_pods || first.family != Family::Ipv4 {
            let value =
                format!("{} streams, the first by {} in {:?}", self.streams.len(), first.path, first.family);
            let instead =
                "sessions take one IPv4 stream by same-node or clusterip, where the responder is a pod";
            return Err(checks.wrong("streams", value, instead));
        }
        Ok(())
    }

    fn check_senders(&self, checks: &Checks<'_>) -> Result<(), ScenarioError> {
        checks.between("senders", self.senders, 1, MAX_SENDERS)?;
        let alone = self.sessions.is_some()
            || self.streams.iter().any(|stream| {
                stream.path.entry() == Entry::Wire || stream.sources.is_some() || stream.flows < self.senders
            });
        if self.senders > 1 && alone {
            let instead = "write 1: several senders are for packets from pods' own addresses, at least a flow for each, \
                           and not for sessions";
            return Err(checks.wrong("senders", self.senders, instead));
        }
        Ok(())
    }

    fn check_families(&self, checks: &Checks<'_>, n: usize) -> Result<(), ScenarioError> {
        let stream = &self.streams[n];
        if stream.path == PathName::Ipip && stream.family == Family::Ipv6 {
            let instead = "IPIP carries IPv4 only; choose vxlan or direct";
            return Err(checks.wrong(&format!("streams[{n}].family"), "ipv6", instead));
        }
        for (name, range) in [("sources", stream.sources), ("destinations", stream.destinations)] {
            if let Some(other) = range.map(|range| range.family()).filter(|family| *family != stream.family) {
                let instead = format!("the stream's family is {:?}; write both in the same", stream.family);
                return Err(checks.wrong(&format!("streams[{n}].{name}"), format!("{other:?}"), instead));
            }
        }
        Ok(())
    }

    fn check_sizes(&self, checks: &Checks<'_>) -> Result<(), ScenarioError> {
        let least_of = |stream: &Stream| {
            let least = if stream.protocol == Protocol::Tcp { MIN_TCP_SIZE } else { MIN_UDP_SIZE };
            if stream.family == Family::Ipv6 { least + IPV6_MORE } else { least }
        };
        let least = self.streams.iter().map(least_of).max().unwrap_or(MIN_UDP_SIZE);
        let why = if least == MIN_UDP_SIZE {
            String::new()
        } else {
            format!(" (headers and stamp need {least}: TCP {MIN_TCP_SIZE}, IPv6 {IPV6_MORE} more)")
        };
        let deck = self.frames.size_bytes.deck();
        if deck.is_empty() || deck.len() > 4096 {
            let instead = "write one size, a list of up to 4096, or imix";
            return Err(checks.wrong("frames.size_bytes", format!("{} sizes", deck.len()), instead));
        }
        match deck.iter().find(|size| !(least..=MAX_SIZE).contains(size)) {
            Some(size) => {
                let instead = format!("sizes count the FCS and go from {least} to {MAX_SIZE}{why}");
                Err(checks.wrong("frames.size_bytes", size, instead))
            }
            None => Ok(()),
        }
    }
}
