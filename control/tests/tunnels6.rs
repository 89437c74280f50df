//! Over which family packets go between nodes: what follows from addresses, what a pool asks for, and that both ends come to
//! the same.

mod common;

use common::options;
use fairway_control::core::Core;
use fairway_control::index::{Facts, KernelEvent, KernelRoute, Link, Place, Way};
use fairway_control::kernel::Update;
use fairway_control::names::vtep_mac;
use fairway_tables::{Capacities, Ip, Mac, NextHopKind, Settings, Tables};
use std::net::IpAddr;
use std::path::Path;

use NextHopKind::{Gateway, Ipip, Tunnel, UdpTunnel};

fn ip(text: &str) -> Ip {
    text.parse::<IpAddr>().unwrap().into()
}

/// Node `n` at 192.0.2.`n` or fd00:77::`n`, with pods of both families.
fn node(n: u8, addresses: &[&str], annotations: &str) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: n{n}, annotations: {{{annotations}}}}}\nspec: {{podCIDRs: \
         [10.244.{n}.0/24, 'fd00:244:{n}::/64']}}\nstatus:\n  addresses:\n"
    );
    for address in addresses {
        yaml += &format!("  - {{type: InternalIP, address: '{address}{n}'}}\n");
    }
    yaml + "---\n"
}

const V4: &str = "192.0.2.";
const V6: &str = "fd00:77::";

fn pool(name: &str, cidr: &str, modes: &str, annotations: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec: \
         {{cidr: '{cidr}'{modes}}}\n---\n"
    )
}

fn pools(modes: &str, annotations: &str) -> String {
    pool("four", "10.244.0.0/16", modes, annotations) + &pool("six", "fd00:244::/32", modes, annotations)
}

/// Node `me` among others, all on one link.
fn core(me: u8, manifests: &str) -> Core {
    let (writer, _) = Tables::heap(Capacities::default());
    let mut options = options(Path::new(""));
    options.node = format!("n{me}");
    options.uplink = Some("eth0".into());
    let mut core = Core::new(options, writer);
    let mut facts = Facts::default();
    let direct =
        |cidr: &str| KernelEvent::Route(cidr.parse().unwrap(), 0, KernelRoute::direct(2), Place::Last);
    facts.apply(&KernelEvent::Link(Link {
        ifindex: 2,
        name: "eth0".into(),
        mac: Mac([2; 6]),
        mtu: 1500,
        up: true,
    }));
    facts.apply(&direct("192.0.2.0/24"));
    facts.apply(&direct("fd00:77::/64"));
    for n in 1..4 {
        for prefix in [V4, V6] {
            let address = ip(&format!("{prefix}{n}"));
            facts.apply(&match n == me {
                true => KernelEvent::Address(2, address),
                false => KernelEvent::Neighbour(2, address, Some(Mac([2, 0, 0, 0, 0, n]))),
            });
        }
    }
    take(&mut core, manifests);
    core.take(vec![], vec![Update::Listing(facts, vec![])]);
    core
}

fn take(core: &mut Core, manifests: &str) {
    let file = [("all.yaml".to_owned(), Ok(manifests.to_owned()))];
    core.take(vec![Ok(file.into_iter().collect())], vec![]);
    assert_eq!(core.folder().errors(), []);
}

/// Kind and address of the ways to node `n`'s pods of IPv4 and of IPv6.
fn ways(core: &Core, n: u8) -> [(NextHopKind, Ip); 2] {
    [format!("10.244.{n}.5"), format!("fd00:244:{n}::5")].map(|pod| {
        let hop = core.publisher().view().route(ip(&pod)).expect("a route");
        (hop.kind().expect("a kind"), hop.addr)
    })
}

fn pending(core: &Core) -> String {
    let told = core.index().pending().into_iter().filter(|p| !p.what.starts_with("host veth"));
    told.map(|p| format!("{}: {}\n", p.what, p.reason)).collect()
}

