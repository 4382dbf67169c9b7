/* Forwards established flows in the kernel: a tc classifier, direct action, on an interface's ingress.
 *
 * Strategy. The engine decides; what is found in `flows` here was decided, and packets of it leave as the engine would
 * have them leave, super-packets whole. Anything else is left alone (TC_ACT_UNSPEC: the next filter, then the stack) and
 * so comes to the engine: first packets, SYN, fragments, IP options and extension headers, ICMP, a TTL that ends here,
 * what is longer than the next link takes. FIN and RST are forwarded; the first of each end is noted in the flow's place
 * and told in the ring, and so is the client's first packet of a flow of NAT, which opens the connection.
 *
 * Next hops of direct routing and tunnels are the engine's. Those of NAT are asked of the kernel's own routes once a
 * generation, and the packet that asked goes by the kernel's neighbour, so that it is known to be in use. They stand in
 * the flow's place: flows are only read here, for what is taken out of their map may be another's entry at once. Where
 * nobody would see a packet between the two ends of a veth, it begins at the other one.
 *
 * Headers are changed on the stack and written by helpers, which look after shared packets, checksums that a card is to
 * finish and those that it gave (net/core/filter.c). Needs Linux 5.13.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <stddef.h>

#include "offload.h"

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NET16(x) ((__u16)__builtin_bswap16(x))
#define NET32(x) ((__u32)__builtin_bswap32(x))
#else
#define NET16(x) ((__u16)(x))
#define NET32(x) ((__u32)(x))
#endif

static void *(*map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*ringbuf_output)(void *ring, void *data, __u64 size, __u64 flags) = (void *)BPF_FUNC_ringbuf_output;
static long (*store_bytes)(struct __sk_buff *, __u32, const void *, __u32, __u64) = (void *)BPF_FUNC_skb_store_bytes;
static long (*load_bytes)(const void *, __u32, void *, __u32) = (void *)BPF_FUNC_skb_load_bytes;
static long (*l4_replace)(struct __sk_buff *, __u32, __u64, __u64, __u64) = (void *)BPF_FUNC_l4_csum_replace;
static __s64 (*sum_update)(struct __sk_buff *, __u32) = (void *)BPF_FUNC_csum_update;
static long (*pull_data)(struct __sk_buff *, __u32) = (void *)BPF_FUNC_skb_pull_data;
static long (*adjust_room)(struct __sk_buff *, __s32, __u32, __u64) = (void *)BPF_FUNC_skb_adjust_room;
static long (*redirect)(__u32 interface, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*redirect_peer)(__u32 interface, __u64 flags) = (void *)BPF_FUNC_redirect_peer;
static long (*redirect_neighbour)(__u32, struct bpf_redir_neigh *, int, __u64) = (void *)BPF_FUNC_redirect_neigh;
static long (*look_up_route)(void *, struct bpf_fib_lookup *, int, __u32) = (void *)BPF_FUNC_fib_lookup;
static __u32 (*random)(void) = (void *)BPF_FUNC_get_prandom_u32;

struct map {                   /* made by the loader, which finds them by name */
	__u32 unused;
};
struct map flows SECTION("maps");    /* offload_key -> offload_flow */
struct map places SECTION("maps");   /* number -> offload_place */
struct map control SECTION("maps");  /* 0 -> offload_control */
struct map events SECTION("maps");   /* ring of places in which something ended */

enum {
	LINK = ETH_HLEN,
	IP4 = 20,
	IP6 = 40,
	DONT_FRAGMENT = 0x4000,
	FIN = 1,
	SYN = 2,
	RST = 4,
	ACK = 16,
	FAMILY4 = 2,
	FAMILY6 = 10,
};

union front {                  /* a packet's first bytes, as they lie in it */
	__u8 byte[60];
	__u16 half[30];
	__u32 word[15];
};

