//! Which network pods get, and what happens to pods on the other one.

use std::collections::HashSet;

use serde_json::json;
use wharf_types::{ErrorKind, Failure};

use super::cni::GOOD;
use super::fixture::{Host, Pod, has_gateway, ip, pod_links};
use crate::{Builtin, Error, Mode, nft};

impl Host {
    fn with_cni(mode: Mode) -> Self {
        let host = Self::new(mode);
        host.plugin("one", GOOD);
        host.configure(json!([{ "type": "one" }]));
        host
    }

    fn remove_configuration(&self) {
        std::fs::remove_dir_all(&self.config.cni_conf_dir).unwrap();
    }
}

/// Checks that no pod is attached, with a message that names the sign and both ways out.
fn waits(host: &Host, sign: &str) {
    let network = host.network();
    let readiness = network.readiness();
    assert_eq!((readiness.ready, readiness.reason.as_str()), (false, "NoCniConfig"), "{readiness:?}");
    for words in
        [sign, "no CNI configuration in", "install the cluster's network", "network.builtin = \"on\""]
    {
        assert!(readiness.message.contains(words), "{words} is missing in {readiness:?}");
    }
    let error = Pod::new(9).attach(&network).unwrap_err();
    assert!(matches!(error, Error::Yields { .. }), "{error}");
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::FailedPrecondition, readiness.message));
    assert!([Mode::Routed, Mode::Bridge].iter().all(|mode| !has_gateway(*mode)));
}

fn a_configuration_that_goes_away_is_waited_for_also_after_a_restart(mode: Mode) {
    let host = Host::with_cni(mode);
    let network = host.network();
    assert!(network.readiness().ready);
    host.remove_configuration();
    assert_eq!(Pod::new(1).attach(&network).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    waits(&host, "a CNI configuration was seen in");
    host.configure(json!([{ "type": "one" }]));
    assert_eq!(Pod::new(1).attach(&network).unwrap().ips[0], ip("10.9.0.7"));
}

fn an_invalid_configuration_is_a_sign_too(mode: Mode) {
    let host = Host::with_cni(mode);
    std::fs::write(host.config.cni_conf_dir.join("10-net.conflist"), "{").unwrap();
    assert_eq!(host.network().readiness().reason, "InvalidCniConfig");
    host.remove_configuration();
    waits(&host, "a CNI configuration was seen in");
}

fn a_kubelets_files_and_its_pod_cidr_are_signs(mode: Mode) {
    let host = Host::new(mode);
    std::fs::write(&host.config.kubelet_files[0], "").unwrap();
    waits(&host, "kubelet.conf");
    std::fs::remove_file(&host.config.kubelet_files[0]).unwrap();
    let network = host.network();
    assert!(network.readiness().ready);
    network.set_pod_cidr("").unwrap();
    assert!(network.readiness().ready, "that says nothing");
    network.set_pod_cidr("10.244.7.0/24").unwrap();
    waits(&host, "the pod CIDR 10.244.7.0/24");
}

fn on_means_the_bridge_whatever_else_is_there(mode: Mode) {
    let mut host = Host::with_cni(mode);
    host.config.builtin = Builtin::On;
    std::fs::write(&host.config.kubelet_files[0], "").unwrap();
    let network = host.network();
    let readiness = network.readiness();
    assert!(readiness.ready && readiness.message.contains("are ignored"), "{readiness:?}");
    assert_eq!(Pod::new(1).attach(&network).unwrap().ips[0], ip("10.88.0.2"));
    assert_eq!(host.read("calls"), "");
}

fn off_means_never_the_bridge(mode: Mode) {
    let mut host = Host::new(mode);
    host.config.builtin = Builtin::Off;
    let network = host.network();
    let readiness = network.readiness();
    assert_eq!((readiness.ready, readiness.reason.as_str()), (false, "NoCniConfig"));
    let pod = Pod::new(1);
    assert_eq!(pod.attach(&network).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    network.detach(&pod.id, None).unwrap();
    assert_eq!(network.reconcile(&HashSet::new()), 0);
    assert!(pod_links().is_empty());
}

fn pods_left_on_the_bridge_are_reported_and_it_goes_after_the_last(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let pods = [1, 2, 3, 4].map(Pod::new);
    for pod in &pods {
        pod.attach(&network).unwrap();
    }
    host.plugin("one", GOOD);
    host.configure(json!([{ "type": "one" }]));
    let readiness = network.readiness();
    assert!(readiness.ready, "{readiness:?}");
    let message = readiness.message;
    assert!(
        message.starts_with("pods still on the built-in network")
            && message.contains("cluster's network: 4 (")
            && message.contains(", …"),
        "{message}"
    );
    network.reconcile(&HashSet::new());
    assert!(has_gateway(mode) && nft::has_table().unwrap());
    for pod in pods {
        network.detach(&pod.id, None).unwrap();
    }
    assert_eq!(network.readiness().message, "");
    network.reconcile(&HashSet::new());
    assert!(!has_gateway(mode) && !nft::has_table().unwrap());
}

fn pods_of_plugins_that_an_earlier_version_attached_are_a_sign(mode: Mode) {
    let host = Host::with_cni(mode);
    Pod::new(1).attach(&host.network()).unwrap();
    std::fs::remove_file(host.config.state_dir.join("settings/cni-seen")).unwrap();
    host.remove_configuration();
    waits(&host, "a CNI configuration was seen in");
}

in_both_modes! {
    a_configuration_that_goes_away_is_waited_for_also_after_a_restart,
    an_invalid_configuration_is_a_sign_too,
    a_kubelets_files_and_its_pod_cidr_are_signs,
    on_means_the_bridge_whatever_else_is_there,
    off_means_never_the_bridge,
    pods_left_on_the_bridge_are_reported_and_it_goes_after_the_last,
    pods_of_plugins_that_an_earlier_version_attached_are_a_sign,
}
