//! What this machine adds to containers, devices and hooks: the results are saved as text, as those of requests are.

use serde_json::{Value, json};
use wharf_cri_api::v1::{Int64Value, KeyValue};
use wharf_sys::mount::Propagation;

use super::Asked;
use super::requests::{Case, case, mount, plain_mount, privileged, users, words};
use crate::cdi::File;

pub(crate) const CASES: &[Case] = &[
    case("additions", "a device of a vendor", |asked| {
        let node = json!({"path": "/dev/gpu0", "type": "c", "major": 195, "minor": 0, "fileMode": 0o660});
        add(asked, &json!({"deviceNodes": [node], "env": ["GPU=0", "PATH=/gpu/bin"]}));
    }),
    case("additions", "a device with all that is said of its owner and permissions", |asked| {
        let node = json!({"path": "/dev/../dev/disk", "type": "b", "major": 8, "minor": 1, "permissions": "r",
            "uid": 7, "gid": 8});
        add(asked, &json!({"deviceNodes": [node]}));
    }),
    case("additions", "a device belongs to the program's user", |asked| {
        asked.security().run_as_user = Some(Int64Value { value: 1000 });
        add(asked, &json!({"deviceNodes": [{"path": "/dev/x", "type": "u", "major": 1, "minor": 2}]}));
    }),
    case("additions", "a device that the cgroup does not allow", |asked| {
        let node = json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 2, "permissions": "none"});
        add(asked, &json!({"deviceNodes": [node]}));
    }),
    case("additions", "the later of two devices with one path counts", |asked| {
        let node = |minor: u32| json!({"path": "/dev/x", "type": "c", "major": 1, "minor": minor});
        add(asked, &json!({"deviceNodes": [node(1)]}));
        add(asked, &json!({"deviceNodes": [node(2)]}));
    }),
    case("additions", "a device for a privileged container", |asked| {
        privileged(asked);
        add(asked, &json!({"deviceNodes": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 2}]}));
    }),
    case("additions", "a device in a user namespace", |asked| {
        users(asked, 65_536);
        let node = json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 2, "uid": 5});
        add(asked, &json!({"deviceNodes": [node]}));
    }),
    case("additions", "groups, each once", |asked| {
        asked.security().supplemental_groups = vec![7];
        add(asked, &json!({"additionalGids": [0, 7, 44, 44]}));
    }),
    case("additions", "a variable whose value was not text", |asked| {
        asked.container.envs = vec![KeyValue { key: "RAW".to_owned(), value: b"\xff".to_vec() }];
        add(asked, &json!({"env": ["RAW=text"]}));
    }),
    case("additions", "mounts come before those below them", |asked| {
        bound(asked, "/lib/deep/er");
        let of_vendor = |place: &str, options: &[&str]| json!({"hostPath": "/vendor", "containerPath": place, "options": options});
        let options = ["ro", "nosuid", "nodev", "rbind", "rprivate"];
        let mounts =
            [of_vendor("/lib/deep", &options), of_vendor("/lib", &["bind"]), of_vendor("/usr/../opt", &[])];
        add(asked, &json!({"mounts": mounts}));
    }),
    case("additions", "a mount in place of another", |asked| {
        asked.image.set_volumes(Some(words("/data")));
        bound(asked, "/of-the-request");
        let of_vendor =
            |place: &str| json!({"hostPath": "/vendor", "containerPath": place, "options": ["rbind"]});
        add(
            asked,
            &json!({"mounts": [of_vendor("/data"), of_vendor("/of-the-request"), of_vendor("/etc/hosts")]}),
        );
    }),
    case("additions", "a file system in memory", |asked| {
        let options = ["size=1m", "mode=700", "noexec"];
        let mount =
            json!({"hostPath": "tmpfs", "containerPath": "/scratch", "type": "tmpfs", "options": options});
        add(asked, &json!({"mounts": [mount]}));
    }),
    case("additions", "hooks", |asked| {
        let hook = |point: &str| json!({"hookName": point, "path": "/bin/hook", "args": ["hook", point]});
        let all = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
        let mut hooks: Vec<_> = all.map(hook).into();
        hooks.push(json!({"hookName": "poststop", "path": "/bin/x", "env": ["A=b"], "timeout": 3}));
        add(asked, &json!({"hooks": hooks}));
    }),
    case("unfit", "a device whose numbers nobody says", |asked| {
        add(asked, &json!({"deviceNodes": [{"path": "/dev/x", "type": "c"}]}));
    }),
    case("unfit", "a device whose type nobody says", |asked| {
        add(asked, &json!({"deviceNodes": [{"path": "/dev/x", "major": 1, "minor": 2}]}));
    }),
    case("unfit", "a pipe", |asked| add(asked, &json!({"deviceNodes": [{"path": "/dev/x", "type": "p"}]}))),
    case("unfit", "a device beside /dev in a user namespace", |asked| {
        users(asked, 65_536);
        add(asked, &json!({"deviceNodes": [{"path": "/x", "type": "c", "major": 1, "minor": 2}]}));
    }),
    case("unfit", "an owner that the user namespace has not", |asked| {
        users(asked, 5);
        let node = json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 2, "gid": 5});
        add(asked, &json!({"deviceNodes": [node]}));
    }),
    case("unfit", "an owner that is nobody", |asked| {
        let node = json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 2, "uid": u32::MAX});
        add(asked, &json!({"deviceNodes": [node]}));
    }),
    case("unfit", "a group that is none", |asked| add(asked, &json!({"additionalGids": [44, u32::MAX]}))),
    case("unfit", "a mount over the root", |asked| {
        add(asked, &json!({"mounts": [{"hostPath": "/", "containerPath": "/usr/../.."}]}));
    }),
    case("unfit", "a mount of what is not absolute", |asked| {
        add(asked, &json!({"mounts": [{"hostPath": "../etc", "containerPath": "/x"}]}));
    }),
    case("unfit", "a mount at what is not absolute", |asked| {
        add(asked, &json!({"mounts": [{"hostPath": "/etc", "containerPath": "x"}]}));
    }),
    case("unfit", "a mount with an unknown option", |asked| {
        let mount = json!({"hostPath": "/etc", "containerPath": "/x", "options": ["rbind", "noatime"]});
        add(asked, &json!({"mounts": [mount]}));
    }),
    case("unfit", "a mount of an unknown type", |asked| {
        add(asked, &json!({"mounts": [{"hostPath": "x", "containerPath": "/x", "type": "overlay"}]}));
    }),
    case("unfit", "a link of the host's network", |asked| {
        add(asked, &json!({"netDevices": [{"hostInterfaceName": "eth1", "name": "net1"}]}));
    }),
    case("unfit", "a class of the cache", |asked| add(asked, &json!({"intelRdt": {"closID": "gold"}}))),
    case("unfit", "a hook inside the container", |asked| {
        add(asked, &json!({"hooks": [{"hookName": "startContainer", "path": "/bin/hook"}]}));
    }),
    case("unfit", "a hook without an end", |asked| {
        add(asked, &json!({"hooks": [{"hookName": "poststop", "path": "/bin/hook", "timeout": 86_400}]}));
    }),
];

/// Adds a device with these edits.
fn add(asked: &mut Asked, edits: &Value) {
    let device = json!({"name": "0", "containerEdits": edits});
    let file = json!({"cdiVersion": "1.1.0", "kind": "vendor.com/gpu", "devices": [device]});
    let file = File::parse(file).unwrap();
    let name = file.devices().next().unwrap();
    asked.additions.extend(file.addition(&name));
}

fn bound(asked: &mut Asked, place: &str) {
    mount(asked, plain_mount(place), Propagation::Private);
}
