//! The API's answers, read from the tables themselves and from the index.

use super::types;
use crate::core::Core;
use crate::fallback::engine_runs;
use crate::manifests::proto_name;
use fairway_tables::stats::{Counter, ProcessState, Stage, StatsReader, StatsSnapshot};
use fairway_tables::{
    BackendSet, DropReason, Group, Ip, NeighbourKey, NextHop, NextHopKind, Path, PortId, PortKind, Prefix,
    Service,
};
use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::time::Instant;

impl Core {
    /// `GET /status`.
    pub fn status(&self) -> types::Status {
        let publisher = self.publisher();
        let uplink = self.index().uplink().and_then(|(i, _)| self.index().facts().links.get(&i));
        let last_change = publisher.last_change().map(|last| types::LastChange {
            ago_s: Instant::now().duration_since(last.at).as_secs_f64(),
            took_us: last.took.as_micros() as u64,
            entries: last.entries,
        });
        let mut left_out: BTreeMap<&str, u64> = BTreeMap::new();
        for error in publisher.refused().values() {
            *left_out.entry(error.table()).or_default() += 1;
        }
        let usage = publisher.usage().into_iter().map(|u| types::TableUsage {
            table: u.table.to_owned(),
            used: u.used,
            capacity: u.capacity,
            retired: u.retired,
            can_grow: publisher.can_grow(u.table),
            left_out: left_out.get(u.table).copied().unwrap_or_default(),
            left_out_total: publisher.refused_total(u.table),
        });
        types::Status {
            node: self.options().node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started().elapsed().as_secs(),
            generation: publisher.view().generation(),
            last_change,
            pod_mtu: uplink.map_or(0, |_| self.index().pod_mtu()),
            uplink: uplink.map(|link| types::Uplink {
                ifname: link.name.clone(),
                ifindex: link.ifindex,
                mtu: link.mtu,
                mac: link.mac.to_string(),
            }),
            dataplane: dataplane(&self.options().run_dir).0,
            traffic: self.traffic_report(),
            manifests: types::Manifests {
                folder: self.options().manifests.display().to_string(),
                files: self.folder().file_count(),
                ignored: self.folder().ignored(),
                errors: self.folder().errors().iter().map(ToString::to_string).collect(),
            },
            objects: self.index().object_counts().into_iter().map(|(k, n)| (k.to_owned(), n)).collect(),
            pending: self
                .index()
                .pending()
                .into_iter()
                .map(|p| types::Pending { what: p.what, reason: p.reason })
                .collect(),
            errors: self.errors(),
            warnings: publisher.warnings(),
            tables: usage.collect(),
        }
    }

    /// Whether the engine forwards packets.
    pub fn dataplane_is_alive(&self) -> bool {
        dataplane(&self.options().run_dir).0.alive
    }

    fn traffic_report(&self) -> types::Traffic {
        let mut traffic = self.traffic();
        // What was seen last may be a third of a second old.
        traffic.observe(engine_runs(&self.options().run_dir), Instant::now());
        let mut report = traffic.report(self.options().kernel_fallback);
        if report.carried_by == "kernel" {
            report.not_carried = self.not_carried().iter().map(ToString::to_string).collect();
        }
        report
    }

    /// `GET /routes`.
    pub fn routes(&self) -> Vec<types::Route> {
        // One row per next hop.
        let paths = |(prefix, group): (Prefix, Group)| {
            let weight = |path: &Path| group.only().is_none().then_some(path.weight);
            group.paths().iter().map(|path| (prefix, path.next_hop, weight(path))).collect::<Vec<_>>()
        };
        let mut routes: Vec<_> = self.publisher().view().routes().flat_map(paths).collect();
        routes.sort();
        let present = |ip: Ip| (ip != Ip::UNSPECIFIED).then(|| ip.to_string());
        let one = |(prefix, hop, weight): (Prefix, NextHop, Option<u32>)| types::Route {
            prefix: prefix.to_string(),
            kind: match hop.kind() {
                Some(NextHopKind::Local) => "local",
                Some(NextHopKind::Tunnel | NextHopKind::Ipip | NextHopKind::UdpTunnel) => "tunnel",
                Some(NextHopKind::Gateway) => "gateway",
                Some(NextHopKind::Host) => "host",
                Some(NextHopKind::Blackhole) => "blackhole",
                Some(NextHopKind::Unreachable) => "unreachable",
                None => "invalid",
            }
            .to_owned(),
            encapsulation: match hop.kind() {
                Some(NextHopKind::Tunnel) => Some("vxlan".to_owned()),
                Some(NextHopKind::Ipip) => Some("ipip".to_owned()),
                Some(NextHopKind::UdpTunnel) => Some("udp".to_owned()),
                _ => None,
            },
            next_hop: present(hop.addr),
            weight,
            node: self.index().node_behind(&prefix).map(ToOwned::to_owned),
        };
        routes.into_iter().map(one).collect()
    }

