//! `wharf info`: the version, conditions, network and storage of wharfd.

use std::fmt::Write as _;

use serde_json::{Value, json};
use wharf_cri_api::admin::{InfoRequest, InfoResponse};
use wharf_cri_api::v1::{ImageFsInfoRequest, RuntimeCondition, StatusRequest, VersionRequest};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::find::{Listing, is_ready, runs};
use crate::output::Output;
use crate::{time, units};

pub(crate) async fn info(daemon: &mut Daemon, output: Output) -> Result<(), Error> {
    let version = daemon.runtime.version(VersionRequest::default()).await;
    let version = version.map_err(Error::call("asking for the version"))?.into_inner();
    let info = daemon.admin.info(InfoRequest {}).await;
    let info = info.map_err(Error::call("asking wharfd about itself"))?.into_inner();
    let status = daemon.runtime.status(StatusRequest { verbose: false }).await;
    let status = status.map_err(Error::call("asking for the state"))?.into_inner().status;
    let conditions = status.map(|status| status.conditions).unwrap_or_default();
    let disk = daemon.images.image_fs_info(ImageFsInfoRequest {}).await;
    let disk = disk.map_err(Error::call("asking for the storage"))?.into_inner().image_filesystems;
    let used = disk.iter().filter_map(|disk| disk.used_bytes).map(|bytes| bytes.value).sum();
    let facts = Facts { listing: daemon.listing().await?, info, conditions, used_bytes: used };
    let mut value = facts.json();
    value["cri"] = json!(version.runtime_api_version);
    output.result(&value, &facts.text())
}

/// What `wharf info` shows.
struct Facts {
    info: InfoResponse,
    conditions: Vec<RuntimeCondition>,
    used_bytes: u64,
    listing: Listing,
}

impl Facts {
    fn counts(&self) -> [usize; 4] {
        let ready = self.listing.pods.iter().filter(|pod| is_ready(pod)).count();
        let running = self.listing.containers.iter().filter(|container| runs(container)).count();
        [ready, self.listing.pods.len(), running, self.listing.containers.len()]
    }

    fn json(&self) -> Value {
        let info = &self.info;
        let [ready, pods, running, containers] = self.counts();
        let condition = |condition: &RuntimeCondition| {
            json!({
                "type": condition.r#type, "status": condition.status,
                "reason": condition.reason, "message": condition.message,
            })
        };
        json!({
            "version": info.version,
            "pid": info.pid,
            "startedAt": time::text(info.started_at),
            "conditions": self.conditions.iter().map(condition).collect::<Vec<_>>(),
            "pods": {"ready": ready, "all": pods},
            "containers": {"running": running, "all": containers},
            "cgroups": {
                "version": info.cgroup_version, "controllers": info.cgroup_controllers, "parent": info.cgroup_parent,
            },
            "network": {
                "cniConfDir": info.cni_conf_dir, "cniBinDirs": info.cni_bin_dirs,
                "builtin": info.builtin, "mode": mode(info), "bridge": info.bridge, "subnets": info.subnets,
            },
            "storage": {"root": info.root, "imageBytes": self.used_bytes},
            "state": info.state,
            "cdiDirs": info.cdi_dirs,
            "hookDirs": info.hook_dirs,
            "nri": {"enabled": info.has_nri, "socket": info.nri_socket, "plugins": info.nri_plugins},
            "supervisor": info.supervisor,
        })
    }

    fn text(&self) -> String {
        let info = &self.info;
        let [ready, pods, running, containers] = self.counts();
        let since = units::age(info.started_at, time::now_ns());
        let mut lines = vec![("wharfd", format!("{}, pid {}, up for {since}", info.version, info.pid))];
        for condition in &self.conditions {
            let name = if condition.r#type == "NetworkReady" { "network" } else { "runtime" };
            let state = if condition.status { "ready".to_owned() } else { not_ready(condition) };
            lines.push((name, state));
        }
        lines.extend([
            ("pods", format!("{ready} ready of {pods}")),
            ("containers", format!("{running} running of {containers}")),
            ("images", format!("{} in {}", units::size(self.used_bytes), info.root)),
            ("state", info.state.clone()),
            ("cgroups", format!("{}: {}", info.cgroup_version, info.cgroup_controllers.join(", "))),
            ("pods' cgroups", info.cgroup_parent.clone()),
            ("pods' network", network(info)),
            ("supervisor", info.supervisor.clone()),
            ("CDI devices", directories(&info.cdi_dirs)),
            ("hooks", directories(&info.hook_dirs)),
            ("NRI plugins", plugins(info)),
        ]);
        let mut text = String::new();
        for (name, value) in lines {
            let _never_fails = writeln!(text, "{name:<14}{value}");
        }
        text
    }
}

/// Where files are looked for; a daemon without such directories does not look.
fn directories(all: &[String]) -> String {
    if all.is_empty() { "off".to_owned() } else { format!("from {}", all.join(", ")) }
}

/// The plugins that are connected, and where others may connect.
pub(crate) fn plugins(info: &InfoResponse) -> String {
    let names = if info.nri_plugins.is_empty() { "none".to_owned() } else { info.nri_plugins.join(", ") };
    match (info.has_nri, info.nri_socket.as_str()) {
        (false, _) => "off".to_owned(),
        (true, "") => names,
        (true, socket) => format!("{names}; they connect to {socket}"),
    }
}

fn not_ready(condition: &RuntimeCondition) -> String {
    format!("not ready: {} ({})", condition.message, condition.reason)
}

/// Whether pods are put on the built-in network, and how it connects them.
pub(crate) fn network(info: &InfoResponse) -> String {
    let how = match mode(info) {
        "bridge" => format!("bridge {} {}", info.bridge, info.subnets),
        mode => format!("{mode} {}", info.subnets),
    };
    match info.builtin.as_str() {
        "on" => how,
        "off" => format!("off: CNI configures the network, from {}", info.cni_conf_dir),
        _ => format!("{how}; on a cluster node, CNI, configured in {}", info.cni_conf_dir),
    }
}

/// A daemon that does not say how knew bridges alone.
fn mode(info: &InfoResponse) -> &str {
    if info.mode.is_empty() { "bridge" } else { &info.mode }
}
