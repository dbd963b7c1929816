//! Links, addresses and routes over a blocking rtnetlink socket.
//!
//! Owns: the few requests the runtime makes. A socket belongs to the network namespace its thread was in when it was
//! opened: the shim keeps one from before it entered the pod's, and so makes a veth pair without ever switching
//! namespaces. Requests that belong together go in one send.

use std::{io, net::Ipv4Addr};

use nix::net::if_::if_nametoindex;
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        RouteNetlinkMessage,
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute, LinkMessage},
    },
    sys::{Socket, protocols::NETLINK_ROUTE},
};

/// A socket to one network namespace.
pub(in crate::runtime) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A link's number in one network namespace.
#[derive(Clone, Copy)]
pub(in crate::runtime) struct LinkIndex(u32);

impl LinkIndex {
    /// The number of a link in the namespace the calling thread is in.
    pub(in crate::runtime) fn of(name: &str) -> io::Result<LinkIndex> {
        if_nametoindex(name)
            .map(LinkIndex)
            .map_err(|errno| io::Error::new(io::Error::from(errno).kind(), format!("no link {name:?}")))
    }
}

/// A request, and the error that means it was done before.
struct Step {
    message: RouteNetlinkMessage,
    flags: u16,
    tolerated: i32,
}

const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

impl Netlink {
    /// A socket to the namespace the calling thread is in.
    pub(in crate::runtime) fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Makes the bridge if it is not there, gives it the address, sets it up.
    pub(in crate::runtime) fn ensure_bridge(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        prefix: u8,
        mtu: u32,
    ) -> io::Result<()> {
        let create = LinkMessageBuilder::<LinkBridge>::new(name).mtu(mtu).build();
        self.run(vec![Step {
            message: RouteNetlinkMessage::NewLink(create),
            flags: CREATE,
            tolerated: libc::EEXIST,
        }])?;
        let index = if_nametoindex(name)?;
        let address = AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, prefix).build();
        self.run(vec![
            Step {
                message: RouteNetlinkMessage::NewAddress(address),
                flags: CREATE,
                tolerated: libc::EEXIST,
            },
            Step::set(LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build()),
        ])
    }

    /// Takes an address off a link; no error when it has it no more.
    pub(super) fn remove_address(&mut self, link: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let Ok(index) = if_nametoindex(link) else { return Ok(()) };
        let address = AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, prefix).build();
        self.run(vec![Step {
            message: RouteNetlinkMessage::DelAddress(address),
            flags: 0,
            tolerated: libc::EADDRNOTAVAIL,
        }])
    }

    /// Removes a link; no error when there is none.
    pub(in crate::runtime) fn remove_link(&mut self, name: &str) -> io::Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
        self.run(vec![Step {
            message: RouteNetlinkMessage::DelLink(message),
            flags: 0,
            tolerated: libc::ENODEV,
        }])
    }

    /// Makes a veth pair: `name` here, up and on the bridge; `peer` born in the network namespace of `pid`. It is told to
    /// make itself no IPv6 address, which nobody here would use: every pod would greet every other one on the bridge by
    /// multicast, a tenth of all processor time while a hundred start.
    pub(in crate::runtime) fn add_veth(
        &mut self,
        name: &str,
        peer: &str,
        pid: u32,
        bridge: LinkIndex,
        mtu: u32,
    ) -> io::Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new().name(peer).mtu(mtu).setns_by_pid(pid).build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(name, "")
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .mtu(mtu)
            .controller(bridge.0)
            .build();
        let named = || LinkMessageBuilder::<LinkUnspec>::new().name(name);
        self.run(vec![
            Step { message: RouteNetlinkMessage::NewLink(pair), flags: CREATE, tolerated: 0 },
            Step::without_ipv6(named()),
            Step::set(named().up().build()),
        ])
    }

    /// In a pod's namespace: `lo` and `interface` up, with its address and a default route.
    pub(in crate::runtime) fn configure_pod(
        &mut self,
        interface: &str,
        address: Ipv4Addr,
        prefix: u8,
        gateway: Ipv4Addr,
    ) -> io::Result<()> {
        let index = if_nametoindex(interface)?;
        let address = AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, prefix).build();
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).build();
        self.run(vec![
            Step::set(LinkMessageBuilder::<LinkUnspec>::new().index(LOOPBACK_INDEX).up().build()),
            Step::without_ipv6(LinkMessageBuilder::<LinkUnspec>::new().index(index)),
            Step::set(LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build()),
            Step { message: RouteNetlinkMessage::NewAddress(address), flags: CREATE, tolerated: 0 },
            Step { message: RouteNetlinkMessage::NewRoute(route), flags: CREATE, tolerated: 0 },
        ])
    }

    /// Sets `lo` up, in the namespace of this socket.
    pub(in crate::runtime) fn loopback_up(&mut self) -> io::Result<()> {
        self.run(vec![Step::set(LinkMessageBuilder::<LinkUnspec>::new().index(LOOPBACK_INDEX).up().build())])
    }

    /// Sends all steps at once and waits for each one's acknowledgement; the first real error is the result.
    fn run(&mut self, steps: Vec<Step>) -> io::Result<()> {
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        let mut tolerated = Vec::with_capacity(steps.len());
        for step in steps {
            self.sequence += 1;
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | NLM_F_ACK | step.flags;
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(step.message));
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len(), 0);
            message.serialize(&mut bytes[start..]);
            tolerated.push(step.tolerated);
        }
        self.socket.send(&bytes, 0)?;
        let mut result = Ok(());
        let mut waiting = tolerated.len();
        while waiting > 0 {
            let (answer, _) = self.socket.recv_from_full()?;
            let mut rest = &answer[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                let length = (message.header.length as usize).next_multiple_of(NETLINK_ALIGN);
                rest = rest.get(length..).unwrap_or_default();
                let Some(step) = message.header.sequence_number.checked_sub(first) else { continue };
                let (Some(tolerated), NetlinkPayload::Error(error)) =
                    (tolerated.get(step as usize), &message.payload)
                else {
                    continue;
                };
                waiting = waiting.saturating_sub(1);
                let errno = error.code.map_or(0, |code| -code.get());
                if errno != 0 && errno != *tolerated && result.is_ok() {
                    result = Err(io::Error::from_raw_os_error(errno));
                }
            }
        }
        result
    }
}