struct packet {
	struct offload_key key;
	__u32 transport;       /* offset in the frame */
	__u32 length;          /* of the IP packet */
	__u32 longest;         /* what must fit the next link: that, or a segment of a super-packet */
	__u8 segment;          /* TCP flags */
	__u8 family;
};

INLINE __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Copy what stands in front to the stack; false where the frame is shorter. */
INLINE int read_front(struct __sk_buff *skb, union front *front, __u32 words)
{
	void *data = (void *)(long)skb->data;

	if (data + 4 * words > (void *)(long)skb->data_end) {
		if (pull_data(skb, 4 * words))
			return 0;
		data = (void *)(long)skb->data;
		if (data + 4 * words > (void *)(long)skb->data_end)
			return 0;
	}
#pragma unroll
	for (__u32 i = 3; i < words; i++)
		front->word[i] = ((__u32 *)data)[i];
	return 1;
}

/* TCP's flags and how long the transport header is; false where it is not all there, or nothing for us. */
INLINE int read_transport(struct __sk_buff *skb, struct packet *packet, __u32 headers)
{
	__u32 size = 8;
	__u8 tcp[2];           /* its length in words, and its flags */

	if (packet->key.protocol == IPPROTO_TCP) {
		if (load_bytes(skb, headers + 12, tcp, 2))
			return 0;
		packet->segment = tcp[1];
		size = (tcp[0] >> 4) * 4;
		if (packet->segment & SYN || !(packet->segment & (ACK | RST)))
			return 0;
	} else if (packet->key.protocol != IPPROTO_UDP) {
		return 0;
	}
	packet->transport = headers;
	packet->longest = skb->gso_size ? headers - LINK + size + skb->gso_size : packet->length;
	return 1;
}

INLINE int parse4(struct __sk_buff *skb, union front *front, struct packet *packet)
{
	if (!read_front(skb, front, 10) || front->byte[14] != 0x45)
		return 0;
	if (front->half[10] & NET16((__u16)~DONT_FRAGMENT) || front->byte[22] <= 1)
		return 0;
	packet->length = NET16(front->half[8]);
	if (packet->length + LINK > skb->len || packet->length < IP4 + 8)
		return 0;
	packet->family = FAMILY4;
	packet->key.source[0] = packet->key.source[1] = 0;
	packet->key.source[2] = packet->key.destination[2] = NET32(0xffff);
	packet->key.destination[0] = packet->key.destination[1] = 0;
	packet->key.source[3] = front->half[13] | (__u32)front->half[14] << 16;
	packet->key.destination[3] = front->half[15] | (__u32)front->half[16] << 16;
	packet->key.sport = front->half[17];
	packet->key.dport = front->half[18];
	packet->key.protocol = front->byte[23];
	return read_transport(skb, packet, LINK + IP4);
}

INLINE int parse6(struct __sk_buff *skb, union front *front, struct packet *packet)
{
	if (!read_front(skb, front, 15) || front->byte[14] >> 4 != 6 || front->byte[21] <= 1)
		return 0;
	packet->length = NET16(front->half[9]) + IP6;
	if (packet->length + LINK > skb->len || packet->length < IP6 + 8)
		return 0;
	packet->family = FAMILY6;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		packet->key.source[i] = front->half[11 + 2 * i] | (__u32)front->half[12 + 2 * i] << 16;
		packet->key.destination[i] = front->half[19 + 2 * i] | (__u32)front->half[20 + 2 * i] << 16;
	}
	packet->key.sport = front->half[27];
	packet->key.dport = front->half[28];
	packet->key.protocol = front->byte[20];
	return read_transport(skb, packet, LINK + IP6);
}

