//! Seccomp profiles that refuse the calls that wharf itself makes on the way to a program: either it makes them before
//! the filter is loaded, or it reports which call the profile refuses; nothing hangs.

use std::fs;
use std::path::{Path, PathBuf};

use wharf_cri_api::v1::*;

use crate::client::{Client, processes, security};
use crate::daemon::process_with;
use crate::paused::Freezer;
use crate::world::{World, run, until};

/// The calls on the way, with the message for those without which a program cannot start. Without no_new_privs, loading
/// a filter takes a right that must be given up under the filter.
const CALLS: [(&str, Option<&str>); 14] = [
    ("capset", Some("refuses capset")),
    ("prctl", Some("refuses prctl")),
    ("execve", Some("refuses execve")),
    ("clone", None),
    ("close_range", None),
    ("dup3", None),
    ("exit_group", None),
    ("madvise", None),
    ("mmap", None),
    ("pidfd_send_signal", None),
    ("sendmsg", None),
    ("setsid", None),
    ("socketpair", None),
    ("write", None),
];

/// Writes a profile that allows everything except one call.
fn profile(directory: &Path, call: &str, action: &str) -> PathBuf {
    let path = directory.join(format!("{call}-{action}.json"));
    let rule = format!(r#"{{"names": ["{call}"], "action": "{action}"}}"#);
    fs::write(&path, format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#)).unwrap();
    path
}

/// A container under a profile. Its program is static and makes next to no calls.
fn under(client: &Client, name: &str, profile: &Path) -> ContainerConfig {
    let mut config = client.container(name, "exec sleep 1000");
    security(&mut config).seccomp = Some(SecurityProfile {
        profile_type: security_profile::ProfileType::Localhost.into(),
        localhost_ref: profile.display().to_string(),
        ..SecurityProfile::default()
    });
    config
}

/// Checks the message for each call, for a container and for a command in it.
async fn starts_or_says_why(world: &World, pod: &str, mode: NamespaceMode) {
    let client = &world.client;
    for (call, refused) in CALLS {
        let mut config =
            under(client, &format!("{call}-{mode:?}"), &profile(&world.dir, call, "SCMP_ACT_ERRNO"));
        security(&mut config).namespace_options = Some(processes(mode));
        let started = client.launch(pod, &config).await;
        match (&started, refused) {
            (Ok(id), None) => {
                // The program's own calls may be refused, but it was started.
                let answer = client.exec(id, "exec true", 20).await;
                assert!(answer.is_ok(), "a command under {call}: {answer:?}");
            }
            (Err(error), Some(words)) => {
                let all = format!("the container's seccomp profile {words}");
                assert!(error.message().contains(&all), "{call}: {error}");
            }
            _ => panic!("{call}: {started:?}"),
        }
    }
}

#[test]
fn a_profile_may_refuse_what_leads_to_the_program() {
    run(async |world| {
        let pod = world.client.run(&world.client.pod("own")).await.unwrap();
        starts_or_says_why(world, &pod, NamespaceMode::Container).await;
    });
}

#[test]
fn a_profile_may_refuse_what_leads_among_others() {
    run(async |world| {
        let pod = world.client.run(&world.client.pod("shared")).await.unwrap();
        starts_or_says_why(world, &pod, NamespaceMode::Pod).await;
    });
}

#[test]
fn without_new_privileges_nothing_is_called_under_the_filter_but_the_exec() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("none-new")).await.unwrap();
        for (call, _) in CALLS.iter().filter(|(call, _)| *call != "execve") {
            let mut config = under(client, call, &profile(&world.dir, call, "SCMP_ACT_ERRNO"));
            security(&mut config).no_new_privs = true;
            let id = client.launch(&pod, &config).await.unwrap_or_else(|error| panic!("{call}: {error}"));
            let answer = client.exec(&id, "exec true", 20).await;
            assert!(answer.is_ok(), "a command under {call}: {answer:?}");
        }
    });
}

const REFUSED_BESIDE_TRACERS: &str =
    "forbids a call that is needed to start a program safely beside a container with CAP_SYS_PTRACE";

fn tracing(config: &mut ContainerConfig) {
    let add_capabilities = vec!["SYS_PTRACE".to_owned()];
    security(config).capabilities = Some(Capability { add_capabilities, ..Capability::default() });
}

