//! The machine's routes: what the pods' ranges must not overlap, the MTU towards the world, and the routes to pods.
//!
//! Routes of others are read and never changed. wharf's own have a protocol number by which they are recognised.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;

use crate::link::{Address, Link, family, octets};
use crate::netlink::{self, IPV4, IPV6, Message, NetlinkError, Operation, Socket};
use crate::subnet::Subnet;

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;

const DESTINATION: u16 = 1;
const LINK: u16 = 4;
const GATEWAY: u16 = 5;
const PRIORITY: u16 = 6;
const SOURCE: u16 = 7;
const METRICS: u16 = 8;
const VIA: u16 = 18;
const METRIC_MTU: u16 = 2;

const MAIN_TABLE: u8 = 254;
const UNICAST: u8 = 1;
const UNREACHABLE: u8 = 7;
const AT_BOOT: u8 = 3;
/// The protocol number of routes that wharf made.
const OURS: u8 = 119;
const EVERYWHERE: u8 = 0;
const ON_LINK: u8 = 253;
/// The gateway is reached through the link, although no address of the link implies it.
const FLAG_ON_LINK: u32 = 4;
/// The lowest priority among routes to the same range.
const LAST: u32 = u32::MAX;

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: IpAddr,
    prefix: u8,
    /// The index of the link through which it leads; 0 for several.
    pub(crate) link: u32,
    /// Whether its targets are behind a router.
    routed: bool,
    metric: u32,
    mtu: Option<u32>,
}

/// All routes of the main table.
pub(crate) fn list(socket: &Socket) -> Result<Vec<Route>, NetlinkError> {
    let request = || Message::new(GET_ROUTE, netlink::DUMP).fixed(&[0; 12]);
    socket.dump(&request, parse).operation(|| "list the routes".to_owned())
}

/// The first route with addresses in the range: to a part of it, or to a network of this machine around it. A route
/// through a router to a larger range only loses these few addresses, as is usual with routes. wharf's own routes are
/// left out.
pub(crate) fn overlap<'a>(
    routes: &'a [Route],
    subnet: &Subnet,
    is_own: impl Fn(&Route) -> bool,
) -> Option<&'a Route> {
    routes.iter().filter(|route| route.prefix > 0 && !is_own(route)).find(|route| {
        let inside = route.prefix >= subnet.prefix() && subnet.contains(route.destination);
        let around = Subnet::new(route.destination, route.prefix).contains(subnet.nth(0));
        inside || (around && !route.routed)
    })
}

/// The request for the default route in the gateway's family.
pub(crate) fn default_by(gateway: IpAddr, link: u32, reached: Reached) -> Message {
    let flags = if matches!(reached, Reached::ByLinkAlone) { FLAG_ON_LINK } else { 0 };
    let header = header(family(gateway), 0, [AT_BOOT, EVERYWHERE, UNICAST], flags);
    let mut message = Message::new(NEW_ROUTE, netlink::CREATE | netlink::REPLACE).fixed(&header);
    message.attribute(GATEWAY, &octets(gateway));
    message.attribute(LINK, &link.to_ne_bytes());
    message
}

/// How a gateway is reached.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reached {
    /// The gateway is in the network of the link's address.
    InNetwork,
    /// The link's address has no network.
    ByLinkAlone,
}

/// The request for the route to a pod; in packets to it the host has the address `source`.
pub(crate) fn to_pod(pod: IpAddr, link: u32, source: IpAddr) -> Message {
    let Address { ip, prefix } = Address::alone(pod);
    let header = header(family(ip), prefix, [OURS, ON_LINK, UNICAST], 0);
    let mut message = Message::new(NEW_ROUTE, netlink::CREATE | netlink::REPLACE).fixed(&header);
    message.attribute(DESTINATION, &octets(ip));
    message.attribute(LINK, &link.to_ne_bytes());
    message.attribute(SOURCE, &octets(source));
    message
}

/// Makes a range unreachable except through more specific routes; if it already is, that is success.
pub(crate) fn close(socket: &Socket, range: Subnet) -> Result<(), NetlinkError> {
    match socket.request(closing(NEW_ROUTE, netlink::CREATE | netlink::EXCL, range)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => {
            Err(errno).operation(|| format!("add the route for those of {range} that are not there"))
        }
    }
}

/// Undoes [`close`]; if the range is not closed, that is success.
pub(crate) fn open(socket: &Socket, range: Subnet) -> Result<(), NetlinkError> {
    match socket.request(closing(DELETE_ROUTE, 0, range)) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => {
            Err(errno).operation(|| format!("remove the route for those of {range} that are not there"))
        }
    }
}

/// The closed ranges.
pub(crate) fn closed(socket: &Socket) -> Result<Vec<Subnet>, NetlinkError> {
    let request = || Message::new(GET_ROUTE, netlink::DUMP).fixed(&[0; 12]);
    socket.dump(&request, parse_closed).operation(|| "list the routes".to_owned())
}