#[test]
fn each_range_goes_over_its_own_family_where_both_nodes_have_it_else_over_the_other() {
    let (four, six) = (ip("192.0.2.2"), ip("fd00:77::2"));
    for (mine, others, expected) in [
        (&[V4, V6][..], &[V4, V6][..], [four, six]),
        (&[V4, V6], &[V4], [four, four]),
        (&[V4, V6], &[V6], [six, six]),
        (&[V4], &[V4, V6], [four, four]),
        (&[V6], &[V4, V6], [six, six]),
        (&[V6], &[V6], [six, six]),
        (&[V4], &[V4], [four, four]),
    ] {
        let nodes = node(1, mine, "") + &node(2, others, "");
        for (manifest, kind) in [
            (String::new(), Tunnel),
            (pools(", vxlanMode: Always", ""), Tunnel),
            (pools(", ipipMode: Always", ""), Ipip),
            (pools("", ""), Gateway),
            // Both are in one subnet, of whatever family.
            (pools(", ipipMode: CrossSubnet", ""), Gateway),
        ] {
            let core = core(1, &(nodes.clone() + &manifest));
            assert_eq!(ways(&core, 2), expected.map(|ip| (kind, ip)), "{mine:?} {others:?} {manifest}");
            assert_eq!(pending(&core), "", "{mine:?} {others:?} {manifest}");
            let view = core.publisher().view();
            for ip in [four, six] {
                let is_used = kind != Gateway && expected.contains(&ip);
                assert_eq!(view.tunnel(ip).is_some(), is_used, "{ip} {mine:?} {others:?} {manifest}");
            }
        }
    }
}

#[test]
fn a_pool_may_ask_for_a_family_and_where_a_node_lacks_it_that_is_named() {
    let all = [V4, V6];
    let nodes = node(1, &all, "") + &node(2, &all, "") + &node(3, &[V4], "");
    for (family, two, three) in
        [("IPv4", ip("192.0.2.2"), Some(ip("192.0.2.3"))), ("IPv6", ip("fd00:77::2"), None)]
    {
        let asked = format!("fairway.io/outer-family: {family}");
        let core = core(1, &(nodes.clone() + &pools(", ipipMode: Always", &asked)));
        assert_eq!(ways(&core, 2), [(Ipip, two); 2]);
        match three {
            Some(three) => assert_eq!((ways(&core, 3), pending(&core)), ([(Ipip, three); 2], String::new())),
            None => {
                assert_eq!(ways(&core, 3).map(|(kind, _)| kind), [NextHopKind::Unreachable; 2]);
                let told = pending(&core);
                assert!(
                    told.contains("10.244.3.0/24 of Node n3: IpPool four asks for IPv6 between nodes, and Node n3 has no")
                        && told.contains("fairway.io/outer-family"),
                    "{told}"
                );
            }
        }
    }
    let (writer, _) = Tables::heap(Capacities::default());
    let mut core = Core::new(options(Path::new("")), writer);
    let bad = pool("p", "10.244.0.0/16", "", "fairway.io/outer-family: v6");
    core.take(vec![Ok([("p.yaml".to_owned(), Ok(bad))].into_iter().collect())], vec![]);
    let error = core.folder().errors()[0].to_string();
    assert!(error.contains("'v6' is not an address family; use IPv4 or IPv6"), "{error}");
}

#[test]
fn both_ends_decide_alike_and_know_each_other_by_all_families_that_are_used() {
    let families = [&[V4, V6][..], &[V4], &[V6]];
    let asked = ["", "fairway.io/outer-family: IPv4", "fairway.io/outer-family: IPv6"];
    for (one, two) in families.into_iter().flat_map(|one| families.map(|two| (one, two))) {
        for (upper, lower) in asked.into_iter().flat_map(|upper| asked.map(|lower| (upper, lower))) {
            // Each node's IPv4 range is in a pool of its own.
            let manifests = node(1, one, "")
                + &node(2, two, "")
                + &pool("one", "10.244.1.0/24", ", ipipMode: Always", upper)
                + &pool("two", "10.244.2.0/24", ", vxlanMode: Always", lower);
            let cores = [core(1, &manifests), core(2, &manifests)];
            for (me, other) in [(0usize, 1usize), (1, 0)] {
                let from = &cores[me];
                for (_, addr) in ways(from, other as u8 + 1).into_iter().filter(|(kind, _)| kind.is_tunnel())
                {
                    let tunnel = from.publisher().view().tunnel(addr).expect("a tunnel for each way");
                    assert_eq!(tunnel.local.is_v4(), addr.is_v4());
                    let back = cores[other].publisher().view();
                    let known = back.tunnel(tunnel.local).expect("the other end knows the sender");
                    // By whatever family it answers, the sender is known for the node that has those pods.
                    for (_, way) in ways(&cores[other], me as u8 + 1) {
                        let answers = back.tunnel(way);
                        assert!(answers.is_none_or(|tunnel| tunnel.node == known.node), "{manifests}");
                    }
                    let settings = back.settings();
                    assert!([settings.node_ip, settings.node_ip6].contains(&addr), "{manifests}");
                }
            }
        }
    }
}

