//! The values of command-line arguments, each checked when it is parsed.

use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use wharf_cri_api::v1::{IdMapping, ImageSpec, KeyValue, Mount, MountPropagation, PortMapping, Protocol};
use wharf_types::{IdRange, Reference, ReferenceError};

/// The address of wharfd's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Socket(PathBuf);

impl Socket {
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl FromStr for Socket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if path.is_empty() || path.contains("://") {
            return Err("it must be a path, or unix:// and a path".into());
        }
        std::path::absolute(path).map(Self).map_err(|error| error.to_string())
    }
}

/// A name that an image can be given: with a tag, and without a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageName(pub(crate) String);

impl FromStr for ImageName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name: Reference = text.parse().map_err(|error: ReferenceError| error.to_string())?;
        name.tagged().map(Self).ok_or_else(|| "an image's digest cannot be chosen: give it a tag".to_owned())
    }
}

/// The name of a pod and of its container. It becomes the pod's hostname and a part of paths, and a `/` in it would
/// separate the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(pub(crate) String);

impl Name {
    /// The longest hostname, in bytes.
    pub(crate) const LIMIT_BYTES: usize = 64;
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if matches!(text, "" | "." | "..") || text.len() > Self::LIMIT_BYTES {
            return Err(format!("it must have 1 to {} bytes, such as web", Self::LIMIT_BYTES));
        }
        match text.chars().find(|&c| c == '/' || c.is_control()) {
            Some(bad) => Err(format!("it must not contain {bad:?}")),
            None => Ok(Self(text.to_owned())),
        }
    }
}

/// `[[IP:]HOST:]POD[/udp|tcp|sctp]`; HOST and POD may each be a range such as `8000-8010`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Publish(pub(crate) Vec<PortMapping>);

/// A port of this machine and the port of a pod to which it is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) here: u16,
    pub(crate) pod: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (here, pod) = text.split_once(':').unwrap_or((text, text));
        let number = |text: &str| text.parse::<u16>().map_err(|_bad| format!("{text:?} is not a port"));
        match number(pod)? {
            0 => Err("port 0 of a pod cannot be forwarded".to_owned()),
            pod => Ok(Self { here: number(here)?, pod }),
        }
    }
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(format!("{other:?} is not tcp, udp or sctp")),
        };
        let (host, pod) = ports.rsplit_once(':').unwrap_or(("", ports));
        let (ip, host) = host.rsplit_once(':').unwrap_or(("", host));
        let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            return Err(format!("{ip:?} is not an IP address"));
        }
        let pod = range(pod)?;
        let host = if host.is_empty() { free(ip, protocol, pod.len())? } else { range(host)?.collect() };
        if host.len() != pod.len() {
            return Err(format!(
                "{} ports of this machine cannot be mapped to {} ports of the pod",
                host.len(),
                pod.len()
            ));
        }
        let mapping = |(host, pod): (u16, u16)| PortMapping {
            protocol: protocol.into(),
            container_port: pod.into(),
            host_port: host.into(),
            host_ip: ip.to_owned(),
        };
        Ok(Self(host.into_iter().zip(pod).map(mapping).collect()))
    }
}

/// Parses a port or a range of ports.
fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{text:?} is not a port between 1 and 65535")),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match port(first)?..=port(last)? {
        empty if empty.is_empty() => Err(format!("{text:?} ends before it begins")),
        range => Ok(range),
    }
}

/// Finds `count` ports of this machine on which nothing listens.
fn free(ip: &str, protocol: Protocol, count: usize) -> Result<Vec<u16>, String> {
    let ip = if ip.is_empty() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        ip.parse::<IpAddr>().map_err(|error| error.to_string())?
    };
    let none = |error: std::io::Error| format!("this machine has no free port: {error}");
    // All of them are kept open until the last is found, so that none is found twice.
    match protocol {
        Protocol::Udp => {
            let held: Result<Vec<_>, _> = (0..count).map(|_| UdpSocket::bind((ip, 0))).collect();
            held.map_err(none)?
                .iter()
                .map(|socket| socket.local_addr().map(|at| at.port()).map_err(none))
                .collect()
        }
        Protocol::Tcp | Protocol::Sctp => {
            let held: Result<Vec<_>, _> = (0..count).map(|_| TcpListener::bind((ip, 0))).collect();
            held.map_err(none)?
                .iter()
                .map(|socket| socket.local_addr().map(|at| at.port()).map_err(none))
                .collect()
        }
    }
}

