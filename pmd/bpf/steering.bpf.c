// SPDX-License-Identifier: Apache-2.0
//
// The XDP steering program: it decides which packets Fairway takes and which stay with the kernel.
//
// One program is loaded once and attached to many netdevs. What a netdev is to Fairway (its class) and where
// its sockets are (its run of XSKMAP slots) comes from a map keyed by ifindex, so that a pod is added with one
// map write and one attachment.
//
// Rules that hold on every path:
// - Whatever is not recognised passes to the kernel (XDP_PASS). The program drops nothing.
// - A redirect names XDP_PASS as its fallback, so an empty slot (no engine, or one that just died) hands the
//   packet to the kernel.
// - Headers are read through bounds checks only; packets are never written.
//
// The program is `xdp.frags` on purpose. Without it a driver refuses to attach at MTUs over a page, and veth
// caps the MTU of the pod. With it a packet may come in several buffers: what passes is unharmed, and what is
// redirected to a socket bound without XDP_USE_SG is either copied whole into one chunk or, if it is longer
// than the chunk has room for, dropped by the kernel and counted in the socket's rx_dropped.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "frontend.h"

// Numbers shared with src/steering/mod.rs.
#define MAX_PORTS 1024
#define MAX_SOCKETS 4096
#define MAX_NODE_ADDRESSES 256
#define MAX_TUNNEL_PORTS 16
#define MAX_PROTOCOLS 4
#define MAX_POD_PREFIXES 1024
#define MAX_FRONTENDS 131072
#define MAX_SNAT_ADDRESSES 16

// In the key of fw_protocols.
#define OVER_IPV6 0x100

enum port_class {
	CLASS_UPLINK = 1,
	CLASS_POD = 2,
	CLASS_HOST = 3,
};

// One counter per outcome.
enum outcome {
	OUTCOME_REDIRECTED = 0, // taken by Fairway
	OUTCOME_PASSED = 1,     // not Fairway's: left to the kernel
	OUTCOME_FALLBACK = 2,   // Fairway's, but no socket is registered: left to the kernel
	OUTCOME_UNKNOWN = 3,    // came in on a netdev without a class: left to the kernel
	OUTCOMES = 4,
};

struct port {
	__u32 class;
	__u32 xsk_base; // XSKMAP slot of the netdev's queue 0
	__u32 queues;   // length of its run of slots
};

struct prefix {
	__u32 len; // in bits
	struct address address;
};

// Ports, both ends included, in host order; of ICMP echo its identifiers.
struct port_range {
	__u16 first;
	__u16 last;
};

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_SOCKETS);
	__type(key, __u32);
	__type(value, __u32);
} fw_xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32); // ifindex
	__type(value, struct port);
} fw_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NODE_ADDRESSES);
	__type(key, struct address);
	__type(value, __u32);
} fw_node_addrs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_TUNNEL_PORTS);
	__type(key, __u16); // UDP destination port, in network order
	__type(value, __u32);
} fw_tunnel_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PROTOCOLS);
	__type(key, __u32); // number of an IP protocol that is a tunnel by itself; over IPv6 with the bit OVER_IPV6
	__type(value, __u32);
} fw_protocols SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_POD_PREFIXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} fw_pod_prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_FRONTENDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend);
	__type(value, __u32);
} fw_frontends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SNAT_ADDRESSES);
	__type(key, struct address);       // source of what leaves translated
	__type(value, struct port_range); // with these ports
} fw_snat SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} fw_outcomes SEC(".maps");

static __always_inline void count(__u32 outcome)
{
	__u64 *counter = bpf_map_lookup_elem(&fw_outcomes, &outcome);

	if (counter)
		*counter += 1;
}

static __always_inline int pass(__u32 outcome)
{
	count(outcome);
	return XDP_PASS;
}

// Whether a UDP packet to `daddr` is one of this node's tunnels.
static __always_inline int is_tunnel(const struct address *daddr, void *udp_start, void *data_end)
{
	struct udphdr *udp = udp_start;
	__u16 dport;

	if ((void *)(udp + 1) > data_end)
		return 0;
	dport = udp->dest;
	if (!bpf_map_lookup_elem(&fw_tunnel_ports, &dport))
		return 0;
	return bpf_map_lookup_elem(&fw_node_addrs, daddr) != 0;
}

// Whether packets to `daddr` come to this node's pods without encapsulation.
static __always_inline int is_pod(const struct address *daddr)
{
	struct prefix key = {.len = 128, .address = *daddr};

	return bpf_map_lookup_elem(&fw_pod_prefixes, &key) != 0;
}