#[test]
fn pods_are_told_what_the_largest_header_leaves_and_the_uplink_takes_what_may_come() {
    let both = [V4, V6];
    let (four, six) = (Settings::TAKES_IPIP, Settings::TAKES_IPV6_IN_IPV6);
    let crossed = Settings::TAKES_IPV4_IN_IPV6;
    for (mine, others, manifest, pod_mtu, takes) in [
        (&both[..], &both[..], String::new(), 1430, 0),
        (&[V4], &both, String::new(), 1450, 0),
        (&both, &both, pools(", ipipMode: Always", ""), 1460, four | six),
        (&[V4], &[V4], pools(", ipipMode: Always", ""), 1480, four | Settings::TAKES_IPV6_IN_IPV4),
        (&both, &both, pool("p", "10.244.0.0/16", ", ipipMode: Always", ""), 1430, four),
        // A node that IPv4 does not reach.
        (&both, &[V6], pool("p", "10.244.0.0/16", ", ipipMode: Always", ""), 1430, four | crossed),
        (
            &both,
            &both,
            pools(", ipipMode: Always", "fairway.io/outer-family: IPv4"),
            1480,
            four | Settings::TAKES_IPV6_IN_IPV4,
        ),
        (&both, &both, pools(", ipipMode: Always", "fairway.io/outer-family: IPv6"), 1460, crossed | six),
        (&both, &both, pools("", ""), 1500, Settings::TAKES_DIRECT),
    ] {
        let core = core(1, &(node(1, mine, "") + &node(2, others, "") + &manifest));
        let settings = core.publisher().view().settings();
        assert_eq!((settings.pod_mtu, settings.takes), (pod_mtu, takes), "{mine:?} {others:?} {manifest}");
    }
    // Nothing goes over IPv6: whoever else has tunnels there keeps them.
    let manifests = node(1, &both, "") + &pools(", vxlanMode: Always", "fairway.io/outer-family: IPv4");
    assert_eq!(core(1, &manifests).publisher().view().settings().node_ip6, Ip::UNSPECIFIED);
}

#[test]
fn calicos_and_flannels_annotations_of_ipv6_are_read() {
    let calico = |n: u8| {
        format!(
            "projectcalico.org/IPv6Address: 'fd00:77::{n}/64', projectcalico.org/VXLANTunnelMACAddrV6: \
             '66:00:00:00:06:0{n}', projectcalico.org/VXLANTunnelMACAddr: '66:00:00:00:04:0{n}'"
        )
    };
    let nodes = node(1, &[V4], &calico(1)) + &node(2, &[V4], &calico(2));
    let core_ = core(1, &(nodes + &pools(", vxlanMode: Always", "")));
    let view = core_.publisher().view();
    for (remote, family) in [("192.0.2.2", 4), ("fd00:77::2", 6)] {
        let tunnel = view.tunnel(ip(remote)).expect("a tunnel");
        let macs = (tunnel.local_mac.0[4..].to_vec(), tunnel.remote_mac.0[4..].to_vec());
        assert_eq!(macs, (vec![family, 1], vec![family, 2]), "{remote}");
        assert_eq!((tunnel.vni, tunnel.udp_port), (4096, 4789));
    }
    assert_eq!(view.settings().vtep_mac6, Mac([0x66, 0, 0, 0, 6, 1]));

    let flannel = |n: u8| {
        format!(
            "flannel.alpha.coreos.com/public-ip: 192.0.2.{n}, flannel.alpha.coreos.com/public-ipv6: 'fd00:77::{n}', \
             flannel.alpha.coreos.com/backend-v6-data: '{{\"VNI\":1,\"VtepMAC\":\"66:00:00:00:0f:0{n}\"}}'"
        )
    };
    let config = |backend: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: kube-flannel-cfg, namespace: kube-flannel}}\ndata:\n  \
             net-conf.json: '{{\"Network\": \"10.244.0.0/16\", \"EnableIPv6\": true, \"IPv6Network\": \"fd00:244::/32\", \
             \"Backend\": {{\"Type\": \"{backend}\"}}}}'\n"
        )
    };
    // Its InternalIPs are elsewhere.
    let nodes = node(1, &["198.51.100."], &flannel(1)) + &node(2, &["198.51.100."], &flannel(2));
    let core_ = core(1, &(nodes.clone() + &config("vxlan")));
    assert_eq!(ways(&core_, 2), [(Tunnel, ip("192.0.2.2")), (Tunnel, ip("fd00:77::2"))]);
    let view = core_.publisher().view();
    let tunnel = view.tunnel(ip("fd00:77::2")).expect("a tunnel");
    assert_eq!((tunnel.vni, tunnel.udp_port, tunnel.remote_mac), (1, 8472, Mac([0x66, 0, 0, 0, 0xf, 2])));
    assert_eq!(view.settings().second_vtep_mac6, Mac([0x66, 0, 0, 0, 0xf, 1]));
    let core_ = core(1, &(nodes + &config("udp")));
    assert_eq!(ways(&core_, 2), [(UdpTunnel, ip("192.0.2.2")), (UdpTunnel, ip("fd00:77::2"))]);
}