/// `FROM:TO[:OPTION,...]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Volume(pub(crate) Mount);

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':');
        let (Some(from), Some(to), options) = (parts.next(), parts.next(), parts.next()) else {
            return Err("write FROM:TO or FROM:TO:ro".into());
        };
        if !to.starts_with('/') {
            return Err(format!("the path in the container, {to:?}, must begin with /"));
        }
        // docker would take a bare word for a named volume, so it must not become a directory by accident.
        if !from.starts_with(['/', '.']) {
            return Err(format!(
                "wharf has no named volumes: write the path of a directory, such as ./{from} or /srv/{from}"
            ));
        }
        let from = std::fs::canonicalize(from)
            .map_err(|error| format!("{from}: {error}; create it first: mkdir -p {from}"))?;
        let host_path = from.to_str().ok_or_else(|| format!("{} is not UTF-8", from.display()))?.to_owned();
        let mut mount = Mount { host_path, container_path: to.to_owned(), ..Mount::default() };
        for option in options.into_iter().flat_map(|options| options.split(',')) {
            change(&mut mount, option)?;
        }
        Ok(Self(mount))
    }
}

/// `type=image,source=IMAGE,target=TO[,subpath=PATH]`, spelled as in docker and podman.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ImageMount {
    pub(crate) image: String,
    target: String,
    sub_path: String,
}

impl ImageMount {
    /// The mount in a request.
    pub(crate) fn mount(&self) -> Mount {
        Mount {
            container_path: self.target.clone(),
            readonly: true,
            image: Some(ImageSpec { image: self.image.clone(), ..ImageSpec::default() }),
            image_sub_path: self.sub_path.clone(),
            ..Mount::default()
        }
    }
}

impl FromStr for ImageMount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut kind, mut image, mut target, mut sub_path) = (None, None, None, None);
        for option in text.split(',') {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let place = match key {
                "type" => &mut kind,
                "source" | "src" => &mut image,
                "target" | "destination" | "dst" => &mut target,
                "subpath" | "image-subpath" => &mut sub_path,
                "readonly" | "ro" if matches!(value, "" | "true") => continue,
                _ => return Err(format!("{option:?} is not one of type, source, target, subpath, readonly")),
            };
            *place = Some(value).filter(|value| !value.is_empty());
        }
        match kind {
            Some("image") => {}
            Some("bind") => return Err("mount a directory of this machine with --volume FROM:TO".into()),
            _ => return Err("write type=image; directories of this machine are mounted with --volume".into()),
        }
        let image = image.ok_or("write source=IMAGE")?.to_owned();
        let target = target.ok_or("write target=TO, the path in the container")?.to_owned();
        if !target.starts_with('/') {
            return Err(format!("the path in the container, {target:?}, must begin with /"));
        }
        Ok(Self { image, target, sub_path: sub_path.unwrap_or_default().to_owned() })
    }
}

/// Applies a mount option, spelled as in docker.
fn change(mount: &mut Mount, option: &str) -> Result<(), String> {
    match option {
        "rw" => mount.readonly = false,
        "ro" => mount.readonly = true,
        "z" | "Z" => mount.selinux_relabel = true,
        "private" | "rprivate" => mount.propagation = MountPropagation::PropagationPrivate.into(),
        "slave" | "rslave" => mount.propagation = MountPropagation::PropagationHostToContainer.into(),
        "shared" | "rshared" => mount.propagation = MountPropagation::PropagationBidirectional.into(),
        other => return Err(format!("{other:?} is not one of ro, rw, z, Z, rprivate, rslave, rshared")),
    }
    Ok(())
}

/// `NAME=VALUE`, or `NAME` to take the value from the environment of wharf.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Env(pub(crate) KeyValue);

impl FromStr for Env {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, value.to_owned()),
            None => {
                let value = std::env::var(text);
                (
                    text,
                    value.map_err(|_unset| {
                        format!("{text} is not set in the environment: write {text}=VALUE")
                    })?,
                )
            }
        };
        if key.is_empty() {
            return Err("the variable has no name".into());
        }
        Ok(Self(KeyValue { key: key.to_owned(), value: value.into_bytes() }))
    }
}

/// A size in bytes: `256m`, `2g`; the units are powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) i64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match &lower[digits.len()..] {
            "" | "b" => 0,
            "k" | "kb" | "ki" | "kib" => 10,
            "m" | "mb" | "mi" | "mib" => 20,
            "g" | "gb" | "gi" | "gib" => 30,
            "t" | "tb" | "ti" | "tib" => 40,
            unit => return Err(format!("{unit:?} is not k, m, g or t")),
        };
        let number: i64 = digits.parse().map_err(|_malformed| "write a number and a unit, such as 256m")?;
        let bytes = number.checked_mul(1 << shift).filter(|&bytes| bytes > 0);
        bytes.map(Self).ok_or_else(|| "it must be more than 0, and less than 8 million terabytes".into())
    }
}

/// A number of CPUs, as a quota per period of [`Cpus::PERIOD_US`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cpus {
    pub(crate) quota_us: i64,
}