/* Say that this end sent a FIN or an RST, the first time that it did. */
INLINE void note_end(const struct offload_flow *flow, struct offload_place *place, __u8 segment)
{
	__u32 *ended = &place->direction[0].ended;
	__u32 bit = (segment & RST ? OFFLOAD_RST : OFFLOAD_FIN) << flow->reply;
	__u32 before = __sync_fetch_and_or(ended, bit);

	if (before & bit)
		return;
	if (!(before & OFFLOAD_ENDS))
		__sync_fetch_and_or(ended, OFFLOAD_FIRST << flow->reply);
	ringbuf_output(&events, (void *)&flow->place, sizeof(flow->place), 0);
}

INLINE int has(const __u32 *bits, __u32 interface)
{
	__u32 word = interface / 32;

	return word < OFFLOAD_WORDS ? bits[word] >> interface % 32 & 1 : 0;
}

/* The next hop by the kernel's routes, for the packet as they see it that comes up: a request is translated before, a
 * reply after that. False where there is none that we can use.
 */
INLINE int find_hop(struct __sk_buff *skb, const struct offload_control *now, const struct offload_flow *flow,
		    struct offload_direction *direction, const struct packet *packet, const union front *front,
		    struct bpf_redir_neigh *next)
{
	struct bpf_fib_lookup route = {};

	route.family = packet->family;
	route.l4_protocol = packet->key.protocol;
	route.sport = packet->key.sport;
	route.dport = flow->reply ? packet->key.dport : flow->port;
	route.tot_len = 1;     /* for the MTU to be told */
	route.ifindex = skb->ingress_ifindex;
	if (packet->family == FAMILY4) {
		route.tos = front->byte[15];
		route.ipv4_src = packet->key.source[3];
		route.ipv4_dst = flow->reply ? packet->key.destination[3] : flow->address[3];
	} else {
		const __u32 *destination = flow->reply ? packet->key.destination : flow->address;

		route.flowinfo = (front->half[7] | (__u32)front->half[8] << 16) & NET32(0x0fffffff);
#pragma unroll
		for (int i = 0; i < 4; i++) {
			route.ipv6_src[i] = packet->key.source[i];
			route.ipv6_dst[i] = destination[i];
		}
	}
	if (look_up_route(skb, &route, sizeof(route), 0))
		return 0;
	if (route.ifindex / 32 < OFFLOAD_WORDS && !has(now->ethernet, route.ifindex))
		return 0;
	if (!(route.dmac[0] | route.dmac[1] | route.dmac[2] | route.dmac[3] | route.dmac[4] | route.dmac[5]))
		return 0;      /* no link address: of what is beyond the bits that is all that is known */
	direction->link[0] = route.dmac[0] | route.dmac[1] << 8;
	direction->link[1] = route.dmac[2] | route.dmac[3] << 8;
	direction->link[2] = route.dmac[4] | route.dmac[5] << 8;
	direction->link[3] = route.smac[0] | route.smac[1] << 8;
	direction->link[4] = route.smac[2] | route.smac[3] << 8;
	direction->link[5] = route.smac[4] | route.smac[5] << 8;
	direction->interface = route.ifindex;
	direction->mtu = direction->most && direction->most < route.mtu_result ? direction->most : route.mtu_result;
	next->nh_family = route.family;
	if (route.family == FAMILY4) {
		next->ipv4_nh = route.ipv4_dst;
	} else {
#pragma unroll
		for (int i = 0; i < 4; i++)
			next->ipv6_nh[i] = route.ipv6_dst[i];
	}
	return 1;
}

/* What may have changed with the generation. 0: nothing is to be done; 1: this packet must go by the kernel's neighbour,
 * which so is known to be in use; -1: there is no next hop.
 */
INLINE int look_again(struct __sk_buff *skb, const struct offload_flow *flow, struct offload_direction *direction,
		      const struct packet *packet, const union front *front, struct bpf_redir_neigh *next)
{
	const struct offload_control *now;
	__u32 generation, zero = 0;

	now = map_lookup(&control, &zero);
	if (!now)
		return -1;
	generation = now->generation;
	if (direction->looked == generation)
		return 0;
	if (flow->way == OFFLOAD_NAT || flow->way == OFFLOAD_REPLY) {
		if (!find_hop(skb, now, flow, direction, packet, front, next))
			return -1;
	}
	direction->paired = has(now->paired, direction->interface);
	__sync_lock_test_and_set(&direction->looked, generation); /* who sees it sees the hop */
	return next->nh_family && !direction->paired;
}

