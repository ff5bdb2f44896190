//! `wharf inspect`: everything that is known about one pod, container or image.

use serde_json::{Map, Value, json};
use wharf_cri_api::v1::{
    Container, ContainerConfig, ContainerStatus, ContainerStatusRequest, Device, Image, ImageSpec,
    ImageStatusRequest, KeyValue, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxStatus,
    PodSandboxStatusRequest, SeLinuxOption, SecurityProfile,
};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::find::{Found, Listing};
use crate::{images, list, output, time};

pub(crate) async fn inspect(daemon: &mut Daemon, names: &[String]) -> Result<(), Error> {
    let listing = daemon.listing().await?;
    let mut values = Vec::new();
    for name in names {
        values.push(Box::pin(one(daemon, &listing, name)).await?);
    }
    match values.as_slice() {
        [value] => output::json(value),
        several => output::json(&several),
    }
}

async fn one(daemon: &mut Daemon, listing: &Listing, name: &str) -> Result<Value, Error> {
    match listing.find(name) {
        Ok(Found::Pod(pod)) => pod_value(daemon, &pod.id).await,
        Ok(Found::Container(container)) => container_value(daemon, container).await,
        Err(Error::Unknown { .. }) => match images::find(daemon, name).await? {
            Some(image) => image_value(daemon, &image).await,
            None => Err(Error::Unknown {
                what: "pod, container or image",
                name: name.to_owned(),
                advice: "list them: wharf pods, wharf ps --all, wharf images",
            }),
        },
        Err(error) => Err(error),
    }
}

async fn pod_value(daemon: &mut Daemon, id: &str) -> Result<Value, Error> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    let answer = daemon.runtime.pod_sandbox_status(request).await;
    let answer = answer.map_err(Error::call("asking for the pod"))?.into_inner();
    let status = answer.status.ok_or(Error::Incomplete { what: "the pod's status" })?;
    let mut value = of_pod(&status);
    let request = daemon.requests(id).await?.pop().unwrap_or_default();
    value["request"] = request.config.as_ref().map_or(Value::Null, of_pod_request);
    value["containers"] = answer.containers_statuses.iter().map(of_container).collect();
    value["info"] = info(answer.info);
    Ok(value)
}

async fn container_value(daemon: &mut Daemon, container: &Container) -> Result<Value, Error> {
    let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
    let answer = daemon.runtime.container_status(request).await;
    let answer = answer.map_err(Error::call("asking for the container"))?.into_inner();
    let status = answer.status.ok_or(Error::Incomplete { what: "the container's status" })?;
    let mut value = of_container(&status);
    value["podId"] = Value::from(container.pod_sandbox_id.as_str());
    value["request"] = of_container_request(&daemon.container_request(container).await?);
    value["info"] = info(answer.info);
    Ok(value)
}

/// A verbose status adds values that are JSON in strings.
fn info(info: impl IntoIterator<Item = (String, String)>) -> Value {
    let value = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
    Value::Object(info.into_iter().map(|(key, text)| (key, value(text))).collect::<Map<_, _>>())
}

fn of_pod(status: &PodSandboxStatus) -> Value {
    let metadata = status.metadata.clone().unwrap_or_default();
    let network = status.network.clone().unwrap_or_default();
    let more = network.additional_ips.into_iter().map(|address| address.ip);
    let ips: Vec<String> = std::iter::once(network.ip).chain(more).filter(|ip| !ip.is_empty()).collect();
    json!({
        "kind": "pod",
        "id": status.id,
        "name": metadata.name,
        "namespace": metadata.namespace,
        "uid": metadata.uid,
        "attempt": metadata.attempt,
        "state": if status.state == 0 { "ready" } else { "stopped" },
        "createdAt": time::text(status.created_at),
        "ips": ips,
        "runtimeHandler": status.runtime_handler,
        "labels": status.labels,
        "annotations": status.annotations,
    })
}

fn of_container(status: &ContainerStatus) -> Value {
    let metadata = status.metadata.clone().unwrap_or_default();
    let image = status.image.clone().unwrap_or_default();
    let linux = status.resources.as_ref().and_then(|resources| resources.linux.as_ref());
    let user = status.user.as_ref().and_then(|user| user.linux.as_ref());
    json!({
        "kind": "container",
        "id": status.id,
        "name": metadata.name,
        "attempt": metadata.attempt,
        "state": list::state_word(status.state()),
        "createdAt": time::text(status.created_at),
        "startedAt": time::text(status.started_at),
        "finishedAt": time::text(status.finished_at),
        "exitCode": status.exit_code,
        "reason": status.reason,
        "message": status.message,
        "image": image.image,
        "imageId": status.image_id,
        "logPath": status.log_path,
        "stopSignal": status.stop_signal().as_str_name(),
        "mounts": status.mounts.iter().map(of_mount).collect::<Vec<_>>(),
        "user": user.map(|user| json!({"uid": user.uid, "gid": user.gid, "groups": user.supplemental_groups})),
        "resources": linux.map(|linux| json!({
            "memoryBytes": linux.memory_limit_in_bytes, "cpuQuota": linux.cpu_quota,
            "cpuPeriod": linux.cpu_period, "cpuShares": linux.cpu_shares, "oomScoreAdj": linux.oom_score_adj,
        })),
        "labels": status.labels,
        "annotations": status.annotations,
    })
}