impl Cpus {
    /// The kernel's default.
    pub(crate) const PERIOD_US: i64 = 100_000;
    /// The kernel accepts no smaller quota.
    const MIN_US: f64 = 1000.0;
    const MAX_US: f64 = 100_000.0 * 8192.0;
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number: f64 = text.parse().map_err(|_malformed| "write a number, such as 1.5")?;
        let quota = (number * 100_000.0).round();
        if !(Self::MIN_US..=Self::MAX_US).contains(&quota) {
            return Err("it must be between 0.01 and 8192".into());
        }
        #[expect(clippy::cast_possible_truncation, reason = "a whole number within the range above")]
        Ok(Self { quota_us: quota as i64 })
    }
}

/// The ids of a user namespace on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Users {
    /// Some that no account has.
    Any,
    /// Those of the range.
    Of(IdRange),
}

impl Users {
    /// As many as programs expect: the accounts of a distribution end with 65534.
    const COUNT: u32 = 1 << 16;
    /// From here to 0x7fff0000, nothing else assigns ids: systemd's UIDS-GIDS.
    const FIRST: u32 = 0x7000_0000;

    /// The mapping; a random number chooses among those that nobody else has.
    pub(crate) fn mapping(self, random: u16) -> IdMapping {
        let (host_id, length) = match self {
            Self::Any => (Self::FIRST + Self::COUNT * u32::from(random % 0x0fff), Self::COUNT),
            Self::Of(range) => (range.first(), range.count()),
        };
        IdMapping { host_id, container_id: 0, length }
    }
}

impl FromStr for Users {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "any" {
            return Ok(Self::Any);
        }
        let number = |text: &str| {
            let number = text.parse::<u32>();
            number.map_err(|_malformed| "write a number, or a number and a count, such as 100000:65536")
        };
        let (first, count) = match text.split_once(':') {
            Some((first, count)) => (number(first)?, number(count)?),
            None => (number(text)?, Self::COUNT),
        };
        IdRange::new(first, count).map(Self::Of).map_err(|error| error.to_string())
    }
}

/// `USER[:GROUP]`; the group must be a number, because only the image knows the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) user: UserName,
    pub(crate) group: Option<i64>,
}

