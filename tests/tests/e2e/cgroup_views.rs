//! Which cgroups a container sees, and whether it may write to them.
//!
//! Where a host has cgroup v2 alone, `hack/vm` lets containers manage cgroups of their own; here that is refused.

use tonic::Code;
use wharf_cri_api::v1::*;

use crate::client::{Client, pod_security, security};
use crate::daemon::process_with;
use crate::world::{run, until};

const OWN: Option<NamespaceMode> = Some(NamespaceMode::Container);
const HOSTS: Option<NamespaceMode> = Some(NamespaceMode::Node);

/// A container with these wishes.
fn asking(
    client: &Client,
    name: &str,
    (namespace, mode): (Option<NamespaceMode>, CgroupMountMode),
) -> ContainerConfig {
    let mut config = client.container(name, "exec sleep 1000");
    let context = security(&mut config);
    context.cgroup_mount_mode = mode.into();
    let options = context.namespace_options.get_or_insert_default();
    options.cgroupns_options = namespace.map(|mode| CgroupNamespace { mode: mode.into() });
    config
}

/// Whether a container sees only its own cgroup, and whether it can make one in each hierarchy that it sees.
async fn seen(client: &Client, id: &str) -> (bool, bool) {
    let paths = client.output(id, "cut -d: -f3 /proc/1/cgroup | sort -u").await;
    let made =
        "cd /sys/fs/cgroup; [ -e pids ] && cd pids; mkdir own && rmdir own && echo made || echo refused";
    let made = client.output(id, &format!("{{ {made}; }} 2>/dev/null")).await;
    (paths == "/", made == "made")
}

#[test]
fn a_container_sees_the_cgroups_that_it_asks_for() {
    use CgroupMountMode::{ReadOnly, Unspecified};
    run(async |world| {
        let client = &world.client;
        let mut pod = client.pod("views");
        pod_security(&mut pod).privileged = true;
        let pod = client.run(&pod).await.unwrap();
        let rows = [
            ("plain", false, (None, Unspecified), (true, false)),
            ("own", false, (OWN, Unspecified), (true, false)),
            ("hosts", false, (HOSTS, Unspecified), (false, false)),
            ("read-only", false, (HOSTS, ReadOnly), (false, false)),
            ("privileged", true, (None, Unspecified), (false, true)),
            ("privileged-own", true, (OWN, Unspecified), (true, true)),
            ("privileged-hosts", true, (HOSTS, Unspecified), (false, true)),
        ];
        for (name, privileged, wishes, expected) in rows {
            let mut config = asking(client, name, wishes);
            security(&mut config).privileged = privileged;
            let id = client.launch(&pod, &config).await.unwrap();
            assert_eq!(seen(client, &id).await, expected, "{name}");
            let namespace = async |process: &str| {
                client.output(&id, &format!("readlink /proc/{process}/ns/cgroup")).await
            };
            assert_eq!(namespace("self").await, namespace("1").await, "{name}: a command is in it, too");
        }
    });
}

/// In systemd's hierarchy, too: in the daemon's cgroup a container could make others that nobody removes.
#[test]
fn a_container_is_in_its_own_cgroup_in_every_hierarchy() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("everywhere")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "exec sleep 4242")).await.unwrap();
        let pid = until("it sleeps", async || process_with("sleep 4242")).await;
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(!cgroups.is_empty() && cgroups.lines().all(|line| line.contains(&id)), "{cgroups}");
        let command = "while read line; do echo \"$line\"; done < /proc/self/cgroup";
        let seen = client.output(&id, command).await;
        let is_own =
            |line: &str| line.rsplit(':').next().is_some_and(|path| path.starts_with("/exec") || path == "/");
        assert!(!seen.is_empty() && seen.lines().all(is_own), "{seen}");
    });
}

#[test]
fn what_this_host_cannot_delegate_is_refused() {
    run(async |world| {
        let client = &world.client;
        let status = client.runtime.clone().status(StatusRequest::default()).await.unwrap().into_inner();
        assert!(!status.features.unwrap().cgroup_mount_mode, "this host has cgroups of v1");
        let mut pod = client.pod("refused");
        pod_security(&mut pod).privileged = true;
        let pod = client.run(&pod).await.unwrap();
        for (name, privileged, namespace) in
            [("plain", false, None), ("own", false, OWN), ("privileged", true, None)]
        {
            let mut config = asking(client, name, (namespace, CgroupMountMode::ReadWrite));
            security(&mut config).privileged = privileged;
            let error = client.create(&pod, &config).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
            assert!(error.message().contains("nsdelegate"), "{error}");
        }
        let mut config = asking(client, "read-only", (None, CgroupMountMode::ReadOnly));
        security(&mut config).privileged = true;
        let error = client.create(&pod, &config).await.unwrap_err();
        assert!(error.message().contains("cgroup_mount_mode"), "{error}");
    });
}
