//! What wharfd reports about itself to `wharf info` and `wharf doctor`.

use std::sync::Arc;

use anyhow::Context;
use wharf_cgroup::{Cgroups, Version};
use wharf_cri_api::admin::InfoResponse;
use wharf_network::Network;
use wharf_nri::Plugins;
use wharf_pods::Engine;

use crate::config::Config;

/// The response to `Info` at any later time: the kubelet's pod CIDR replaces the configured ranges, files of others
/// change, and NRI plugins come and go. Blocking: it reads the files. Those of registries are not among them: the
/// registry client reads them.
pub(crate) fn now(
    info: InfoResponse,
    network: Arc<Network>,
    engine: Arc<Engine>,
    plugins: Arc<Plugins>,
) -> impl Fn() -> InfoResponse {
    move || {
        let handlers = engine.handlers();
        let missing = plugins.missing();
        let missing = missing.into_iter().map(|name| format!("the required plugin {name} is not connected"));
        InfoResponse {
            subnets: network.subnets().to_string(),
            file_problems: engine.problems_of_additions(),
            handler_problems: handlers.problems().chain(handlers.remarks()).map(str::to_owned).collect(),
            nri_plugins: plugins.names(),
            nri_problems: info.nri_problems.iter().cloned().chain(missing).collect(),
            ..info.clone()
        }
    }
}

/// Whether NRI plugins can connect.
#[derive(Debug, Default)]
pub(crate) struct Nri {
    pub(crate) is_on: bool,
    pub(crate) socket: Option<String>,
    pub(crate) problem: Option<String>,
}

impl Nri {
    /// The response with that in it.
    pub(crate) fn told(self, info: InfoResponse) -> InfoResponse {
        InfoResponse {
            has_nri: self.is_on,
            nri_socket: self.socket.unwrap_or_default(),
            nri_problems: self.problem.into_iter().collect(),
            ..info
        }
    }
}

/// The response to `Info` as of the daemon's start.
pub(crate) fn info(config: &Config, cgroups: &Cgroups) -> anyhow::Result<InfoResponse> {
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let version = match cgroups.version() {
        Version::V1 => "v1",
        Version::Hybrid => "hybrid",
        Version::V2 => "v2",
    };
    let network = &config.network;
    let bounding = wharf_sys::capabilities::bounding();
    Ok(InfoResponse {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        started_at: wharf_sys::clock::now_ns(),
        root: text(&config.root),
        state: text(&config.state),
        supervisor: text(&config.supervisor()?),
        cgroup_version: version.into(),
        cgroup_controllers: cgroups.controllers().iter().map(ToString::to_string).collect(),
        cgroup_parent: config.placement()?.parent().to_string(),
        cni_conf_dir: text(&network.cni_conf_dir),
        cni_bin_dirs: network.cni_bin_dirs.iter().map(|dir| text(dir)).collect(),
        bridge: network.bridge.clone(),
        builtin: network.builtin.name().into(),
        mode: network.mode.name().into(),
        subnets: network.subnets.clone(),
        bounding_capabilities: bounding.context("reading this process's capabilities")?,
        cdi_dirs: config.cdi.spec_dirs.iter().filter(|_| config.cdi.enabled).map(|dir| text(dir)).collect(),
        hook_dirs: config.hooks.dirs.iter().map(|dir| text(dir)).collect(),
        ..InfoResponse::default()
    })
}