/* One hop older. */
INLINE void age(struct __sk_buff *skb, union front *front, __u8 family, __u32 change)
{
	if (family == FAMILY4) {
		__u32 sum = (__u16)~front->half[12] + (__u32)(__u16)~NET16(0x0100) + (change & 0xffff) + (change >> 16);

		front->byte[22]--;
		front->half[12] = ~fold(sum);
	} else {
		front->byte[21]--;
		sum_update(skb, (__u16)~NET16(0x0001));
	}
}

INLINE void put_link(union front *front, const struct offload_direction *direction)
{
#pragma unroll
	for (int i = 0; i < 6; i++)
		front->half[i] = direction->link[i];
}

INLINE int translate(struct __sk_buff *skb, const struct offload_flow *flow, const struct packet *packet,
		     union front *front)
{
	__u32 checksum = packet->transport + (packet->key.protocol == IPPROTO_TCP ? 16 : 6);
	__u64 udp = packet->key.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	int at;

	age(skb, front, packet->family, flow->address_change);
	if (packet->family == FAMILY4) {
		at = flow->reply ? 13 : 15;
		if (flow->reply) {
			front->half[13] = flow->address[3];
			front->half[14] = flow->address[3] >> 16;
			front->half[17] = flow->port;
		} else {
			front->half[15] = flow->address[3];
			front->half[16] = flow->address[3] >> 16;
			front->half[18] = flow->port;
		}
	} else {
#pragma unroll
		for (at = 0; at < 4; at++) {
			if (flow->reply) {
				front->half[11 + 2 * at] = flow->address[at];
				front->half[12 + 2 * at] = flow->address[at] >> 16;
			} else {
				front->half[19 + 2 * at] = flow->address[at];
				front->half[20 + 2 * at] = flow->address[at] >> 16;
			}
		}
		if (flow->reply)
			front->half[27] = flow->port;
		else
			front->half[28] = flow->port;
	}
	if (l4_replace(skb, checksum, 0, flow->address_change, BPF_F_PSEUDO_HDR | udp))
		return 0;
	if (packet->family == FAMILY6) /* the sum over the whole packet stays: no header checksum took part of it */
		sum_update(skb, flow->address_change);
	if (flow->port_change && l4_replace(skb, checksum, 0, flow->port_change, udp))
		return 0;
	if (packet->family == FAMILY4)
		return !store_bytes(skb, 0, front, LINK + IP4 + 4, 0);
	return !store_bytes(skb, 0, front, LINK + IP6 + 4, 0);
}

/* Room for an outer header between the link's and the packet's. False where the kernel gives none: what is no
 * super-packet may be longer than one, or the packet is in a tunnel already; then it is as it was.
 */
INLINE int make_room(struct __sk_buff *skb, __u8 family)
{
	__u64 flags = family == FAMILY4 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;

	return !adjust_room(skb, family == FAMILY4 ? IP4 : IP6, BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_FIXED_GSO);
}

