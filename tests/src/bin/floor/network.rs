//! A pod's network: a namespace with `lo` and `eth0`, and a route to it. Routed, without a bridge: a bridge takes
//! longer the more ports it has.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::Context;
use nix::sched::{CloneFlags, unshare};

use crate::machine::{Machine, namespace};
use crate::messages::{Batch, Socket};
use crate::stages::{Laps, Whole, stage};

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_NEIGHBOUR: u16 = 28;

const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_INFO: u16 = 18;
const LINK_NETNS_FD: u16 = 28;
const LINK_TX_QUEUES: u16 = 31;
const LINK_RX_QUEUES: u16 = 32;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;

const LOOPBACK: u32 = 1;
/// The interface index of the pod's end, beyond any tunnels that the kernel adds to each namespace.
const ETH0: u32 = 100;
/// The first interface index for the host's ends, beyond those that others use.
const FIRST_HOST_END: u32 = 1 << 20;
const HOST_HARDWARE: [u8; 6] = [2, 0x66, 0, 0, 0, 1];
const GATEWAY: [u8; 4] = [169, 254, 1, 1];

const FLAG_UP: u32 = 1;
const SCOPE_LINK: u8 = 253;
const PERMANENT: u16 = 0x80;

/// A pod's namespaces. They last as long as this value.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pub(crate) net: File,
    pub(crate) ipc: File,
    pub(crate) uts: File,
}

/// Makes the namespaces and the network, and returns to the host's namespaces.
pub(crate) fn make(machine: &Machine, number: u32, laps: &mut Laps<'_>) -> anyhow::Result<Namespaces> {
    laps.skip();
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    laps.ended(stage(Whole::PodUp, "network namespace"));
    unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS).context("make namespaces of IPC and UTS")?;
    nix::unistd::sethostname("floor").context("set the hostname")?;
    let namespaces = Namespaces { net: namespace("net")?, ipc: namespace("ipc")?, uts: namespace("uts")? };
    let inside = Socket::open()?;
    machine.come_back()?;
    laps.ended(stage(Whole::PodUp, "namespaces of IPC and UTS, descriptors"));
    machine.links.request(&host_end(number, &namespaces.net))?;
    laps.ended(stage(Whole::PodUp, "routed veth with one queue"));
    inside.request(&pod_end(number))?;
    laps.ended(stage(Whole::PodUp, "lo, eth0, address, routes"));
    Ok(namespaces)
}

/// Creates the pair, sets the host's end up, and adds the route to the pod through it.
fn host_end(number: u32, netns: &File) -> Batch {
    let mut batch = Batch::default();
    let one = 1_u32.to_ne_bytes();
    let index = FIRST_HOST_END + number;
    batch.create(NEW_LINK, &link(index, FLAG_UP), |host| {
        host.put(LINK_NAME, format!("floor{number}\0").as_bytes());
        host.put(LINK_ADDRESS, &HOST_HARDWARE);
        host.put(LINK_TX_QUEUES, &one);
        host.put(LINK_RX_QUEUES, &one);
        host.nest(LINK_INFO, &[], |info| {
            info.put(INFO_KIND, b"veth");
            info.nest(INFO_DATA, &[], |data| {
                data.nest(VETH_PEER, &link(ETH0, 0), |peer| {
                    peer.put(LINK_NAME, b"eth0\0");
                    peer.put(LINK_TX_QUEUES, &one);
                    peer.put(LINK_RX_QUEUES, &one);
                    peer.put(LINK_NETNS_FD, &netns.as_raw_fd().to_ne_bytes());
                });
            });
        });
    });
    batch.create(NEW_ROUTE, &route(32, SCOPE_LINK), |route| {
        route.put(1, &address(number));
        route.put(4, &index.to_ne_bytes());
    });
    batch
}

/// Sets both links up, and adds the address and the default route. The gateway is not a host, only the other end of the
/// pair.
fn pod_end(number: u32) -> Batch {
    let mut batch = Batch::default();
    let eth0 = ETH0.to_ne_bytes();
    batch.change(NEW_LINK, &link(LOOPBACK, FLAG_UP));
    batch.change(NEW_LINK, &link(ETH0, FLAG_UP));
    let [a, b, c, d] = eth0;
    batch.create(NEW_ADDRESS, &[2, 32, 0, 0, a, b, c, d], |made| {
        made.put(1, &address(number));
        made.put(2, &address(number));
    });
    let [low, high] = PERMANENT.to_ne_bytes();
    batch.create(NEW_NEIGHBOUR, &[2, 0, 0, 0, a, b, c, d, low, high, 0, 0], |gateway| {
        gateway.put(1, &GATEWAY);
        gateway.put(2, &HOST_HARDWARE);
    });
    batch.create(NEW_ROUTE, &route(32, SCOPE_LINK), |to_gateway| {
        to_gateway.put(1, &GATEWAY);
        to_gateway.put(4, &eth0);
    });
    batch.create(NEW_ROUTE, &route(0, 0), |default| {
        default.put(5, &GATEWAY);
        default.put(4, &eth0);
    });
    batch
}

fn address(number: u32) -> [u8; 4] {
    let [_, _, high, low] = number.to_be_bytes();
    [198, 18, high, low]
}

/// A `struct ifinfomsg`: family and type, index, flags, and which flags change.
fn link(index: u32, flags: u32) -> Vec<u8> {
    [0, index, flags, flags].map(u32::to_ne_bytes).concat()
}

/// A `struct rtmsg` for a unicast IPv4 route in the main table, with protocol `boot`.
fn route(prefix: u8, scope: u8) -> [u8; 12] {
    [2, prefix, 0, 0, 254, 3, scope, 1, 0, 0, 0, 0]
}