#[test]
fn a_subnet_is_that_of_the_family() {
    let noted = |n: u8, subnet: &str| format!("projectcalico.org/IPv6Address: 'fd00:77::{n}/{subnet}'");
    // By IPv6 each is alone in its subnet; by IPv4 the kernel reaches the other without a gateway.
    let nodes = node(1, &[V4], &noted(1, "128")) + &node(2, &[V4], &noted(2, "128"));
    let core = core(1, &(nodes + &pools(", vxlanMode: CrossSubnet", "")));
    assert_eq!(ways(&core, 2), [(Gateway, ip("192.0.2.2")), (Tunnel, ip("fd00:77::2"))]);
}

#[test]
fn without_the_engine_the_kernel_has_vxlan_over_both_families_and_what_it_has_not_is_said() {
    let both = [V4, V6];
    let nodes = node(1, &both, "") + &node(2, &both, "");
    let plan = |manifest: &str| core(1, &(nodes.clone() + manifest)).fallback_plan().expect("a plan");
    let ranges = ["10.244.2.0/24", "fd00:244:2::/64"].map(|range| range.parse().unwrap());
    let vxlan = |ifname, node| Way::Vxlan { ifname, node: ip(node), vtep_mac: vtep_mac("n2") };
    let natural = plan("");
    let devices: Vec<_> = natural.vxlans.iter().map(|vxlan| (vxlan.ifname, vxlan.local)).collect();
    assert_eq!(devices, [("fairway.vxlan", ip("192.0.2.1")), ("fairway.vxlan6", ip("fd00:77::1"))]);
    assert_eq!(
        ranges.map(|range| natural.ranges[&range]),
        [vxlan("fairway.vxlan", "192.0.2.2"), vxlan("fairway.vxlan6", "fd00:77::2")]
    );
    let over_ipv6 = plan(&pools(", vxlanMode: Always", "fairway.io/outer-family: IPv6"));
    assert_eq!(ranges.map(|range| over_ipv6.ranges[&range]), [vxlan("fairway.vxlan6", "fd00:77::2"); 2]);
    let ipip = plan(&pools(", ipipMode: Always", ""));
    assert_eq!(ipip.ranges.into_iter().collect::<Vec<_>>(), [(ranges[0], Way::Ipip(ip("192.0.2.2")))]);
    assert_eq!(ipip.not_carried.into_iter().collect::<Vec<_>>(), [ranges[1]]);
    let crossed = plan(&pools("", "fairway.io/outer-family: IPv6"));
    assert_eq!(crossed.ranges.into_iter().collect::<Vec<_>>(), [(ranges[1], Way::Direct(ip("fd00:77::2")))]);
    assert_eq!(crossed.not_carried.into_iter().collect::<Vec<_>>(), [ranges[0]]);
}
