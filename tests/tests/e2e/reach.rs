//! What a container can reach of the host: nothing, whatever it puts in the way of those who come in.

use wharf_cri_api::v1::{NamespaceMode, NamespaceOption};

use crate::client::{pod_security, security};
use crate::world::{run, until};

/// Puts a container's processes, or a pod's, into a PID namespace of a kind.
fn processes(pid: NamespaceMode) -> NamespaceOption {
    NamespaceOption { pid: pid.into(), ..NamespaceOption::default() }
}

#[test]
fn a_working_directory_that_leads_out_is_refused() {
    run(async |world| {
        let client = &world.client;
        let mut config = client.pod("leads-out");
        pod_security(&mut config).namespace_options = Some(processes(NamespaceMode::Pod));
        let pod = client.run(&config).await.unwrap();
        let modes = [NamespaceMode::Pod, NamespaceMode::Node];
        let links = ["/proc/1/root", "/proc/1/cwd", "/proc/self/root/proc/1/root"];
        let cases = links.iter().flat_map(|link| modes.map(|pid| (link, pid)));
        for (number, (link, pid)) in cases.enumerate() {
            let script = format!("rmdir /w; ln -s {link} /w; exec sleep 1000");
            let mut config = client.container(&format!("case-{number}"), &script);
            config.working_dir = "/w".to_owned();
            security(&mut config).namespace_options = Some(processes(pid));
            let id = client.launch(&pod, &config).await.unwrap();
            let error = until("the link is there", async || {
                match client.exec(&id, "cat etc/shadow", 10).await {
                    // Before the link was made.
                    Ok(response) if response.stdout.is_empty() => None,
                    other => Some(other.expect_err(link)),
                }
            })
            .await;
            assert!(error.message().contains("working directory /w"), "{link}: {error}");
        }
    });
}