// Whether a packet is for a service. TCP, UDP and SCTP all begin with both ports.
static __always_inline int is_service(const struct address *daddr, __u8 protocol, void *l4, void *data_end)
{
	struct frontend key = {.address = *daddr, .protocol = protocol};
	__u16 *ports = l4;

	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP && protocol != IPPROTO_SCTP)
		return 0;
	if ((void *)(ports + 2) > data_end)
		return 0;
	key.port = ports[1];
	return bpf_map_lookup_elem(&fw_frontends, &key) != 0;
}

static __always_inline int is_in(const struct port_range *range, __be16 port)
{
	__u16 number = bpf_ntohs(port);

	return number >= range->first && number <= range->last;
}

// The beginning of TCP, UDP and SCTP.
struct ports {
	__be16 source;
	__be16 dest;
};

// The beginning of ICMP and ICMPv6 (their headers in linux/ need a C library).
struct icmp {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id; // of an echo
	__be16 sequence;
};

// Types of messages. None of the numbers means two things that matter here.
enum icmp_type {
	ECHO_REPLY = 0,
	ECHO_REQUEST = 8,
	ECHO_REPLY6 = 129,
	ECHO_REQUEST6 = 128,
};

// Whether a message is an error: unreachable, time exceeded and parameter problem; of ICMPv6 the lowest four types.
static __always_inline int is_error(__u32 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMPV6)
		return type >= 1 && type <= 4;
	return type == 3 || type == 11 || type == 12;
}

// Whether the packet that an ICMP error quotes left with a port of the range.
static __always_inline int quotes(const struct port_range *range, __u32 protocol, void *l4, void *data_end)
{
	struct ports *ports = l4;
	struct icmp *icmp = l4;

	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		return (void *)(ports + 1) <= data_end && is_in(range, ports->source);
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((void *)(icmp + 1) > data_end)
			return 0;
		return (icmp->type == ECHO_REQUEST || icmp->type == ECHO_REQUEST6) && is_in(range, icmp->id);
	default:
		return 0;
	}
}

// Whether an ICMP error of either family quotes a packet that left with a port of the range.
static __always_inline int is_error_about(const struct port_range *range, __u32 protocol, void *quoted,
					  void *data_end)
{
	struct iphdr *ip = quoted;
	struct ipv6hdr *ip6 = quoted;

	if (protocol == IPPROTO_ICMPV6)
		return (void *)(ip6 + 1) <= data_end && quotes(range, ip6->nexthdr, ip6 + 1, data_end);
	return (void *)(ip + 1) <= data_end && quotes(range, ip->protocol, quoted + ip->ihl * 4, data_end);
}

// Whether a packet to `daddr` answers, or is an error about, one that left with a translated source. There may be no
// such connection: the engine then gives the packet to the kernel.
static __always_inline int is_translated(const struct address *daddr, __u32 protocol, void *l4, void *data_end)
{
	struct port_range *range = bpf_map_lookup_elem(&fw_snat, daddr);
	struct ports *ports = l4;
	struct icmp *icmp = l4;

	if (!range)
		return 0;
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP)
		return (void *)(ports + 1) <= data_end && is_in(range, ports->dest);
	if ((protocol != IPPROTO_ICMP && protocol != IPPROTO_ICMPV6) || (void *)(icmp + 1) > data_end)
		return 0;
	if (icmp->type == ECHO_REPLY || icmp->type == ECHO_REPLY6)
		return is_in(range, icmp->id);
	return is_error(protocol, icmp->type) && is_error_about(range, protocol, icmp + 1, data_end);
}

// Whether a message is an ICMP error about a packet that a service sent from `daddr`.
static __always_inline int is_about_service(const struct address *daddr, __u32 protocol, void *l4, void *data_end)
{
	struct frontend key = {.address = *daddr};
	struct icmp *icmp = l4;
	struct iphdr *ip = (void *)(icmp + 1);
	struct ipv6hdr *ip6 = (void *)(icmp + 1);
	struct ports *ports;

	if ((protocol != IPPROTO_ICMP && protocol != IPPROTO_ICMPV6) || (void *)(icmp + 1) > data_end)
		return 0;
	if (!is_error(protocol, icmp->type))
		return 0;
	if (protocol == IPPROTO_ICMPV6) {
		if ((void *)(ip6 + 1) > data_end)
			return 0;
		key.protocol = ip6->nexthdr;
		ports = (void *)(ip6 + 1);
	} else {
		if ((void *)(ip + 1) > data_end)
			return 0;
		key.protocol = ip->protocol;
		ports = (void *)ip + ip->ihl * 4;
	}
	if ((void *)(ports + 1) > data_end)
		return 0;
	key.port = ports->source;
	return bpf_map_lookup_elem(&fw_frontends, &key) != 0;
}

