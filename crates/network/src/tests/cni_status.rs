//! What plugins of CNI 1.1 are asked: their status, and to free what no pod has.

use std::time::{Duration, Instant};

use nix::poll::poll;
use serde_json::{Value, json};

use super::cni::GOOD;
use super::fixture::{Host, Pod};
use crate::{Mode, Network, Readiness};

/// Longer than an answer counts and a chain may take together.
const LIMIT: Duration = Duration::from_secs(30);
/// How often the readiness is read, in milliseconds.
const LOOK_MS: u16 = 20;

/// A host with a plugin whose STATUS runs this script.
fn host(status: &str) -> Host {
    let host = Host::new(Mode::Routed);
    host.plugin("one", GOOD);
    host.plugin("two", &format!("[ $CNI_COMMAND = STATUS ] && {{ {status}; }}\n{GOOD}"));
    host.configure_version(
        "1.1.0",
        json!([{ "type": "one", "mine": 1, "capabilities": {} }, { "type": "two" }]),
    );
    host
}

fn until(network: &Network, wanted: impl Fn(&Readiness) -> bool) -> Readiness {
    let end = Instant::now() + LIMIT;
    loop {
        let readiness = network.readiness();
        if wanted(&readiness) {
            return readiness;
        }
        assert!(Instant::now() < end, "{readiness:?}");
        poll(&mut [], LOOK_MS).unwrap();
    }
}

fn answered(readiness: &Readiness) -> bool {
    readiness.reason != "CniStatusUnknown"
}

#[test]
fn plugins_of_new_lists_are_asked_and_others_are_not() {
    let host = host("true");
    let network = host.network();
    assert_eq!(until(&network, answered), Readiness::yes());
    assert_eq!(host.read("calls"), "one STATUS\ntwo STATUS\n");
    let input: Value = serde_json::from_str(&host.read("one.STATUS.in")).unwrap();
    assert_eq!(input, json!({ "type": "one", "mine": 1, "cniVersion": "1.1.0", "name": "net" }));
    let bin = host.dir.path().join("bin");
    assert!(host.read("one.STATUS.env").contains(&format!("CNI_PATH={}\n", bin.display())));
    host.configure(json!([{ "type": "two" }]));
    assert_eq!((network.readiness(), host.network().readiness()), (Readiness::yes(), Readiness::yes()));
    assert_eq!(host.read("calls"), "one STATUS\ntwo STATUS\n");
}

#[test]
fn a_daemon_that_starts_does_not_make_its_node_unready() {
    let host = host("true");
    // The first answer counts; a busy machine has several attempts.
    assert!((0..5).any(|_attempt| host.network().readiness().ready));
}

#[test]
fn why_a_plugin_is_not_ready_is_said() {
    for (status, words) in [
        (
            r#"echo '{"code":50,"msg":"the agent starts","details":"wait"}'; exit 1"#,
            "the agent starts (code 50): wait",
        ),
        (r#"echo '{"code":51,"msg":"no route"}'; exit 1"#, "no route (code 51)"),
        ("echo cut off >&2; exit 3", "cut off"),
        ("kill -9 $$", "signal: 9"),
        ("sleep 1000", "did not finish STATUS in time and was killed"),
    ] {
        let mut host = host(status);
        host.config.cni_add_deadline = Duration::from_secs(1);
        let said = until(&host.network(), answered);
        assert_eq!((said.ready, said.reason.as_str()), (false, "CniPluginNotReady"), "{status}");
        assert!(
            said.message.contains("plugin two") && said.message.contains(words),
            "{status}: {}",
            said.message
        );
    }
}

#[test]
fn a_plugin_that_hangs_holds_nothing_and_counts_again_when_it_answers() {
    let host = host("[ -e $DIR/go ] || { echo >> $DIR/asked; until [ -e $DIR/go ]; do sleep 0.05; done; }");
    let network = host.network();
    let asked = || host.read("asked").lines().count();
    until(&network, |readiness| {
        assert!(!readiness.ready && !answered(readiness), "{readiness:?}");
        asked() == 1
    });
    let pod = Pod::new(1);
    pod.attach(&network).unwrap();
    network.detach(&pod.id, None).unwrap();
    assert_eq!((asked(), network.readiness().reason.as_str()), (1, "CniStatusUnknown"), "no second question");
    std::fs::write(host.dir.path().join("go"), "").unwrap();
    assert_eq!(until(&network, answered), Readiness::yes());
}

#[test]
fn a_plugin_that_becomes_unready_and_ready_is_noticed() {
    let host = host("[ ! -e $DIR/broken ] || exit 3");
    let network = host.network();
    until(&network, |readiness| readiness.ready);
    std::fs::write(host.dir.path().join("broken"), "").unwrap();
    until(&network, |readiness| readiness.reason == "CniPluginNotReady");
    std::fs::remove_file(host.dir.path().join("broken")).unwrap();
    until(&network, |readiness| readiness.ready);
}

#[test]
fn plugins_of_new_lists_are_told_which_pods_exist() {
    let host = host("true");
    let network = host.network();
    let (pod, other) = (Pod::new(1), Pod::new(2));
    pod.attach(&network).unwrap();
    network.reconcile(&[pod.id.clone(), other.id.clone()].into());
    let input: Value = serde_json::from_str(&host.read("one.GC.in")).unwrap();
    let mut told: Vec<String> = Vec::new();
    for attachment in input["cni.dev/valid-attachments"].as_array().unwrap() {
        assert_eq!(attachment["ifname"], "eth0");
        told.push(attachment["containerID"].as_str().unwrap().to_owned());
    }
    told.sort();
    told.dedup();
    let mut want = [pod.id.to_string(), other.id.to_string()];
    want.sort();
    assert_eq!((told, &input["cni.dev/attachments"]), (want.to_vec(), &input["cni.dev/valid-attachments"]));
    assert!(host.read("one.GC.env").contains("CNI_CONTAINERID=\n"));
    let count = || host.read("calls").matches("GC").count();
    assert_eq!(count(), 2, "each plugin once");
    network.reconcile(&Default::default());
    assert_eq!(count(), 2, "not before an hour is over");
    host.configure(json!([{ "type": "one" }]));
    host.network().reconcile(&Default::default());
    assert_eq!(count(), 2, "the older version does not have it");
}

#[test]
fn pods_come_before_garbage() {
    let host = host("true");
    host.plugin(
        "one",
        &format!(
            "[ $CNI_COMMAND = ADD ] && {{ echo > $DIR/adding; until [ -e $DIR/go ]; do :; done; }}\n{GOOD}"
        ),
    );
    let network = host.network();
    let pod = Pod::new(1);
    std::thread::scope(|scope| {
        let attached = scope.spawn(|| pod.attach(&network));
        let end = Instant::now() + LIMIT;
        while host.read("adding").is_empty() {
            assert!(Instant::now() < end, "the plugin begins");
            poll(&mut [], LOOK_MS).unwrap();
        }
        network.reconcile(&[pod.id.clone()].into());
        assert!(!host.read("calls").contains("GC"), "an ADD runs");
        std::fs::write(host.dir.path().join("go"), "").unwrap();
        attached.join().unwrap().unwrap();
    });
    network.reconcile(&[pod.id.clone()].into());
    assert!(host.read("calls").ends_with("one GC\ntwo GC\n"));
}
