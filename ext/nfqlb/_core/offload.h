/* What the offload's BPF program and the engine share: maps of established flows, docs/offload.md.
 *
 * Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d; ports are in network order.
 */
#ifndef NFQLB_OFFLOAD_H
#define NFQLB_OFFLOAD_H

#include <linux/types.h>

enum offload_way {             /* to the real server, as method_t; or back from it */
	OFFLOAD_NAT,
	OFFLOAD_DIRECT,
	OFFLOAD_TUNNEL,
	OFFLOAD_REPLY,
};

enum offload_ending {          /* sent by an end, shifted by offload_flow.reply; FIRST: of both ends */
	OFFLOAD_FIN = 1,
	OFFLOAD_RST = 4,
	OFFLOAD_ENDS = 15,
	OFFLOAD_FIRST = 16,
};

struct offload_key {           /* one direction of a flow, as its packets come */
	__u32 source[4];
	__u32 destination[4];
	__u16 sport;
	__u16 dport;
	__u32 protocol;
};

struct offload_flow {          /* what becomes of its packets; written by the engine alone */
	__u32 place;
	__u8 way;              /* enum offload_way */
	__u8 reply;            /* 1: from the real server */
	__u16 port;            /* NAT: what the port becomes */
	__u32 address[4];      /* NAT: what the address becomes; tunnel: the outer destination */
	__u32 address_change;  /* NAT: what that adds to a checksum, one's complement */
	__u32 port_change;
};

struct offload_direction {     /* a cache line: what passed, and where it goes next */
	__u64 packets;
	__u64 bytes;           /* IP length */
	__u16 link[6];         /* MAC addresses: the next hop's and ours */
	__u32 interface;
	__u32 mtu;             /* bytes of the longest IP packet, an outer header not counted */
	__u16 most;            /* NAT: that of the route, which the look-up of a hop does not tell; 0: none */
	__u16 paired;          /* 1: packets begin at the other end of the interface */
	__u32 looked;          /* generation in which the last two were, and the hop of NAT */
	__u32 own[4];          /* tunnel: the outer source */
	__u32 ended;           /* enum offload_ending, of both directions in that of requests */
};

struct offload_place {         /* of a connection, by offload_flow.reply; shared memory, and no flow's while it rests */
	struct offload_direction direction[2];
};

enum { OFFLOAD_WORDS = 1023 };

struct offload_control {
	__u32 generation;      /* of routes and neighbours: what was looked up in another one is looked up again */
	__u32 unused;
	__u32 paired[OFFLOAD_WORDS];   /* a bit an interface: packets begin at its other end (kernel/pairs.py) */
	__u32 ethernet[OFFLOAD_WORDS]; /* and: it is Ethernet */
};

#endif