impl Step {
    fn set(link: LinkMessage) -> Step {
        Step { message: RouteNetlinkMessage::SetLink(link), flags: 0, tolerated: 0 }
    }

    /// Before a link is up: it gives itself no link-local address, so it has none to announce. Its namespace's other
    /// links, `lo` above all, keep theirs. A kernel without IPv6 has nothing to turn off.
    fn without_ipv6(link: LinkMessageBuilder<LinkUnspec>) -> Step {
        let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let link = link.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![none])).build();
        Step { tolerated: libc::EAFNOSUPPORT, ..Step::set(link) }
    }
}

/// `lo` is the first link of every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Messages in one buffer begin at multiples of this.
const NETLINK_ALIGN: usize = 4;

/// The MTU of the link the default route goes out by; Ethernet's when there is none.
pub(in crate::runtime) fn default_mtu() -> u32 {
    std::fs::read_to_string("/proc/net/route")
        .ok()
        .and_then(|routes| {
            let default = routes.lines().skip(1).find(|line| line.split('\t').nth(1) == Some("00000000"))?;
            let link = default.split('\t').next()?.to_owned();
            std::fs::read_to_string(format!("/sys/class/net/{link}/mtu")).ok()?.trim().parse().ok()
        })
        .unwrap_or(ETHERNET_MTU)
}

const ETHERNET_MTU: u32 = 1500;
