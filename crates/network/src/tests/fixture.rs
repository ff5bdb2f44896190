//! A host in its own network namespace, and pods in others.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use wharf_types::PodId;

use crate::netlink::{Family, Socket};
use crate::{
    Attachment, Builtin, BuiltinConfig, Config, Dns, Error, Mode, Network, PodAddresses, PortMapping,
    Protocol,
};
use crate::{link, netns};

pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// The directories and configuration of a host; the test's thread is inside its namespace.
pub(super) struct Host {
    pub(super) dir: tempfile::TempDir,
    pub(super) config: Config,
}

impl Host {
    pub(super) fn new(mode: Mode) -> Self {
        Self::with_subnets(mode, "10.88.0.0/24,fd00:88::/64")
    }

    pub(super) fn with_subnets(mode: Mode, subnets: &str) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        link::set_up(&Socket::open(Family::Route).unwrap(), link::LOOPBACK).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            state_dir: dir.path().join("state"),
            lease_dir: dir.path().join("run/leases"),
            cni_conf_dir: dir.path().join("net.d"),
            cni_bin_dirs: vec![dir.path().join("bin")],
            cni_add_deadline: Config::ADD_DEADLINE,
            cni_delete_deadline: Config::DELETE_DEADLINE,
            builtin: Builtin::Auto,
            builtin_network: BuiltinConfig {
                mode,
                bridge: "wharf0".into(),
                subnets: subnets.parse().unwrap(),
                cluster_subnets: Vec::new(),
                mtu: None,
            },
            kubelet_files: vec![dir.path().join("kubelet.conf")],
        };
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        Self { dir, config }
    }

    /// Loses what says which pods are attached.
    pub(super) fn lose_leases(&self) {
        std::fs::remove_dir_all(&self.config.lease_dir).unwrap();
    }

    pub(super) fn network(&self) -> Network {
        Network::open(self.config.clone()).unwrap()
    }
}

/// A pod: an id and a namespace, which exists as long as this.
pub(super) struct Pod {
    pub(super) id: PodId,
    pub(super) netns: OwnedFd,
    pub(super) annotations: BTreeMap<String, String>,
}

impl Pod {
    pub(super) fn new(number: u8) -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            netns::open(std::path::Path::new("/proc/thread-self/ns/net")).unwrap()
        };
        let netns = std::thread::spawn(make).join().unwrap();
        Self { id: id(number), netns, annotations: BTreeMap::new() }
    }

    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.netns.as_raw_fd()).into()
    }

    pub(super) fn attach(&self, network: &Network) -> Result<PodAddresses, Error> {
        self.attach_with(network, &[])
    }

    pub(super) fn attach_with(
        &self,
        network: &Network,
        ports: &[PortMapping],
    ) -> Result<PodAddresses, Error> {
        self.ask(ports, |attachment| network.attach(attachment))
    }

    /// Looks for the addresses of a pod whose record is lost.
    pub(super) fn adopt(&self, network: &Network) -> Result<Option<PodAddresses>, Error> {
        self.ask(&[], |attachment| network.adopt(attachment))
    }

    fn ask<T>(&self, ports: &[PortMapping], ask: impl FnOnce(&Attachment<'_>) -> T) -> T {
        let pin = self.path();
        ask(&Attachment {
            id: &self.id,
            name: "pod",
            namespace: "space",
            uid: "uid",
            netns: self.netns.as_fd(),
            pin: &pin,
            ports,
            annotations: &self.annotations,
            dns: Dns { servers: &["10.0.0.10".to_owned()], ..Dns::default() },
            cgroup_parent: "/kubepods/pod1",
        })
    }

    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::inside(&self.netns, work).unwrap()
    }

    /// Serves TCP connections: each client is sent its own address. Ends with the test's process.
    pub(super) fn serve(&self, port: u16) {
        let listener = self.inside(|| TcpListener::bind(("::", port)).unwrap());
        std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                stream.write_all(peer.ip().to_canonical().to_string().as_bytes()).ok();
            }
        });
    }

    /// Answers one UDP packet with its source address.
    pub(super) fn serve_udp(&self, port: u16) {
        drop(self.answer_udp(port, |peer| peer.ip().to_string()));
    }

    /// Answers one UDP packet on a thread, which then closes the port.
    pub(super) fn answer_udp(
        &self,
        port: u16,
        answer: impl FnOnce(SocketAddr) -> String + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        let socket = self.inside(|| UdpSocket::bind(("0.0.0.0", port)).unwrap());
        std::thread::spawn(move || {
            let (_len, peer) = socket.recv_from(&mut [0; 10]).unwrap();
            socket.send_to(answer(peer).as_bytes(), peer).unwrap();
        })
    }
}