    /// `GET /services`.
    pub fn services(&self) -> Vec<types::Service> {
        let mut services: Vec<_> =
            self.publisher().view().services().filter(|(key, _)| key.is_port()).collect();
        services.sort_by_key(|(key, _)| *key);
        let one = |(key, view): (fairway_tables::ServiceKey, fairway_tables::ServiceView<'_>)| {
            let (namespace, name, port_name) = self.index().service_named(&key).unwrap_or_default();
            let has = |flag| view.service().flags & flag != 0;
            let listed = |set: BackendSet<'_>| {
                set.iter().map(|b| types::Backend { ip: b.ip.to_string(), port: b.port }).collect()
            };
            types::Service {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                port_name: port_name.to_owned(),
                ip: key.ip.to_string(),
                port: key.port,
                protocol: proto_name(key.proto),
                id: view.service().id,
                affinity_timeout_s: view.service().affinity_timeout_s,
                external: has(Service::EXTERNAL),
                masquerade: has(Service::MASQUERADE),
                balancer: if has(Service::MAGLEV) { "maglev" } else { "random" }.to_owned(),
                forwarding: if has(Service::DSR) { "dsr" } else { "nat" }.to_owned(),
                source_ranges: view.source_ranges().map(|range| range.to_string()).collect(),
                backends: listed(view.cluster()),
                local_backends: (has(Service::LOCAL) || has(Service::DSR)).then(|| listed(view.local())),
            }
        };
        services.into_iter().map(one).collect()
    }

    /// `GET /endpoints`.
    pub fn endpoints(&self) -> Vec<types::Endpoint> {
        let view = self.publisher().view();
        let mut endpoints: Vec<_> = view.endpoints().collect();
        endpoints.sort_by_key(|(ip, _)| *ip);
        let one = |(ip, endpoint): (Ip, fairway_tables::Endpoint)| {
            let ifname = self.ifname(endpoint.port);
            let (namespace, pod) = self.index().pod_behind(&ifname).unwrap_or_default();
            types::Endpoint {
                ip: ip.to_string(),
                mac: endpoint.mac.to_string(),
                port: endpoint.port.0,
                namespace: namespace.to_owned(),
                pod: pod.to_owned(),
                ifname,
            }
        };
        endpoints.into_iter().map(one).collect()
    }

    /// `GET /neighbours`.
    pub fn neighbours(&self) -> Vec<types::Neighbour> {
        let mut neighbours: Vec<_> = self.publisher().view().neighbours().collect();
        neighbours.sort_by_key(|(key, _)| *key);
        let one = |(key, neighbour): (NeighbourKey, fairway_tables::Neighbour)| types::Neighbour {
            ip: key.ip.to_string(),
            mac: neighbour.mac.to_string(),
            port: key.port.0,
            nodes: self.index().nodes_through(key.ip).map(ToOwned::to_owned).collect(),
        };
        neighbours.into_iter().map(one).collect()
    }

    /// `GET /tunnels`.
    pub fn tunnels(&self) -> Vec<types::Tunnel> {
        let view = self.publisher().view();
        let mut tunnels: Vec<_> = view.tunnels().collect();
        tunnels.sort_by_key(|(remote, _)| *remote);
        let one = |(remote, tunnel): (Ip, fairway_tables::Tunnel)| types::Tunnel {
            node: self.index().node_at(remote).unwrap_or_default().to_owned(),
            remote: remote.to_string(),
            local: tunnel.local.to_string(),
            next_hop: tunnel.next_hop.to_string(),
            next_hop_mac: view.neighbour(tunnel.next_hop, tunnel.port).map(|n| n.mac.to_string()),
            vni: tunnel.vni,
            udp_port: tunnel.udp_port,
            port: tunnel.port.0,
            remote_mac: tunnel.remote_mac.to_string(),
            local_mac: tunnel.local_mac.to_string(),
        };
        tunnels.into_iter().map(one).collect()
    }

    /// `GET /ports`.
    pub fn ports(&self) -> Vec<types::Port> {
        let mut ports: Vec<_> = self.publisher().view().ports().collect();
        ports.sort_by_key(|(id, _)| *id);
        let one = |(id, port): (PortId, fairway_tables::Port)| types::Port {
            id: id.0,
            ifname: port.ifname().to_owned(),
            kind: match port.kind() {
                Some(PortKind::Uplink) => "uplink",
                Some(PortKind::Pod) => "pod",
                Some(PortKind::Host) => "host",
                None => "invalid",
            }
            .to_owned(),
            mtu: port.mtu,
            mac: port.mac.to_string(),
            pod: self.index().pod_behind(port.ifname()).map(|(ns, name)| format!("{ns}/{name}")),
        };
        ports.into_iter().map(one).collect()
    }

    /// `GET /counters`.
    pub fn counters(&self) -> types::Counters {
        let (dataplane, snapshot) = dataplane(&self.options().run_dir);
        let Some(snapshot) = snapshot else {
            return types::Counters { dataplane, ..types::Counters::default() };
        };
        let drops = DropReason::ALL.iter().map(|r| (r.label().to_owned(), snapshot.drops(*r)));
        let stages = Stage::ALL.iter().map(|stage| {
            let s = snapshot.stage(*stage);
            let mean_ns = s.sum_ns.checked_div(s.count).unwrap_or(0);
            let (p50_ns, p99_ns, max_ns) = (s.p50_ns, s.p99_ns, s.max_ns);
            (stage.label().to_owned(), types::Stage { count: s.count, mean_ns, p50_ns, p99_ns, max_ns })
        });
        let mut ids: Vec<PortId> = self.publisher().view().ports().map(|(id, _)| id).collect();
        ids.sort();
        let port = |id: PortId| {
            let p = snapshot.port(id);
            types::PortCounters {
                id: id.0,
                ifname: self.ifname(id),
                rx_packets: p.rx_packets,
                rx_bytes: p.rx_bytes,
                tx_packets: p.tx_packets,
                tx_bytes: p.tx_bytes,
                drops: p.drops,
                kernel_rx_dropped: p.kernel_rx_dropped,
                kernel_fill_empty: p.kernel_fill_empty,
            }
        };
        types::Counters {
            counters: Counter::ALL.iter().map(|c| (c.label().to_owned(), snapshot.counter(*c))).collect(),
            drops: drops.filter(|(_, count)| *count > 0).collect(),
            stages: stages.collect(),
            ports: ids.into_iter().map(port).collect(),
            dataplane,
        }
    }

    fn ifname(&self, id: PortId) -> String {
        self.publisher().view().port(id).map(|p| p.ifname().to_owned()).unwrap_or_default()
    }
}

fn dataplane(run_dir: &FilePath) -> (types::Dataplane, Option<StatsSnapshot>) {
    let snapshot = match StatsReader::open(run_dir) {
        Ok(reader) => reader.snapshot(),
        Err(error) => {
            let error = Some(error.to_string());
            return (
                types::Dataplane { error, state: "unknown".into(), ..types::Dataplane::default() },
                None,
            );
        }
    };
    let state = match snapshot.state {
        ProcessState::Unknown => "unknown",
        ProcessState::Starting => "starting",
        ProcessState::Running => "running",
        ProcessState::Stopped => "stopped",
    };
    let dataplane = types::Dataplane {
        alive: snapshot.alive,
        state: state.to_owned(),
        pid: snapshot.pid,
        workers: snapshot.workers.len(),
        conntrack_used: snapshot.conntrack_used,
        conntrack_capacity: snapshot.conntrack_capacity,
        error: None,
    };
    (dataplane, Some(snapshot))
}