/* The outer header's fields are those of forward.pxd, put_outer. */
INLINE int wrap(struct __sk_buff *skb, const struct offload_flow *flow, const struct offload_direction *direction,
		const struct packet *packet, union front *front)
{
	age(skb, front, packet->family, 0);
	if (store_bytes(skb, LINK + (packet->family == FAMILY4 ? IP4 : IP6), &front->byte[LINK], 12, 0))
		return 0;
	if (packet->family == FAMILY4) {
		__u32 sum = 0;

		front->half[8] = NET16((__u16)(packet->length + IP4));
		front->half[9] = random();
		front->half[10] &= NET16(DONT_FRAGMENT);
		front->byte[23] = IPPROTO_IPIP;
		front->half[12] = 0;
		front->half[13] = direction->own[3];
		front->half[14] = direction->own[3] >> 16;
		front->half[15] = flow->address[3];
		front->half[16] = flow->address[3] >> 16;
#pragma unroll
		for (int i = 7; i < 17; i++)
			sum += front->half[i];
		front->half[12] = ~fold(sum);
		return !store_bytes(skb, 0, front, LINK + IP4, 0);
	}
	front->half[9] = NET16((__u16)packet->length);
	front->byte[20] = IPPROTO_IPV6;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		front->half[11 + 2 * i] = direction->own[i];
		front->half[12 + 2 * i] = direction->own[i] >> 16;
		front->half[19 + 2 * i] = flow->address[i];
		front->half[20 + 2 * i] = flow->address[i] >> 16;
	}
	return !store_bytes(skb, LINK, &front->byte[LINK], IP6, BPF_F_RECOMPUTE_CSUM)
	       && !store_bytes(skb, 0, front, LINK, 0);
}

INLINE int go_on(struct __sk_buff *skb, struct packet *packet, union front *front)
{
	struct bpf_redir_neigh next = {};
	struct offload_direction *direction;
	const struct offload_flow *found;
	struct offload_place *place;
	struct offload_flow flow;
	__u64 before;
	int asked;

	found = map_lookup(&flows, &packet->key);
	if (!found)
		return TC_ACT_UNSPEC;
	flow = *found;         /* at once: the memory may be another flow's as soon as this one is taken out */
	place = map_lookup(&places, &flow.place);
	if (!place)
		return TC_ACT_UNSPEC;
	direction = &place->direction[flow.reply & 1];
	asked = look_again(skb, &flow, direction, packet, front, &next);
	if (asked < 0)
		return TC_ACT_UNSPEC;
	if (packet->longest > direction->mtu)
		return TC_ACT_UNSPEC;
	if (flow.way == OFFLOAD_TUNNEL && (packet->length > 0xffff - IP6 || !make_room(skb, packet->family)))
		return TC_ACT_UNSPEC;
	before = __sync_fetch_and_add(&direction->packets, 1);
	if (before == 0 && flow.way == OFFLOAD_NAT && packet->key.protocol == IPPROTO_TCP)
		ringbuf_output(&events, &flow.place, sizeof(flow.place), 0);
	__sync_fetch_and_add(&direction->bytes, packet->length);
	if (packet->segment & (FIN | RST)) /* after the count: who sees that it ended sees that it was opened */
		note_end(&flow, place, packet->segment);
	put_link(front, direction);
	if (flow.way == OFFLOAD_DIRECT) {
		age(skb, front, packet->family, 0);
		if (store_bytes(skb, 0, front, LINK + 12, 0))
			return TC_ACT_SHOT;
	} else if (flow.way == OFFLOAD_TUNNEL) {
		if (!wrap(skb, &flow, direction, packet, front))
			return TC_ACT_SHOT;
	} else if (!translate(skb, &flow, packet, front)) {
		return TC_ACT_SHOT;
	}
	if (direction->paired)
		return redirect_peer(direction->interface, 0);
	if (asked)
		return redirect_neighbour(direction->interface, &next, sizeof(next), 0);
	return redirect(direction->interface, 0);
}

SECTION("tc") int forward(struct __sk_buff *skb)
{
	struct packet packet = {};
	union front front = {};

	if (skb->pkt_type || skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (skb->protocol == NET16(ETH_P_IP)) {
		if (parse4(skb, &front, &packet))
			return go_on(skb, &packet, &front);
	} else if (skb->protocol == NET16(ETH_P_IPV6)) {
		if (parse6(skb, &front, &packet))
			return go_on(skb, &packet, &front);
	}
	return TC_ACT_UNSPEC;
}

SECTION("license") const char licence[] = "GPL";