/// Runs a command on the host, which must succeed, and returns its output.
#[expect(clippy::disallowed_methods, reason = "what others do to a machine is done as they do it")]
pub(super) fn sh(line: &str) -> String {
    let output = std::process::Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Has a socket of its own ask a UDP server until it answers once; returns the answer. The socket keeps its port.
/// Packets sent while the link of a pod comes up may be lost.
pub(super) fn knock(socket: &UdpSocket, server: SocketAddr) -> String {
    socket.set_read_timeout(Some(LIMIT / 50)).unwrap();
    let start = Instant::now();
    let mut answer = [0; 100];
    loop {
        socket.send_to(b"?", server).unwrap();
        if let Ok((len, _peer)) = socket.recv_from(&mut answer) {
            return String::from_utf8_lossy(&answer[..len]).into_owned();
        }
        assert!(start.elapsed() < LIMIT, "{server} does not answer");
    }
}

pub(super) fn id(number: u8) -> PodId {
    PodId::from_random([number; 32])
}

/// Connects from the thread's namespace, and returns the address that the server saw.
pub(super) fn ask(ip: IpAddr, port: u16) -> std::io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, port), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen)?;
    seen.parse().map_err(std::io::Error::other)
}

pub(super) fn ask_udp(ip: IpAddr, port: u16) -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.send_to(b"?", (ip, port))?;
    let mut answer = [0; 100];
    let (len, _peer) = socket.recv_from(&mut answer)?;
    String::from_utf8_lossy(&answer[..len]).parse().map_err(std::io::Error::other)
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn tcp(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol: Protocol::Tcp, container_port, host_port, host_ip: None }
}

/// The names of the pods' host ends.
pub(super) fn pod_links() -> Vec<String> {
    let links = link::list(&Socket::open(Family::Route).unwrap()).unwrap();
    let is_pods = |link: &link::Link| link.kind == "veth" && link.name.starts_with("wh");
    links.into_iter().filter(is_pods).map(|link| link.name).collect()
}

/// Whether the place where pods find the host exists: the bridge, or the gateway's address.
pub(super) fn has_gateway(mode: Mode) -> bool {
    match mode {
        Mode::Routed => sh(
            "ip -o address show dev lo; for family in -4 -6; do ip $family route show type unreachable; done",
        )
        .contains("88"),
        Mode::Bridge => link::index("wharf0").unwrap().is_some(),
    }
}

/// A neighbour of the host in the network 192.0.2.0/24: the host is .1, the neighbour is .2 and has the host as its
/// router.
pub(super) fn neighbour() -> Pod {
    let pod = Pod::new(0xee);
    let netns = pod.path().display().to_string();
    sh(&format!(
        "ip link add lan0 type bridge; ip address add 192.0.2.1/24 dev lan0; ip link set lan0 up
         ip link add lan1 type veth peer name lan2; ip link set lan1 up master lan0; ip link set lan2 netns {netns}"
    ));
    pod.inside(|| {
        sh("ip link set lo up; ip link set lan2 name eth0; ip link set eth0 up
            ip address add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1")
    });
    pod
}
