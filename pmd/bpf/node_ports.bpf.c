// SPDX-License-Identifier: Apache-2.0
//
// Node ports for the node's own processes. What they send to an address of the node itself never leaves the kernel, so the
// engine could not see it. These programs, attached to the root cgroup, turn a socket of the node's network namespace that
// connects or sends to a node port on such an address to an address that the kernel routes to the engine; the process sees
// the address that it asked for in all that comes back.
//
// Sockets of other namespaces (pods) are left alone: their packets pass the engine anyway. Nothing is ever refused.

#include <linux/bpf.h>
#include <linux/in.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "frontend.h"

// Numbers shared with src/node_ports.rs.
#define MAX_NODE_PORTS 65536
#define MAX_SOCKETS 65536

struct config {
	__u64 netns_cookie;
	struct address target; // where IPv4 goes
	struct address target6;
};

// A socket and the port that it sent to.
struct peer {
	__u64 socket;
	__u32 port;
	__u32 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NODE_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend);
	__type(value, __u32);
} fw_node_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} fw_config SEC(".maps");

// The address that the process asked for.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_SOCKETS);
	__type(key, struct peer);
	__type(value, struct address);
} fw_asked SEC(".maps");

static __always_inline int same(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

static __always_inline void read_address(struct bpf_sock_addr *ctx, int is_v6, struct address *out)
{
	if (is_v6) {
		out->word[0] = ctx->user_ip6[0];
		out->word[1] = ctx->user_ip6[1];
		out->word[2] = ctx->user_ip6[2];
		out->word[3] = ctx->user_ip6[3];
	} else {
		out->word[0] = 0;
		out->word[1] = 0;
		out->word[2] = bpf_htonl(0xffff);
		out->word[3] = ctx->user_ip4;
	}
}

static __always_inline void write_address(struct bpf_sock_addr *ctx, int is_v6, const struct address *to)
{
	if (is_v6) {
		ctx->user_ip6[0] = to->word[0];
		ctx->user_ip6[1] = to->word[1];
		ctx->user_ip6[2] = to->word[2];
		ctx->user_ip6[3] = to->word[3];
	} else {
		ctx->user_ip4 = to->word[3];
	}
}

static __always_inline struct config *config_for(struct bpf_sock_addr *ctx)
{
	__u32 zero = 0;
	struct config *config = bpf_map_lookup_elem(&fw_config, &zero);

	if (!config || bpf_get_netns_cookie(ctx) != config->netns_cookie)
		return 0;
	return config;
}

// On the way out: from the node port to the engine.
static __always_inline int turn(struct bpf_sock_addr *ctx, int is_v6)
{
	struct config *config = config_for(ctx);
	struct frontend key = {};
	struct peer peer = {};

	if (!config)
		return 1;
	read_address(ctx, is_v6, &key.address);
	key.port = ctx->user_port;
	key.protocol = ctx->protocol;
	if (!bpf_map_lookup_elem(&fw_node_ports, &key))
		return 1;
	peer.socket = bpf_get_socket_cookie(ctx);
	peer.port = ctx->user_port;
	if (bpf_map_update_elem(&fw_asked, &peer, &key.address, BPF_ANY))
		return 1;
	if (is_v6 && !(key.address.word[0] == 0 && key.address.word[1] == 0 &&
		       key.address.word[2] == bpf_htonl(0xffff)))
		write_address(ctx, is_v6, &config->target6);
	else
		write_address(ctx, is_v6, &config->target);
	return 1;
}

// On the way back: what the process asked for instead of where it was turned to.
static __always_inline int turn_back(struct bpf_sock_addr *ctx, int is_v6)
{
	struct config *config = config_for(ctx);
	struct address from, *asked;
	struct peer peer = {};

	if (!config)
		return 1;
	read_address(ctx, is_v6, &from);
	if (!same(&from, &config->target) && !same(&from, &config->target6))
		return 1;
	peer.socket = bpf_get_socket_cookie(ctx);
	peer.port = ctx->user_port;
	asked = bpf_map_lookup_elem(&fw_asked, &peer);
	if (asked)
		write_address(ctx, is_v6, asked);
	return 1;
}

SEC("cgroup/connect4")
int fw_connect4(struct bpf_sock_addr *ctx)
{
	return turn(ctx, 0);
}

SEC("cgroup/connect6")
int fw_connect6(struct bpf_sock_addr *ctx)
{
	return turn(ctx, 1);
}

SEC("cgroup/sendmsg4")
int fw_sendmsg4(struct bpf_sock_addr *ctx)
{
	return turn(ctx, 0);
}

SEC("cgroup/sendmsg6")
int fw_sendmsg6(struct bpf_sock_addr *ctx)
{
	return turn(ctx, 1);
}

SEC("cgroup/recvmsg4")
int fw_recvmsg4(struct bpf_sock_addr *ctx)
{
	return turn_back(ctx, 0);
}

SEC("cgroup/recvmsg6")
int fw_recvmsg6(struct bpf_sock_addr *ctx)
{
	return turn_back(ctx, 1);
}

SEC("cgroup/getpeername4")
int fw_getpeer4(struct bpf_sock_addr *ctx)
{
	return turn_back(ctx, 0);
}

SEC("cgroup/getpeername6")
int fw_getpeer6(struct bpf_sock_addr *ctx)
{
	return turn_back(ctx, 1);
}

char _license[] SEC("license") = "Apache-2.0";