/// Until its filter is loaded, a new process has rights that the program has not: nobody there may take it over.
#[test]
fn where_a_container_may_trace_a_program_starts_only_under_its_filter() {
    run(async |world| {
        let client = &world.client;
        let refused = REFUSED_BESIDE_TRACERS;
        let pod = client.run(&client.pod("traced")).await.unwrap();
        for (call, is_refused) in [("setsid", true), ("close_range", true), ("pidfd_send_signal", false)] {
            let mut config = under(client, call, &profile(&world.dir, call, "SCMP_ACT_ERRNO"));
            tracing(&mut config);
            let id = client.launch(&pod, &config).await.unwrap();
            match client.exec(&id, "exec true", 20).await {
                Err(error) => assert!(is_refused && error.message().contains(refused), "{call}: {error}"),
                Ok(_) => assert!(!is_refused, "{call}"),
            }
        }
        let setsid = under(client, "app", &profile(&world.dir, "setsid", "SCMP_ACT_ERRNO"));
        let shared = async |name: &str, with: fn(&mut ContainerConfig), tracer: NamespaceMode| {
            let pod = client.run(&client.pod(name)).await.unwrap();
            let (mut app, mut other) = (setsid.clone(), client.container("other", "exec sleep 1000"));
            security(&mut app).namespace_options = Some(processes(NamespaceMode::Pod));
            security(&mut other).namespace_options = Some(processes(tracer));
            with(&mut other);
            client.launch(&pod, &other).await.unwrap();
            client.launch(&pod, &app).await
        };
        let error = shared("beside", tracing, NamespaceMode::Pod).await.unwrap_err();
        assert!(error.message().contains(refused), "{error}");
        shared("apart", tracing, NamespaceMode::Container).await.unwrap();
        shared("harmless", |_config| {}, NamespaceMode::Pod).await.unwrap();
    });
}

fn beside(client: &Client, name: &str, mode: NamespaceMode, target: &str) -> ContainerConfig {
    let mut config = client.container(name, "exec sleep 1002");
    let options = NamespaceOption { target_id: target.to_owned(), ..processes(mode) };
    security(&mut config).namespace_options = Some(options);
    config
}

/// The one that may trace comes after the other was created, or while a command is on its way into it.
#[test]
fn a_container_that_may_trace_finds_nothing_that_begins_without_its_filter() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("late")).await.unwrap();
        let mut app = under(client, "app", &profile(&world.dir, "setsid", "SCMP_ACT_ERRNO"));
        let mut tracer = client.container("tracer", "exec sleep 1001");
        tracing(&mut tracer);
        for config in [&mut app, &mut tracer] {
            security(config).namespace_options = Some(processes(NamespaceMode::Pod));
        }
        let waits = client.create(&pod, &app).await.unwrap();
        let traces = client.launch(&pod, &tracer).await.unwrap();
        let error = client.start(&waits).await.unwrap_err();
        assert!(error.message().contains(REFUSED_BESIDE_TRACERS), "{error}");
        client.remove_container(&waits).await.unwrap();
        // It is where it was also once what it was made beside is gone.
        let target = client.launch(&pod, &beside(client, "target", NamespaceMode::Pod, "")).await.unwrap();
        let mut late = beside(client, "late", NamespaceMode::Target, &target);
        tracing(&mut late);
        let late = client.launch(&pod, &late).await.unwrap();
        for id in [&traces, &target] {
            client.remove_container(id).await.unwrap();
        }
        let error = client.launch(&pod, &app).await.unwrap_err();
        assert!(error.message().contains(REFUSED_BESIDE_TRACERS), "{error}");
        for container in client.containers().await {
            client.remove_container(&container.id).await.unwrap();
        }
        drop(late);
        let id = client.launch(&pod, &app).await.unwrap();
        let first = until("it runs", async || process_with("sleep 1000")).await;
        let freezers = Freezer::all(first);
        let freezer = freezers.last().unwrap();
        freezer.freeze();
        let late = async {
            let begun = async || (world.cgroups("/exec-") > 0).then_some(());
            until("the command is on its way", begun).await;
            let error = client.create(&pod, &tracer).await.unwrap_err();
            assert!(error.message().contains("not under its seccomp profile yet"), "{error}");
            freezer.thaw();
        };
        let (output, ()) = tokio::join!(client.output(&id, "echo whole"), late);
        assert_eq!(output, "whole");
        client.launch(&pod, &tracer).await.unwrap();
    });
}

#[test]
fn a_profile_that_kills_ends_the_container() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("kills")).await.unwrap();
        for call in ["capset", "execve"] {
            let config = under(client, call, &profile(&world.dir, call, "SCMP_ACT_KILL_PROCESS"));
            let id = client.create(&pod, &config).await.unwrap();
            // Whoever starts it cannot know whether the failing call was the program's.
            client.start(&id).await.unwrap_or_default();
            let sigsys = 128 + 31;
            assert_eq!(client.exited(&id).await.exit_code, sigsys, "{call}");
        }
    });
}