/// A user, by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UserName {
    Id(i64),
    Name(String),
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        if user.is_empty() {
            return Err("write USER or USER:GROUP".into());
        }
        let group = group.map(|group| {
            group
                .parse::<u32>()
                .map(i64::from)
                .map_err(|_name| format!("the group {group:?} must be a number"))
        });
        let user = match user.parse::<u32>() {
            Ok(id) => UserName::Id(id.into()),
            Err(_name) => UserName::Name(user.to_owned()),
        };
        Ok(Self { user, group: group.transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_paths_or_addresses() {
        let path = |text: &str| text.parse::<Socket>().unwrap().path().to_owned();
        assert_eq!(path("unix:///run/w.sock"), path("/run/w.sock"));
        assert!(path("w.sock").is_absolute());
        for bad in ["", "unix://", "tcp://127.0.0.1:1"] {
            assert!(bad.parse::<Socket>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_can_be_a_hostname_and_a_directory() {
        let longest = "n".repeat(Name::LIMIT_BYTES);
        for good in ["web", "Web_1.a-b", &longest] {
            assert_eq!(good.parse(), Ok(Name(good.to_owned())));
        }
        for (bad, words) in [
            ("", "1 to 64 bytes"),
            ("..", "1 to 64 bytes"),
            (&*"n".repeat(300), "1 to 64 bytes"),
            ("../../x", "contain '/'"),
            ("a\nb", "contain '\\n'"),
        ] {
            let refused = bad.parse::<Name>().unwrap_err();
            assert!(refused.contains(words), "{bad:?}: {refused}");
        }
    }

    #[test]
    fn ports_are_published() {
        let port = |text: &str| {
            let port = text.parse::<Publish>().unwrap().0.remove(0);
            (port.host_ip.clone(), port.host_port, port.container_port, port.protocol())
        };
        assert_eq!(port("8080:80"), (String::new(), 8080, 80, Protocol::Tcp));
        assert_eq!(port("53:5353/UDP"), (String::new(), 53, 5353, Protocol::Udp));
        assert_eq!(port("127.0.0.1:1:2"), ("127.0.0.1".into(), 1, 2, Protocol::Tcp));
        assert_eq!(port("[::1]:1:2/sctp"), ("::1".into(), 1, 2, Protocol::Sctp));
        for bad in ["", "0:80", "80:65536", "a:80", "x:1:2", "1:2/icmp", "80-70:80", "8000-8001:80", "1-:80"]
        {
            assert!(bad.parse::<Publish>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_of_ports_are_published_side_by_side_and_free_ones_found() {
        let ports = |text: &str| -> Vec<(i32, i32)> {
            let all = text.parse::<Publish>().unwrap().0;
            all.iter().map(|port| (port.host_port, port.container_port)).collect()
        };
        assert_eq!(ports("8000-8002:80-82"), [(8000, 80), (8001, 81), (8002, 82)]);
        for text in ["80-81", "127.0.0.1::80-81/udp"] {
            let free = ports(text);
            assert!(
                free.len() == 2 && free[0].0 > 0 && free[0].0 != free[1].0 && free[1].1 == 81,
                "{free:?}"
            );
        }
    }

    #[test]
    fn forwarded_ports_are_one_or_two() {
        assert_eq!("80".parse(), Ok(Ports { here: 80, pod: 80 }));
        assert_eq!("0:80".parse(), Ok(Ports { here: 0, pod: 80 }));
        for bad in ["", "0", "8080:0", "x:80", "80:65536", "1:2:3"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_image_is_mounted_as_in_docker() {
        let mount = |text: &str| text.parse::<ImageMount>().map(|mount| mount.mount());
        let asked = mount("type=image,src=localhost:5000/a:1,dst=/data,subpath=etc,readonly").unwrap();
        assert_eq!(asked.image.as_ref().unwrap().image, "localhost:5000/a:1");
        assert_eq!((asked.container_path.as_str(), asked.image_sub_path.as_str()), ("/data", "etc"));
        assert!(asked.readonly && asked.host_path.is_empty());
        assert_eq!(mount("source=a,type=image,target=/b").unwrap().image_sub_path, "");
        for (bad, words) in [
            ("source=a,target=/b", "type=image"),
            ("type=bind,source=/a,target=/b", "--volume"),
            ("type=image,target=/b", "source"),
            ("type=image,source=a", "target"),
            ("type=image,source=a,target=b", "begin with /"),
            ("type=image,source=a,target=/b,ro=false", "ro=false"),
            ("type=image,source=a,target=/b,size=5", "size=5"),
            ("", "is not one of"),
        ] {
            let error = mount(bad).unwrap_err();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }

    #[test]
    fn volumes_name_what_exists() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().to_str().unwrap();
        let volume = format!("{from}:/data:ro").parse::<Volume>().unwrap().0;
        assert_eq!((volume.container_path.as_str(), volume.readonly), ("/data", true));
        assert!(!format!("{from}:/data").parse::<Volume>().unwrap().0.readonly);
        for bad in ["", "/", "/:data", "/:/data:rx", "/:/data:ro:x", "data:/data"] {
            assert!(bad.parse::<Volume>().is_err(), "{bad}");
        }
        let mount = format!("{from}:/data:ro,Z,rslave").parse::<Volume>().unwrap().0;
        assert!(mount.readonly && mount.selinux_relabel, "{mount:?}");
        assert_eq!(mount.propagation(), MountPropagation::PropagationHostToContainer);
        let named = "data:/data".parse::<Volume>().unwrap_err();
        assert!(named.contains("./data"), "{named}");
        let missing = format!("{from}/no:/data").parse::<Volume>().unwrap_err();
        assert!(missing.contains("mkdir"), "{missing}");
    }

    #[test]
    fn variables_have_names_and_values() {
        let env = |text: &str| text.parse::<Env>().map(|env| (env.0.key, env.0.value));
        assert_eq!(env("A=b=c"), Ok(("A".into(), b"b=c".into())));
        assert_eq!(env("A="), Ok(("A".into(), Vec::new())));
        assert_eq!(env("PATH").unwrap().1, std::env::var("PATH").unwrap().into_bytes());
        assert!(env("=b").is_err() && env("WHARF_NO_SUCH_VARIABLE").is_err());
    }

    #[test]
    fn sizes_have_units() {
        let bytes = |text: &str| text.parse::<Bytes>().map(|bytes| bytes.0);
        assert_eq!(bytes("256m"), Ok(256 << 20));
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        assert_eq!(bytes("4096"), Ok(4096));
        for bad in ["", "m", "0", "-1m", "1x", "1.5g", "9999999999t"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn processors_are_a_quota() {
        let quota = |text: &str| text.parse::<Cpus>().map(|cpus| cpus.quota_us);
        assert_eq!((quota("1.5"), quota("0.01")), (Ok(150_000), Ok(1000)));
        for bad in ["", "0", "-1", "nan", "1e9", "two"] {
            assert!(quota(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users_are_names_or_numbers() {
        let user = |text: &str| text.parse::<User>();
        assert_eq!(user("7:8"), Ok(User { user: UserName::Id(7), group: Some(8) }));
        assert_eq!(user("redis"), Ok(User { user: UserName::Name("redis".into()), group: None }));
        assert!(user("").is_err() && user(":8").is_err() && user("7:staff").is_err());
    }
}
