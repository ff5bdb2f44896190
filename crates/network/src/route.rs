//! Routes of the machine: what a range of pods must not overlap, and how large packets to the world may be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::link::Link;
use crate::netlink::{self, IPV4, IPV6, Message, NetlinkError, Operation, Socket};
use crate::subnet::Subnet;

const GET_ROUTE: u16 = 26;

const DESTINATION: u16 = 1;
const LINK: u16 = 4;
const GATEWAY: u16 = 5;
const PRIORITY: u16 = 6;
const METRICS: u16 = 8;
const VIA: u16 = 18;
const METRIC_MTU: u16 = 2;

const MAIN_TABLE: u8 = 254;
const UNICAST: u8 = 1;

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    destination: IpAddr,
    prefix: u8,
    /// The index of the link it leads out by; 0 for several.
    link: u32,
    /// Whether those it leads to are beyond a router.
    routed: bool,
    metric: u32,
    mtu: Option<u32>,
}

/// All routes of the main table.
pub(crate) fn list(socket: &Socket) -> Result<Vec<Route>, NetlinkError> {
    let request = || Message::new(GET_ROUTE, netlink::DUMP).fixed(&[0; 12]);
    socket.dump(&request, parse).operation(|| "list the routes".to_owned())
}

/// The first route that has addresses of the range: a part of it, or a network of this machine around it. One that leads
/// to more by a router only loses these few, as is usual with routes.
pub(crate) fn overlap<'a>(routes: &'a [Route], subnet: &Subnet, own_link: Option<u32>) -> Option<&'a Route> {
    routes.iter().filter(|route| route.prefix > 0 && Some(route.link) != own_link).find(|route| {
        let inside = route.prefix >= subnet.prefix() && subnet.contains(route.destination);
        let around = Subnet::new(route.destination, route.prefix).contains(subnet.nth(0));
        inside || (around && !route.routed)
    })
}

/// The largest packet that leaves by the default route, of IPv4 if there is one.
pub(crate) fn uplink_mtu(routes: &[Route], links: &[Link]) -> Option<u32> {
    let defaults = routes.iter().filter(|route| route.prefix == 0 && route.link != 0);
    let uplink = defaults.min_by_key(|route| (route.destination.is_ipv6(), route.metric))?;
    let link = links.iter().find(|link| link.index == uplink.link)?;
    Some(uplink.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu))).filter(|mtu| *mtu > 0)
}

impl Route {
    /// For people: the range, and the link by its name.
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
        let overlaps = |routes: &[Route]| overlap(routes, &subnet, Some(7)).is_some();
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