/// The parts of the pod's request that its status does not have.
fn of_pod_request(config: &PodSandboxConfig) -> Value {
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let namespaces = security.namespace_options.unwrap_or_default();
    let dns = config.dns_config.as_ref();
    json!({
        "hostname": config.hostname,
        "logDirectory": config.log_directory,
        "ports": config.port_mappings.iter().map(list::port).collect::<Vec<_>>(),
        "dns": dns.map(|dns| json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options})),
        "cgroupParent": linux.cgroup_parent,
        "sysctls": linux.sysctls,
        "privileged": security.privileged,
        "namespaces": of_namespaces(&namespaces),
    })
}

/// The parts of the container's request that its status does not have.
fn of_container_request(config: &ContainerConfig) -> Value {
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let capabilities = security.capabilities.unwrap_or_default();
    let variable = |pair: &KeyValue| (pair.key.clone(), Value::from(String::from_utf8_lossy(&pair.value)));
    let device = |device: &Device| json!({"from": device.host_path, "to": device.container_path, "permissions": device.permissions});
    json!({
        "command": config.command,
        "args": config.args,
        "workingDirectory": config.working_dir,
        "environment": config.envs.iter().map(variable).collect::<Map<_, _>>(),
        "devices": config.devices.iter().map(device).collect::<Vec<_>>(),
        "terminal": config.tty,
        "input": config.stdin,
        "readOnlyRoot": security.readonly_rootfs,
        "privileged": security.privileged,
        "noNewPrivileges": security.no_new_privs,
        "capabilities": {
            "add": capabilities.add_capabilities, "drop": capabilities.drop_capabilities,
            "ambient": capabilities.add_ambient_capabilities,
        },
        "seccomp": security.seccomp.map(of_profile),
        "apparmor": security.apparmor.map(of_profile),
        "selinux": security.selinux_options.as_ref().map(of_label),
        "namespaces": security.namespace_options.as_ref().map(of_namespaces),
    })
}

fn of_profile(profile: SecurityProfile) -> String {
    match (profile.localhost_ref.as_str(), profile.oci_ref.as_str()) {
        ("", "") => profile.profile_type().as_str_name().to_owned(),
        ("", reference) => reference.to_owned(),
        (name, _) => name.to_owned(),
    }
}

fn of_label(options: &SeLinuxOption) -> Value {
    let SeLinuxOption { user, role, r#type, level } = options;
    json!({"user": user, "role": role, "type": r#type, "level": level})
}

fn of_namespaces(options: &NamespaceOption) -> Value {
    let name = |mode: NamespaceMode| mode.as_str_name().to_lowercase();
    json!({
        "network": name(options.network()), "pid": name(options.pid()), "ipc": name(options.ipc()),
        "cgroup": options.cgroupns_options.map(|cgroup| name(cgroup.mode())),
    })
}

fn of_mount(mount: &Mount) -> Value {
    json!({
        "from": mount.host_path, "to": mount.container_path, "readOnly": mount.readonly,
        "propagation": mount.propagation().as_str_name(),
    })
}

async fn image_value(daemon: &mut Daemon, image: &Image) -> Result<Value, Error> {
    let spec = Some(ImageSpec { image: image.id.clone(), ..ImageSpec::default() });
    let answer = daemon.images.image_status(ImageStatusRequest { image: spec, verbose: true }).await;
    let answer = answer.map_err(Error::call("asking for the image"))?.into_inner();
    let mut value = of_image(image);
    value["info"] = info(answer.info);
    Ok(value)
}

fn of_image(image: &Image) -> Value {
    json!({
        "kind": "image",
        "id": image.id,
        "tags": image.repo_tags,
        "digests": image.repo_digests,
        "sizeBytes": image.size,
        "uid": image.uid.as_ref().map(|uid| uid.value),
        "user": image.username,
        "pinned": image.pinned,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_shown_with_what_the_status_lacks() {
        let config = ContainerConfig {
            args: vec!["-x".into()],
            envs: vec![KeyValue { key: "A".into(), value: b"1".to_vec() }],
            ..ContainerConfig::default()
        };
        let value = of_container_request(&config);
        assert_eq!((&value["args"][0], &value["environment"]["A"]), (&Value::from("-x"), &Value::from("1")));
        assert_eq!(of_pod_request(&PodSandboxConfig::default())["namespaces"]["pid"], "pod");
    }
}