static __always_inline int uplink_takes_ipv4(void *l3, void *data_end)
{
	struct iphdr *ip = l3;
	struct address daddr = {};
	__u32 header_bytes, protocol;

	if ((void *)(ip + 1) > data_end || ip->version != 4 || ip->ihl < 5)
		return 0;
	daddr.word[2] = bpf_htonl(0xffff);
	daddr.word[3] = ip->daddr;
	if (is_pod(&daddr))
		return 1;
	// Any fragment of a tunnel's or a service's packet, the first too: the rest of its datagram carries no ports, and only
	// a kernel that gets all of it can put it together.
	if (ip->frag_off & bpf_htons(0x3fff))
		return 0;
	protocol = ip->protocol;
	header_bytes = ip->ihl * 4;
	if (protocol == IPPROTO_UDP) {
		if (is_tunnel(&daddr, l3 + header_bytes, data_end))
			return 1;
	} else if (bpf_map_lookup_elem(&fw_protocols, &protocol) && bpf_map_lookup_elem(&fw_node_addrs, &daddr)) {
		return 1;
	}
	if (is_translated(&daddr, protocol, l3 + header_bytes, data_end) ||
	    is_about_service(&daddr, protocol, l3 + header_bytes, data_end))
		return 1;
	return is_service(&daddr, protocol, l3 + header_bytes, data_end);
}

// The protocol of what an IPv6 packet carries that may be a tunnel by itself. Linux's ip6tnl puts a header of destination
// options in between, which says how many times the packet may be encapsulated again (RFC 2473 section 4.1.1).
static __always_inline __u32 carried_protocol(struct ipv6hdr *ip, void *data_end)
{
	struct ipv6_opt_hdr *options = (void *)(ip + 1);

	if (ip->nexthdr != IPPROTO_DSTOPTS || (void *)(options + 1) > data_end)
		return ip->nexthdr;
	return options->nexthdr;
}

static __always_inline int uplink_takes_ipv6(void *l3, void *data_end)
{
	struct ipv6hdr *ip = l3;
	struct address daddr;
	__u32 protocol;

	if ((void *)(ip + 1) > data_end || ip->version != 6)
		return 0;
	__builtin_memcpy(&daddr, &ip->daddr, sizeof(daddr));
	if (is_pod(&daddr))
		return 1;
	protocol = carried_protocol(ip, data_end) | OVER_IPV6;
	if (bpf_map_lookup_elem(&fw_protocols, &protocol) && bpf_map_lookup_elem(&fw_node_addrs, &daddr))
		return 1;
	// Of all else extension headers, the fragment header among them, stay with the kernel.
	if (ip->nexthdr == IPPROTO_UDP && is_tunnel(&daddr, ip + 1, data_end))
		return 1;
	if (is_translated(&daddr, ip->nexthdr, ip + 1, data_end) ||
	    is_about_service(&daddr, ip->nexthdr, ip + 1, data_end))
		return 1;
	return is_service(&daddr, ip->nexthdr, ip + 1, data_end);
}

// What Fairway takes from a NIC: tunnels to this node, replies to what left with the node's address, packets to its pods
// where they come without tunnel, packets to the addresses and ports of services, and errors about what these sent.
static __always_inline int uplink_takes(void *data, void *data_end)
{
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > data_end)
		return 0;
	switch (eth->h_proto) {
	case bpf_htons(ETH_P_IP):
		return uplink_takes_ipv4(eth + 1, data_end);
	case bpf_htons(ETH_P_IPV6):
		return uplink_takes_ipv6(eth + 1, data_end);
	default: // ARP, VLAN-tagged frames, LLDP, ...
		return 0;
	}
}

SEC("xdp.frags")
int fairway_steer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	__u32 ifindex = ctx->ingress_ifindex;
	__u32 queue = ctx->rx_queue_index;
	struct port *port;
	long action;

	port = bpf_map_lookup_elem(&fw_ports, &ifindex);
	if (!port)
		return pass(OUTCOME_UNKNOWN);
	// All that a pod or the host's own veth sends is the engine's business: it alone knows what they may.
	if (port->class == CLASS_UPLINK && !uplink_takes(data, data_end))
		return pass(OUTCOME_PASSED);
	if (queue >= port->queues)
		return pass(OUTCOME_FALLBACK);
	action = bpf_redirect_map(&fw_xsks, port->xsk_base + queue, XDP_PASS);
	count(action == XDP_REDIRECT ? OUTCOME_REDIRECTED : OUTCOME_FALLBACK);
	return action;
}

char _license[] SEC("license") = "Apache-2.0";
