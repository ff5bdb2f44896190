//! CNI with plugins that the test writes.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use wharf_types::{ErrorKind, Failure};

use super::fixture::{Host, Pod, ask, id, ip, pod_links, sh, tcp};
use crate::{Error, Mode, PodAddresses};

/// Keeps its input and prints a result.
pub(super) const GOOD: &str = r#"
    cat > "$DIR/$NAME.$CNI_COMMAND.in"; env > "$DIR/$NAME.$CNI_COMMAND.env"; echo "$NAME $CNI_COMMAND" >> "$DIR/calls"
    [ "$CNI_COMMAND" = ADD ] || exit 0
    echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"by":"'$NAME'",
      "ips":[{"address":"10.9.0.7/24","interface":0},{"address":"fd09::7/64"}]}'
"#;

impl Host {
    pub(super) fn plugin(&self, name: &str, script: &str) {
        let path = self.dir.path().join("bin").join(name);
        let head = format!("#!/bin/sh\nDIR={}\nNAME={name}\n", self.dir.path().display());
        std::fs::write(&path, format!("{head}{script}")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    pub(super) fn configure(&self, plugins: Value) {
        self.configure_version("1.0.0", plugins);
    }

    pub(super) fn configure_version(&self, version: &str, plugins: Value) {
        std::fs::create_dir_all(&self.config.cni_conf_dir).unwrap();
        let list = json!({ "cniVersion": version, "name": "net", "plugins": plugins });
        std::fs::write(self.config.cni_conf_dir.join("10-net.conflist"), list.to_string()).unwrap();
    }

    pub(super) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    fn input(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    fn records(&self) -> usize {
        std::fs::read_dir(self.config.state_dir.join("cni")).unwrap().count()
    }

    /// A host with one plugin.
    fn with_plugin(script: &str) -> Self {
        let mut host = Self::new(Mode::Routed);
        host.config.cni_add_deadline = Duration::from_secs(20);
        host.plugin("one", script);
        host.configure(json!([{ "type": "one" }]));
        host
    }
}

#[test]
fn a_chain_is_run_forwards_and_backwards() {
    let host = Host::new(Mode::Routed);
    host.plugin("one", GOOD);
    host.plugin("two", GOOD);
    host.configure(json!([
        { "type": "one", "mine": { "a": 1 } },
        { "type": "two", "capabilities": {
            "portMappings": true, "bandwidth": true, "dns": true, "cgroupPath": true, "aliases": true,
            "io.kubernetes.cri.pod-annotations": true, "ipRanges": false,
        } },
    ]));
    let network = host.network();
    assert!(network.readiness().ready);
    let mut pod = Pod::new(1);
    pod.annotations.insert("kubernetes.io/egress-bandwidth".into(), "10M".into());
    let addresses = pod.attach_with(&network, &[tcp(12000, 80), tcp(0, 81)]).unwrap();
    assert_eq!(addresses.ips, [ip("10.9.0.7"), ip("fd09::7")]);
    assert_eq!(pod_links(), Vec::<String>::new(), "the bridge has no part in it");
    let first = host.input("one.ADD.in");
    assert_eq!(first, json!({ "type": "one", "mine": { "a": 1 }, "cniVersion": "1.0.0", "name": "net" }));
    let second = host.input("two.ADD.in");
    let port = json!({ "hostPort": 12000, "containerPort": 80, "protocol": "tcp" });
    let told = json!({
        "portMappings": [port],
        "bandwidth": { "egressRate": 10_000_000, "egressBurst": u32::MAX },
        "dns": { "servers": ["10.0.0.10"], "searches": [], "options": [] },
        "cgroupPath": "/kubepods/pod1",
        "io.kubernetes.cri.pod-annotations": pod.annotations,
    });
    assert_eq!(second["runtimeConfig"], told);
    assert_eq!((&second["prevResult"]["by"], second.get("capabilities")), (&json!("one"), None));
    let environment = host.read("one.ADD.env");
    for line in [
        format!("CNI_CONTAINERID={}", pod.id),
        format!("CNI_NETNS={}", pod.path().display()),
        "CNI_IFNAME=eth0".into(),
        format!("CNI_PATH={}", host.dir.path().join("bin").display()),
        format!(
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=space;K8S_POD_NAME=pod;K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID=uid",
            pod.id
        ),
    ] {
        assert!(environment.lines().any(|found| found == line), "{line} in {environment}");
    }
    assert!(environment.contains("CARGO_PKG_NAME=wharf-network\n"), "our own environment too");
    pod.serve(80);
    pod.inside(|| ask(ip("127.0.0.1"), 80)).expect("loopback is up");
    // What the pod was added with counts, not the present configuration, even in another process.
    host.configure(json!([{ "type": "missing" }]));
    let network = host.network();
    assert_eq!(network.addresses(&pod.id), Some(addresses));
    network.detach(&pod.id, Some("/nowhere".as_ref())).unwrap();
    network.detach(&pod.id, None).unwrap();
    assert_eq!(host.read("calls"), "one ADD\ntwo ADD\ntwo DEL\none DEL\n");
    assert_eq!(host.input("one.DEL.in")["prevResult"]["by"], "two");
    assert_eq!(host.input("two.DEL.in")["runtimeConfig"], told);
    assert_eq!((host.records(), network.addresses(&pod.id)), (0, None));
    assert!(host.read("two.DEL.env").contains(&format!("CNI_NETNS={}\n", pod.path().display())));
}

#[test]
fn a_plugins_own_error_is_shown_and_what_it_left_is_deleted() {
    let host = Host::with_plugin(
        r#"echo $CNI_COMMAND >> $DIR/calls; [ $CNI_COMMAND = DEL ] && exit 0
           echo '{"cniVersion":"1.0.0","code":11,"msg":"no cable","details":"try the other one"}'; exit 1"#,
    );
    let network = host.network();
    let error = Pod::new(1).attach(&network).unwrap_err();
    let want = "the CNI plugin one failed during ADD: no cable (code 11): try the other one";
    assert_eq!((error.to_string().as_str(), error.kind()), (want, ErrorKind::Unavailable));
    assert_eq!((host.read("calls").as_str(), host.records()), ("ADD\nDEL\n", 0));
}

#[test]
fn a_plugin_that_hangs_is_killed_with_its_children() {
    let mut host = Host::with_plugin("sleep 1000 & echo $! > $DIR/child; wait");
    host.config.cni_add_deadline = Duration::from_millis(200);
    host.config.cni_delete_deadline = Duration::from_millis(200);
    let network = host.network();
    let start = Instant::now();
    let error = Pod::new(1).attach(&network).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(host.records(), 1, "DEL hung too, so it must be tried again");
    let child = host.read("child");
    // It takes a moment to die; a pidfd of a process that is gone cannot be opened.
    if let Ok(process) = wharf_sys::process::open_pidfd(child.trim().parse().unwrap()) {
        let mut wait = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut wait, 5000_u16), Ok(1), "the plugin's child ends");
    }
}

#[test]
fn what_is_no_result_is_refused() {
    for (script, want) in [
        ("[ $CNI_COMMAND = DEL ] || echo garbage", "no usable result"),
        ("exit 0", "no usable result"),
        (r#"echo '{"cniVersion":"7.0.0"}'"#, "7.0.0"),
        (r#"echo '{"cniVersion":"1.0.0","ips":[]}'"#, "0 addresses"),
        ("[ $CNI_COMMAND = DEL ] || head -c 2097152 /dev/zero", "more than 1 MiB"),
        ("[ $CNI_COMMAND = DEL ] || head -c 2097152 /dev/zero >&2", "more than 1 MiB"),
        ("[ $CNI_COMMAND = DEL ] || { echo broken >&2; exit 3; }", "broken"),
        ("[ $CNI_COMMAND = DEL ] || kill -9 $$", "signal: 9"),
    ] {
        let host = Host::with_plugin(script);
        let error = Pod::new(1).attach(&host.network()).unwrap_err();
        assert!(matches!(error, Error::Cni(_)) && error.to_string().contains(want), "{script}: {error}");
        assert_eq!(host.records(), 0, "{script}");
    }
}

#[test]
fn a_missing_plugin_and_a_type_with_a_slash_are_reported() {
    let host = Host::new(Mode::Routed);
    host.configure(json!([{ "type": "missing" }]));
    let network = host.network();
    let readiness = network.readiness();
    assert_eq!((readiness.ready, readiness.reason.as_str()), (false, "CniPluginMissing"));
    assert!(Pod::new(1).attach(&network).unwrap_err().to_string().contains("missing was not found in"));
    host.configure(json!([{ "type": "../../bin/sh" }]));
    let readiness = network.readiness();
    assert_eq!((readiness.ready, readiness.reason.as_str()), (false, "InvalidCniConfig"));
    assert!(readiness.message.contains("../../bin/sh"), "{}", readiness.message);
    let error = Pod::new(1).attach(&network).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
}

#[test]
fn a_delete_that_fails_is_repeated() {
    let host = Host::with_plugin(&format!("[ $CNI_COMMAND = ADD ] || [ -e $DIR/mended ] || exit 1\n{GOOD}"));
    let pod = Pod::new(1);
    let network = host.network();
    pod.attach(&network).unwrap();
    for _ in 0..10 {
        assert_eq!(network.detach(&pod.id, Some(&pod.path())).unwrap_err().kind(), ErrorKind::Unavailable);
    }
    assert_eq!((network.reconcile(&Default::default()), host.records()), (0, 1));
    std::fs::write(host.dir.path().join("mended"), "").unwrap();
    assert_eq!((network.reconcile(&Default::default()), host.records()), (1, 0));
    network.detach(&pod.id, None).unwrap();
}

#[test]
fn a_pod_whose_namespace_and_plugin_are_gone_is_let_go() {
    let host = Host::with_plugin(GOOD);
    let network = host.network();
    let pod = Pod::new(1);
    pod.attach(&network).unwrap();
    std::fs::remove_file(host.dir.path().join("bin/one")).unwrap();
    let error = network.detach(&pod.id, Some(&pod.path())).unwrap_err();
    assert!(error.to_string().contains("one was not found in"), "its namespace is there: {error}");
    let id = pod.id.clone();
    drop(pod);
    network.detach(&id, None).unwrap();
    assert_eq!(host.records(), 0);
}

#[test]
fn a_bandwidth_that_is_none_is_refused() {
    let host = Host::with_plugin(GOOD);
    let mut pod = Pod::new(1);
    for bad in ["10", "2P", "fast", "10 M"] {
        pod.annotations.insert("kubernetes.io/ingress-bandwidth".into(), bad.into());
        let error = pod.attach(&host.network()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains("ingress-bandwidth"), "{error}");
    }
    assert_eq!((host.read("calls").as_str(), host.records()), ("", 0));
}

#[test]
fn a_pod_whose_record_is_lost_keeps_its_addresses_and_is_deleted() {
    let host = Host::with_plugin(GOOD);
    let pod = Pod::new(1);
    let network = host.network();
    pod.attach(&network).unwrap();
    assert_eq!(pod.adopt(&network).unwrap(), None, "there is no link");
    pod.inside(|| {
        sh("ip link add eth0 type bridge; ip link set eth0 up
            ip address add 10.9.0.7/24 dev eth0; ip address add fd09::7/64 dev eth0 nodad
            ip address add 10.9.0.8/24 dev eth0; ip address add fd09::8/64 dev eth0 nodad
            ip address add fd09::9/64 dev eth0 nodad valid_lft 900 preferred_lft 900")
    });
    let record = host.config.state_dir.join("cni").join(format!("{}.json", pod.id));
    for damage in ["", "{{"] {
        std::fs::write(&record, damage).unwrap();
        let network = host.network();
        assert_eq!(network.addresses(&pod.id), None);
        let addresses = PodAddresses { ips: ["10.9.0.7", "fd09::7", "fd09::8"].map(ip).to_vec() };
        assert_eq!(pod.adopt(&network).unwrap().as_ref(), Some(&addresses));
        assert_eq!(host.network().addresses(&pod.id), Some(addresses), "it is recorded");
    }
    host.network().detach(&pod.id, None).unwrap();
    assert_eq!((host.read("calls").as_str(), host.records()), ("one ADD\none DEL\n", 0));
    let previous = &host.input("one.DEL.in")["prevResult"];
    assert_eq!(previous["ips"][1], json!({ "address": "fd09::7/64", "interface": 0 }));
    assert!(host.read("one.DEL.env").contains("K8S_POD_NAME=pod;"));
}

#[test]
fn a_record_of_a_newer_release_is_not_made_anew() {
    let host = Host::with_plugin(GOOD);
    let pod = Pod::new(1);
    pod.attach(&host.network()).unwrap();
    pod.inside(|| {
        sh("ip link add eth0 type bridge; ip link set eth0 up; ip address add 10.9.0.7/24 dev eth0")
    });
    let record = host.config.state_dir.join("cni").join(format!("{}.json", pod.id));
    let newer = "wharf cni 9 0 00000000\n";
    std::fs::write(&record, newer).unwrap();
    assert_eq!(pod.adopt(&host.network()).unwrap().unwrap().ips, [ip("10.9.0.7")]);
    assert_eq!(std::fs::read_to_string(&record).unwrap(), newer);
}

#[test]
fn an_add_that_was_cut_short_is_deleted_before_the_next() {
    let host = Host::with_plugin(GOOD);
    let pod = Pod::new(1);
    pod.attach(&host.network()).unwrap();
    let record = host.config.state_dir.join("cni").join(format!("{}.json", pod.id));
    let text = std::fs::read_to_string(&record).unwrap();
    let (_header, content) = text.split_once('\n').unwrap();
    let mut intent: Value = serde_json::from_str(content).unwrap();
    // As written by a build from before records had headers.
    (intent["version"], intent["result"]) = (json!(1), Value::Null);
    std::fs::write(&record, intent.to_string()).unwrap();
    let network = host.network();
    assert_eq!(network.addresses(&pod.id), None);
    pod.attach(&network).unwrap();
    assert_eq!(host.read("calls"), "one ADD\none DEL\none ADD\n");
}

#[test]
fn a_plugin_may_leave_a_daemon_and_need_not_read() {
    let host = Host::with_plugin(
        r#"[ $CNI_COMMAND = DEL ] && { kill $(cat $DIR/daemon); exit 0; }
           exec 0<&-; sleep 1000 & echo $! > $DIR/daemon
           echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.7/24"}]}'"#,
    );
    host.configure(json!([{ "type": "one", "large": "x".repeat(300_000) }]));
    let network = host.network();
    let pod = Pod::new(1);
    pod.attach(&network).unwrap();
    network.detach(&pod.id, None).unwrap();
}

#[test]
fn names_that_would_change_the_arguments_are_refused() {
    let host = Host::with_plugin(GOOD);
    let pod = Pod::new(1);
    let attachment = crate::Attachment {
        id: &id(1),
        name: "a;K8S_POD_NAMESPACE=kube-system",
        namespace: "space",
        uid: "uid",
        netns: pod.netns.as_fd(),
        pin: "/nowhere".as_ref(),
        ports: &[],
        annotations: &Default::default(),
        dns: Default::default(),
        cgroup_parent: "",
    };
    let error = host.network().attach(&attachment).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!((host.read("calls").as_str(), host.records()), ("", 0));
}

#[test]
fn a_plugin_that_is_missing_leaves_nothing_that_only_it_could_delete() {
    let host = Host::with_plugin(GOOD);
    host.configure(json!([{ "type": "one" }, { "type": "missing" }]));
    let network = host.network();
    let pod = Pod::new(1);
    let error = pod.attach(&network).unwrap_err();
    assert!(wharf_types::chain(&error).contains("the CNI plugin missing was not found"), "{error}");
    assert_eq!((host.records(), host.read("calls").as_str()), (0, ""));
    network.detach(&pod.id, Some(&pod.path())).unwrap();
}
