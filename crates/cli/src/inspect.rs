//! `wharf inspect`: everything that is known of one pod, container or image.

use serde_json::{Map, Value, json};
use wharf_cri_api::v1::{
    ContainerStatus, ContainerStatusRequest, Image, Mount, PodSandboxStatus, PodSandboxStatusRequest,
};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::find::Found;
use crate::{images, list, output, time};

pub(crate) async fn inspect(daemon: &mut Daemon, name: &str) -> Result<(), Error> {
    let listing = daemon.listing().await?;
    let value = match listing.find(name) {
        Ok(Found::Pod(pod)) => pod_value(daemon, &pod.id).await?,
        Ok(Found::Container(container)) => container_value(daemon, &container.id).await?,
        Err(Error::Unknown { .. }) => match images::find(daemon, name).await? {
            Some(image) => image_value(&image),
            None => {
                return Err(Error::Unknown {
                    what: "pod, container or image",
                    name: name.to_owned(),
                    advice: "see what there is: wharf pods, wharf ps --all, wharf images",
                });
            }
        },
        Err(error) => return Err(error),
    };
    output::json(&value)
}

async fn pod_value(daemon: &mut Daemon, id: &str) -> Result<Value, Error> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    let answer = daemon.runtime.pod_sandbox_status(request).await;
    let answer = answer.map_err(Error::call("asking for the pod"))?.into_inner();
    let status = answer.status.ok_or(Error::Incomplete { what: "the pod's status" })?;
    let mut value = of_pod(&status);
    value["containers"] = answer.containers_statuses.iter().map(of_container).collect();
    value["info"] = info(answer.info);
    Ok(value)
}

async fn container_value(daemon: &mut Daemon, id: &str) -> Result<Value, Error> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer = daemon.runtime.container_status(request).await;
    let answer = answer.map_err(Error::call("asking for the container"))?.into_inner();
    let status = answer.status.ok_or(Error::Incomplete { what: "the container's status" })?;
    let mut value = of_container(&status);
    value["info"] = info(answer.info);
    Ok(value)
}

/// What a verbose status adds is JSON in texts.
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

fn of_mount(mount: &Mount) -> Value {
    json!({
        "from": mount.host_path, "to": mount.container_path, "readOnly": mount.readonly,
        "propagation": mount.propagation().as_str_name(),
    })
}

fn image_value(image: &Image) -> Value {
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