fn closing(kind: u16, flags: u16, range: Subnet) -> Message {
    let base = range.nth(0);
    let header = header(family(base), range.prefix(), [OURS, EVERYWHERE, UNREACHABLE], 0);
    let mut message = Message::new(kind, flags).fixed(&header);
    message.attribute(DESTINATION, &octets(base));
    message.attribute(PRIORITY, &LAST.to_ne_bytes());
    message
}

/// `struct rtmsg` for the main table; `kind` has the route's protocol, scope and type.
fn header(family: u8, prefix: u8, kind: [u8; 3], flags: u32) -> [u8; 12] {
    let [maker, scope, action] = kind;
    let [a, b, c, d] = flags.to_ne_bytes();
    [family, prefix, 0, 0, MAIN_TABLE, maker, scope, action, a, b, c, d]
}

/// The MTU of the default route, of IPv4 if there is one.
pub(crate) fn uplink_mtu(routes: &[Route], links: &[Link]) -> Option<u32> {
    let defaults = routes.iter().filter(|route| route.prefix == 0 && route.link != 0);
    let uplink = defaults.min_by_key(|route| (route.destination.is_ipv6(), route.metric))?;
    let link = links.iter().find(|link| link.index == uplink.link)?;
    Some(uplink.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu))).filter(|mtu| *mtu > 0)
}

impl Route {
    pub(crate) fn range(&self) -> Subnet {
        Subnet::new(self.destination, self.prefix)
    }

    /// The range, and the name of the link, for people.
    pub(crate) fn describe(&self, links: &[Link]) -> String {
        let link = links.iter().find(|link| link.index == self.link).map(|link| link.name.as_str());
        format!("{}/{} of {}", self.destination, self.prefix, link.unwrap_or("several links"))
    }
}

fn parse(payload: &[u8]) -> Option<Route> {
    let (header, rest) = payload.split_at_checked(12)?;
    let (family, prefix, table, kind) = (header[0], header[1], header[4], header[7]);
    if table != MAIN_TABLE || kind != UNICAST || !matches!(family, IPV4 | IPV6) {
        return None;
    }
    let everywhere = if family == IPV4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let destination = netlink::find(rest, DESTINATION).and_then(netlink::address).unwrap_or(everywhere);
    let number = |kind| netlink::find(rest, kind).and_then(netlink::number);
    let metrics = netlink::find(rest, METRICS).unwrap_or_default();
    Some(Route {
        destination,
        prefix,
        link: number(LINK).unwrap_or_default(),
        routed: [GATEWAY, VIA].iter().any(|kind| netlink::find(rest, *kind).is_some()),
        metric: number(PRIORITY).unwrap_or_default(),
        mtu: netlink::find(metrics, METRIC_MTU).and_then(netlink::number),
    })
}

fn parse_closed(payload: &[u8]) -> Option<Subnet> {
    let (header, rest) = payload.split_at_checked(12)?;
    let [prefix, table, maker, action] = [header[1], header[4], header[5], header[7]];
    let base = netlink::find(rest, DESTINATION).and_then(netlink::address)?;
    let ours = (table, maker, action) == (MAIN_TABLE, OURS, UNREACHABLE);
    ours.then(|| Subnet::new(base, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(destination: &str, prefix: u8, link: u32) -> Route {
        Route { destination: destination.parse().unwrap(), prefix, link, routed: false, metric: 0, mtu: None }
    }

    fn routed(destination: &str, prefix: u8, link: u32) -> Route {
        Route { routed: true, ..direct(destination, prefix, link) }
    }

    #[test]
    fn what_a_range_takes_from_others_is_found() {
        let subnet: Subnet = "10.88.0.0/16".parse().unwrap();
        let overlaps = |routes: &[Route]| overlap(routes, &subnet, |route| route.link == 7).is_some();
        assert!(overlaps(&[direct("10.88.0.0", 16, 2)]), "podman's, say");
        assert!(overlaps(&[routed("10.88.5.0", 24, 2)]), "a part, by a VPN");
        assert!(overlaps(&[direct("10.0.0.0", 8, 2)]), "neighbours of this machine");
        assert!(!overlaps(&[routed("10.0.0.0", 8, 2)]), "a site's routes");
        assert!(!overlaps(&[routed("0.0.0.0", 0, 2), direct("10.89.0.0", 16, 2)]));
        assert!(!overlaps(&[direct("10.88.0.0", 16, 7)]), "the bridge's own");
        assert!(!overlaps(&[direct("fd00::", 8, 2)]));
    }

    #[test]
    fn the_default_route_says_how_large_packets_may_be() {
        let link = |index, mtu| Link { index, mtu, ..Link::default() };
        let links = [link(1, 65536), link(2, 1450), link(3, 9000)];
        let default = |link, metric| Route { metric, ..routed("0.0.0.0", 0, link) };
        assert_eq!(uplink_mtu(&[default(3, 200), default(2, 100)], &links), Some(1450));
        assert_eq!(uplink_mtu(&[routed("::", 0, 2), default(3, 900)], &links), Some(9000));
        let lowered = Route { mtu: Some(1400), ..default(2, 0) };
        assert_eq!(uplink_mtu(&[lowered], &links), Some(1400));
        assert_eq!(uplink_mtu(&[routed("10.0.0.0", 8, 2), default(9, 0)], &links), None);
    }
}
