// SPDX-License-Identifier: Apache-2.0
//
// Where a service is reached, as both programs and the code that loads them know it. Needs <linux/bpf.h>.

#pragma once

struct address {
	__u32 word[4]; // IPv6, or IPv4 mapped into it (::ffff:a.b.c.d), in network order
};

struct frontend {
	struct address address;
	__u16 port; // in network order
	__u8 protocol;
	__u8 zero;
};
