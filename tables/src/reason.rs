//! Why a packet was dropped or punted: one numbered list that is at once the counter, the trace label
//! and the metric label.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why a packet did not go the normal way.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)*];
            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The label under which counters, traces and metrics show the reason.
            pub const fn label(self) -> &'static str {
                match self { $(DropReason::$name => $label,)* }
            }
        }
    };
}

reasons! {
    /// Shorter than its headers say, or than any header.
    Truncated = "truncated",
    /// An EtherType other than IPv4, IPv6 and ARP.
    EtherType = "ethertype",
    /// Ethernet destination is not this node's.
    NotForUs = "not-for-us",
    /// IP version, header length or total length makes no sense (RFC 1812 section 5.2.2).
    BadIpHeader = "bad-ip-header",
    /// IPv4 header checksum is wrong (RFC 1812 section 5.2.2).
    BadIpChecksum = "bad-ip-checksum",
    /// An ICMP message whose checksum is wrong, or an ICMP error that quotes no packet (RFC 792).
    BadIcmp = "bad-icmp",
    /// Loopback, multicast, broadcast or unspecified address where none may be (RFC 1812 section 5.3.7).
    Martian = "martian",
    /// TTL or hop limit ran out.
    TtlExceeded = "ttl-exceeded",
    /// A fragment of an outer packet, of an ICMP message other than echo, or the first of an SCTP packet whose ports would
    /// change.
    Fragment = "fragment",
    /// A fragment that makes no sense: it overlaps others, goes past the end of its datagram or of any, or is the first
    /// and does not hold the transport header (RFC 1858, RFC 3128, RFC 5722).
    BadFragment = "bad-fragment",
    /// A fragment that came before its datagram's first, of a source that has too many of those waiting.
    FragmentLimit = "fragment-limit",
    /// A fragment whose datagram's first did not come in time.
    FragmentTimeout = "fragment-timeout",
    /// An IPv6 packet, where the node has no IPv6, or a tunnel over IPv6.
    Ipv6 = "ipv6",
    /// A pod sent from an address that is not its own.
    SpoofedSource = "spoofed-source",
    /// No route to the destination.
    NoRoute = "no-route",
    /// The route says so.
    Blackhole = "blackhole",
    /// The route says so, and that the sender is to be told.
    Unreachable = "unreachable",
    /// The address belongs to this node's pods, but no pod has it.
    NoEndpoint = "no-endpoint",
    /// The remote node's tunnel is not known.
    NoTunnel = "no-tunnel",
    /// The next hop's Ethernet address is not resolved.
    NoNeighbour = "no-neighbour",
    /// The service has no usable backend.
    NoBackend = "no-backend",
    /// The service has backends, but none on this node, as its traffic policy demands.
    NoLocalBackend = "no-local-backend",
    /// The service admits clients of certain ranges only, and this one is in none of them.
    SourceRange = "source-range",
    /// Larger than the output port's MTU.
    TooBig = "too-big",
    /// An encapsulated packet whose VXLAN header is not valid (RFC 7348 section 5).
    BadVxlan = "bad-vxlan",
    /// A VNI that this node does not serve.
    WrongVni = "wrong-vni",
    /// An encapsulated packet from an address that is no known node.
    UnknownVtep = "unknown-vtep",
    /// A tunnel's packet that was marked as congested on the way, around one that cannot carry the mark (RFC 6040
    /// section 4.2).
    EcnLost = "ecn-lost",
    /// A TCP reset that belongs to no connection.
    StrayReset = "stray-reset",
    /// A TCP segment outside of its connection's window, or whose header makes no sense, where windows are tracked.
    OutOfWindow = "tcp-out-of-window",
    /// The connection table is full of what is worth more than a new flow.
    ConntrackFull = "conntrack-full",
    /// The source has as many connections without an answer under way as one source may have.
    ConntrackShare = "conntrack-share",
    /// Another connection's packets come back with the very tuple that this one's would, and the protocol has no ports to
    /// tell them apart.
    TupleClash = "tuple-clash",
    /// The source is to be translated, but every port that was tried is taken by another connection to the same
    /// destination.
    SnatPortsExhausted = "snat-ports-exhausted",
    /// The source is to be translated, but the node has no address of the family for it.
    SnatNoAddress = "snat-no-address",
    /// An ARP packet that asks nothing of the gateway.
    ArpIgnored = "arp-ignored",
    /// A packet of the link itself (neighbour or router discovery, multicast) that asks nothing of the gateway.
    LinkIgnored = "link-ignored",
    /// The frame has no room for the headers to be added.
    NoHeadroom = "no-headroom",
    /// A packet to be fragmented, and no free frames for its parts.
    NoFrames = "no-frames",
    /// The output port is not open.
    PortDown = "port-down",
    /// The output queue is full.
    TxFull = "tx-full",
    /// The hand-off ring to another worker is full.
    HandoffFull = "handoff-full",
    /// A descriptor from the kernel pointed outside the UMEM.
    BadDescriptor = "bad-descriptor",
}

impl std::fmt::Display for DropReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}
