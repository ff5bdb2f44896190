//! What the defaults of a node make of the plainest request, and of requests that say otherwise.

use wharf_isolation::LogLimits;

use super::requests::{Case, capabilities, case, device, node, number, privileged, users, variable, words};
use super::{Asked, host};
use crate::annotations;
use crate::defaults::{self, ImageVolumes, PrivilegedDevices};
use crate::request::Switch;

pub(crate) const CASES: &[Case] = &[
    case("defaults", "variables, which the image and the request replace", |asked| {
        let pair = |name: &str| (name.to_owned(), "node".to_owned());
        asked.defaults.environment = ["A", "B", "C", "PATH"].map(pair).to_vec();
        asked.image.set_env(Some(words("B=image C=image")));
        asked.container.envs = vec![variable("C", b"asked")];
    }),
    case("defaults", "limits of the program", |asked| {
        let limits = ["nofile=1024:4096", "core=0", "memlock=-1"].map(|text| defaults::limit(text).unwrap());
        asked.defaults.limits = limits.to_vec();
    }),
    case("defaults", "other capabilities", |asked| {
        asked.defaults.capabilities = defaults::capability_set(&words("CHOWN KILL")).unwrap();
    }),
    case("defaults", "other capabilities, and one more and one less", |asked| {
        asked.defaults.capabilities = defaults::capability_set(&words("CHOWN KILL")).unwrap();
        capabilities(asked, "NET_ADMIN", "KILL", "");
    }),
    case("defaults", "capabilities that files hand on", |asked| asked.defaults.inheritable = Switch::On),
    case("defaults", "a device, and one of the request", |asked| {
        asked.defaults.devices = vec![defaults::device("/dev/fuse:r").unwrap()];
        device(asked, "rw", vec![node("/dev/kvm", 0o020_000, 10, 232)]);
        asked.facts.devices.insert(0, Ok(vec![node("/dev/fuse", 0o020_000, 10, 229)]));
    }),
    case("defaults", "a device of the user and the group", owned),
    case("defaults", "a device of the user and the group in a user namespace", |asked| {
        users(asked, 65_536);
        owned(asked);
    }),
    case("defaults", "a device of root stays its group's", |asked| {
        owned(asked);
        asked.security().run_as_user = number(0);
        asked.security().run_as_group = None;
    }),
    case("defaults", "a privileged container without nodes, to which all is allowed", |asked| {
        asked.defaults.privileged_devices = PrivilegedDevices::Allowed;
        privileged(asked);
    }),
    case("defaults", "a privileged container with the devices of any", |asked| {
        asked.defaults.privileged_devices = PrivilegedDevices::Usual;
        privileged(asked);
        device(asked, "rw", vec![node("/dev/kvm", 0o020_000, 10, 232)]);
    }),
    case("defaults", "processes", |asked| asked.defaults.pids_limit = Some(1024)),
    case("defaults", "a time zone", |asked| {
        asked.defaults.timezone = Some(host("/usr/share/zoneinfo/Europe/Berlin"));
    }),
    case("defaults", "a read-only root", |asked| asked.defaults.read_only = Switch::On),
    case("defaults", "no volumes of images", |asked| {
        asked.defaults.image_volumes = ImageVolumes::Ignore;
        asked.image.set_volumes(Some(words("/data")));
    }),
    case("defaults", "a umask in an annotation", |asked| {
        let name = annotations::UMASK.names[1];
        asked.defaults.annotations = vec![name.to_owned()];
        asked.pod.annotations = [(name.to_owned(), "027".to_owned())].into();
    }),
    case("defaults", "an annotation that is not allowed", |asked| {
        asked.pod.annotations = [(annotations::UMASK.names[1].to_owned(), "027".to_owned())].into();
    }),
    case("defaults", "limits of logs", |asked| {
        asked.defaults.log = LogLimits { line_bytes: 1024, file_bytes: 1 << 20 };
        asked.pod.log_directory = "/var/log/pods/p".to_owned();
        asked.container.log_path = "main/0.log".to_owned();
    }),
    case("defaults", "a device that is gone", |asked| {
        asked.defaults.devices = vec![defaults::device("/dev/fuse").unwrap()];
        asked.facts.devices = vec![Err(crate::Unread::invalid("No such file or directory"))];
    }),
];

/// A container of a user, with a device, where devices belong to users.
fn owned(asked: &mut Asked) {
    asked.defaults.users_devices = Switch::On;
    asked.security().run_as_user = number(1000);
    asked.security().run_as_group = number(2000);
    device(asked, "rw", vec![node("/dev/kvm", 0o020_000, 10, 232)]);
}
