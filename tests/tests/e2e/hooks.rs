//! Hooks of containers: scripts of the host that note what they see, from vendors' files and from the node's directory.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tonic::Code;
use wharf_cri_api::v1::*;

use crate::client::{Client, pod_security, security};
use crate::world::{World, run, until};

/// The points of a container's life at which hooks are executed.
const POINTS: [&str; 5] = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];

impl World {
    fn place(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A script of the host, which finds its first argument in `$1`; returns its path.
    fn script(&self, name: &str, body: &str) -> String {
        let path = self.place(name);
        fs::write(&path, format!("#!/bin/sh\nD={}\n{body}\n", self.dir.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    /// A device whose hooks are these: point, script and what else is said.
    fn device(&self, hooks: &[(&str, &str, Value)]) {
        let hook = |(point, path, more): &(&str, &str, Value)| {
            let mut hook = json!({"hookName": point, "path": path, "args": ["hook", point]});
            hook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            hook
        };
        let hooks: Vec<Value> = hooks.iter().map(hook).collect();
        let device = json!({"name": "hooked", "containerEdits": {"hooks": hooks}});
        let file = json!({"cdiVersion": "0.6.0", "kind": "vendor.com/device", "devices": [device]});
        fs::create_dir_all(self.place("cdi")).unwrap();
        fs::write(self.place("cdi/hooks.json"), file.to_string()).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.place(name)).unwrap_or_default()
    }

    /// The points at which a script has noted its name, in order.
    fn noted(&self) -> Vec<String> {
        self.read("order").lines().map(str::to_owned).collect()
    }
}

fn hooked(client: &Client, name: &str) -> ContainerConfig {
    ContainerConfig {
        cdi_devices: vec![CdiDevice { name: "vendor.com/device=hooked".to_owned() }],
        ..client.container(name, "sleep 1000")
    }
}

fn nothing() -> Value {
    json!({})
}

/// Notes the point, the state and what there is to be seen.
const NOTE: &str = r#"echo "$1" >> $D/order
cat > "$D/$1.state"
{
  for kind in mnt net ipc uts pid; do echo "$kind $(readlink /proc/self/ns/$kind)"; done
  echo "hostname $(cat /proc/sys/kernel/hostname)"
  bundle=$(sed 's/.*"bundle":"\([^"]*\)".*/\1/' "$D/$1.state")
  echo "root $(ls $bundle/rootfs 2>/dev/null | grep -c '^bin$')"
  echo "config $(grep -c ociVersion $bundle/config.json)"
} > "$D/$1.seen""#;

#[test]
fn each_point_comes_in_its_turn_and_sees_what_the_spec_says() {
    run(async |world| {
        let script = world.script("note", NOTE);
        let hooks: Vec<_> = POINTS.iter().rev().map(|point| (*point, &*script, nothing())).collect();
        world.device(&hooks);
        let client = &world.client;
        let mut config = client.pod("hooks");
        config.hostname = "of-the-pod".to_owned();
        let pod = client.run(&config).await.unwrap();
        let id = client.create(&pod, &hooked(client, "main")).await.unwrap();
        assert_eq!(world.noted(), POINTS[..3]);
        client.start(&id).await.unwrap();
        assert_eq!(world.noted(), POINTS[..4]);
        client.stop_container(&id, 0).await.unwrap();
        assert_eq!(world.noted(), POINTS[..4], "it is there until it is removed");
        client.remove_container(&id).await.unwrap();
        client.remove_container(&id).await.unwrap();
        assert_eq!(world.noted(), POINTS, "once each");
        let bundle = world.place("state/pods").join(&pod).join("bundles").join(&id);
        for (point, status) in POINTS.iter().zip(["creating", "creating", "creating", "running", "stopped"]) {
            let state: Value = serde_json::from_str(&world.read(&format!("{point}.state"))).unwrap();
            assert_eq!(
                (state["status"].as_str(), state["id"].as_str()),
                (Some(status), Some(&*id)),
                "{point}"
            );
            assert_eq!(state["bundle"].as_str(), bundle.to_str());
            assert_eq!(state["annotations"]["io.kubernetes.cri.sandbox-name"], "hooks");
            assert_eq!(state["pid"].as_i64().is_some_and(|pid| pid > 0), *point != "poststop", "{point}");
        }
        assert!(!bundle.exists());
        let own = |kind: &str| fs::read_link(format!("/proc/{}/ns/{kind}", world.daemon.pid())).unwrap();
        for point in POINTS {
            let seen = world.read(&format!("{point}.seen"));
            let value = |word: &str| {
                seen.lines()
                    .find_map(|line| line.strip_prefix(&format!("{word} ")))
                    .unwrap_or_default()
                    .to_owned()
            };
            let is_inside = point == "createContainer";
            for kind in ["mnt", "net", "ipc", "uts"] {
                assert_eq!(value(kind) != own(kind).to_str().unwrap(), is_inside, "{point}: {kind}: {seen}");
            }
            assert_eq!(value("pid"), own("pid").to_str().unwrap(), "{point}");
            assert_eq!(value("hostname") == "of-the-pod", is_inside, "{point}: {seen}");
            assert_eq!(value("root"), if is_inside { "1" } else { "0" }, "{point}: {seen}");
            assert_eq!(value("config"), "1", "{point}");
        }
        client.down(&pod).await.unwrap();
    });
}

/// What a hook changes in the root file system and mounts in it is the container's, also if that may not write there.
#[test]
fn what_a_hook_changes_in_the_root_is_there_for_the_program_and_nothing_of_the_host_is() {
    run(async |world| {
        let body = r#"root=$(sed 's/.*"bundle":"\([^"]*\)".*/\1/')/rootfs
echo written > $root/of-the-hook && ln -s /of-the-hook $root/link && mkdir -p $root/scratch || exit 1
mount -t tmpfs hook $root/scratch && echo mounted > $root/scratch/file || exit 2
mount --bind $D/order $root/scratch/file || exit 3
mount -t tmpfs elsewhere /mnt && touch /mnt/elsewhere || exit 4"#;
        fs::write(world.place("order"), "bound").unwrap();
        let script = world.script("change", body);
        world.device(&[("createContainer", &script, nothing())]);
        let client = &world.client;
        let hosts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = hosts();
        let pod = client.run(&client.pod("changes")).await.unwrap();
        for (name, readonly_rootfs) in [("writable", false), ("read-only", true)] {
            let mut config = hooked(client, name);
            security(&mut config).readonly_rootfs = readonly_rootfs;
            let volume = Mount {
                container_path: "/data".to_owned(),
                host_path: world.place("data").display().to_string(),
                ..Mount::default()
            };
            config.mounts.push(volume);
            let id = client.launch(&pod, &config).await.unwrap();
            let seen = client
                .output(&id, "cat /of-the-hook /link /scratch/file; echo; ls -d /mnt 2>/dev/null | wc -l")
                .await;
            assert_eq!(seen, "written\nwritten\nbound\n0", "{name}");
            let writable = client.output(&id, "touch /new 2>/dev/null && echo yes || echo no").await;
            assert_eq!(writable, if readonly_rootfs { "no" } else { "yes" });
            let table = client.output(&id, "cat /proc/self/mountinfo").await;
            assert!(!table.contains("shared:"), "mounts that propagate are left: {table}");
            assert!(!table.contains("elsewhere"), "{table}");
            assert!(table.contains(" /scratch/file "), "{table}");
            assert_eq!(
                client.output(&id, "ls -d /proc/1/root/work /usr/lib/systemd 2>/dev/null | wc -l").await,
                "0"
            );
        }
        assert_eq!(hosts(), before, "what hooks mount is not the host's");
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn a_hook_that_fails_before_the_start_fails_the_container_and_later_ones_do_not() {
    run(async |world| {
        let note = world.script("note", NOTE);
        let fail = world.script("fail", "echo the GPU is on fire >&2; exit 5");
        let client = &world.client;
        let pod = client.run(&client.pod("failures")).await.unwrap();
        for point in &POINTS[..3] {
            drop(fs::remove_file(world.place("order")));
            world.device(&[(*point, &fail, nothing()), ("poststop", &note, nothing())]);
            let error = client.create(&pod, &hooked(client, "main")).await.unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition);
            let words = format!("fail at {point} failed: exit status: 5: the GPU is on fire");
            assert!(error.message().contains(&words), "{error}");
            let undone = async || (world.noted() == ["poststop"]).then_some(());
            until("the container is undone", undone).await;
            assert!(client.containers().await.is_empty());
        }
        for point in &POINTS[3..] {
            world.device(&[(*point, &fail, nothing()), (*point, &note, nothing())]);
            let id = client.launch(&pod, &hooked(client, point)).await.unwrap();
            client.remove_container(&id).await.unwrap();
            assert!(world.noted().contains(&(*point).to_owned()), "the hook after the one that failed");
        }
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn a_hook_that_hangs_is_ended_and_holds_up_no_other_pod() {
    run(async |world| {
        let hang = world.script("hang", "touch $D/hangs; sleep 1000");
        let client = &world.client;
        let pod = client.run(&client.pod("hanging")).await.unwrap();
        for point in &POINTS[..3] {
            drop(fs::remove_file(world.place("hangs")));
            world.device(&[(*point, &hang, json!({"timeout": 2}))]);
            let config = hooked(client, "main");
            let begin = Instant::now();
            let other = async {
                until("the hook hangs", async || world.place("hangs").exists().then_some(())).await;
                let pod = client.run(&client.pod(&format!("other-{point}"))).await.unwrap();
                let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
                assert_eq!(client.output(&id, "echo here").await, "here");
                client.down(&pod).await.unwrap();
            };
            let (hung, ()) = tokio::join!(client.create(&pod, &config), other);
            let error = hung.unwrap_err();
            assert!(error.message().contains("did not end within 2 s"), "{error}");
            assert!(begin.elapsed() < Duration::from_secs(60));
        }
        client.down(&pod).await.unwrap();
    });
}

/// There are more of them than all pods' threads once were.
#[test]
fn hooks_that_hang_in_one_pod_hold_up_no_other_and_no_end() {
    const HANGING: usize = 66;
    run(async |world| {
        let hang = world.script("hang", "echo hangs >> $D/hanging; while [ -e $D/held ]; do sleep 0.2; done");
        let note = world.script("note", NOTE);
        let client = &world.client;
        world.device(&[("poststart", &hang, json!({"timeout": 600}))]);
        fs::write(world.place("held"), "").unwrap();
        let pod = client.run(&client.pod("hanging")).await.unwrap();
        let mut hanging = Vec::new();
        for n in 0..HANGING {
            hanging.push(client.create(&pod, &hooked(client, &format!("hangs-{n}"))).await.unwrap());
        }
        world.device(&[("createRuntime", &note, nothing()), ("poststop", &note, nothing())]);
        let starts = join_all(hanging.iter().map(|id| client.start(id)));
        let other = async {
            let all_run = async || {
                let all = client.containers().await;
                all.iter().all(|one| one.state() == ContainerState::ContainerRunning).then_some(())
            };
            until("all run", all_run).await;
            let hang = async || (world.read("hanging").lines().count() >= 8).then_some(());
            until("as many hang as may", hang).await;
            let other = client.run(&client.pod("other")).await.unwrap();
            client.launch(&other, &hooked(client, "main")).await.unwrap();
            client.down(&other).await.unwrap();
            assert_eq!(world.noted(), ["createRuntime", "poststop"]);
            fs::remove_file(world.place("held")).unwrap();
        };
        let (started, ()) = tokio::join!(starts, other);
        started.into_iter().for_each(Result::unwrap);
        client.down(&pod).await.unwrap();
    });
}

/// The record tells the next daemon of the hooks for the end.
#[test]
fn hooks_for_the_end_are_executed_by_the_next_daemon() {
    run(async |world| {
        let note = world.script("note", NOTE);
        world.device(&[("poststop", &note, nothing())]);
        let pod = world.client.run(&world.client.pod("kept")).await.unwrap();
        let id = world.client.launch(&pod, &hooked(&world.client, "main")).await.unwrap();
        // What the file says now is for later containers.
        fs::remove_dir_all(world.place("cdi")).unwrap();
        world.daemon.kill();
        world.start_again().await;
        assert_eq!(world.noted(), [""; 0]);
        world.client.down(&pod).await.unwrap();
        assert_eq!(world.noted(), ["poststop"]);
        let state: Value = serde_json::from_str(&world.read("poststop.state")).unwrap();
        assert_eq!((state["id"].as_str(), state["status"].as_str()), (Some(&*id), Some("stopped")));
    });
}

/// Neither what is left of a pod whose record is damaged, nor of a container.
#[test]
fn hooks_for_the_end_keep_no_daemon_from_starting() {
    run(async |world| {
        let hang = world.script("hang", "echo $1 >> $D/order; while [ -e $D/held ]; do sleep 0.1; done");
        world.device(&[("poststop", &hang, json!({"timeout": 600}))]);
        fs::write(world.place("held"), "").unwrap();
        let client = &world.client;
        let [pod, other] = [
            client.run(&client.pod("damaged")).await.unwrap(),
            client.run(&client.pod("other")).await.unwrap(),
        ];
        for name in ["one", "two"] {
            client.launch(&pod, &hooked(client, name)).await.unwrap();
        }
        let id = client.launch(&other, &hooked(client, "damaged")).await.unwrap();
        world.daemon.kill();
        let pods = world.place("state/pods");
        for record in [pods.join(&pod).join("record"), pods.join(&other).join("containers").join(&id)] {
            fs::write(record, "nonsense").unwrap();
        }
        world.start_again().await;
        let all_hang = async || (world.noted().len() == 3).then_some(());
        until("all hooks hang", all_hang).await;
        assert_eq!(world.client.pods().await.len(), 1);
        fs::remove_file(world.place("held")).unwrap();
        let bundle = pods.join(&other).join("bundles").join(&id);
        until("its bundle is removed", async || (!bundle.exists()).then_some(())).await;
        world.client.down(&other).await.unwrap();
        let undone = async || fs::read_dir(&pods).unwrap().next().is_none().then_some(());
        until("the pod is undone", undone).await;
        fs::remove_dir_all(world.place("state/quarantine")).expect("the records were kept");
    });
}

#[test]
fn a_daemon_that_is_killed_at_a_hook_leaves_a_container_that_is_undone() {
    run(async |world| {
        let note = world.script("note", NOTE);
        // It ends with its daemon: what it does must not come after the hooks for the end.
        let hang = "echo $$ > $D/pid; touch $D/hangs; while [ -e $D/hangs ]; do sleep 0.1; done";
        let hang = world.script("hang", hang);
        for point in ["createRuntime", "createContainer"] {
            drop(fs::remove_file(world.place("order")));
            world.device(&[(point, &hang, nothing()), ("poststop", &note, nothing())]);
            let pod = world.client.run(&world.client.pod(point)).await.unwrap();
            let config = hooked(&world.client, "main");
            let (client, hangs) = (world.client.clone(), world.place("hangs"));
            let killed = async {
                until("the hook hangs", async || hangs.exists().then_some(())).await;
                world.daemon.kill();
            };
            let (created, ()) = tokio::join!(client.create(&pod, &config), killed);
            assert!(created.is_err());
            let hook = format!("/proc/{}/cmdline", world.read("pid").trim());
            // That of a zombie is empty.
            let ended = async || fs::read(&hook).unwrap_or_default().is_empty().then_some(());
            until("the hook ends with its daemon", ended).await;
            world.start_again().await;
            let undone = async || (world.noted() == ["poststop"]).then_some(());
            until("the container is undone", undone).await;
            fs::remove_file(world.place("hangs")).unwrap();
            world.device(&[("poststop", &note, nothing())]);
            let id = world.client.launch(&pod, &config).await.unwrap();
            assert_eq!(world.client.output(&id, "echo runs").await, "runs");
            world.client.down(&pod).await.unwrap();
        }
    });
}

#[test]
fn the_nodes_hooks_are_for_the_containers_that_they_name() {
    run(async |world| {
        let client = &world.client;
        let note = world.script("note", r#"echo "$1" >> $D/order"#);
        fs::create_dir(world.place("hooks.d")).unwrap();
        let write = |name: &str, when: &str, stages: &str| {
            let hook = format!(r#"{{"path": "{note}", "args": ["hook", "{name}"], "timeout": 10}}"#);
            let file =
                format!(r#"{{"version": "1.0.0", "hook": {hook}, "when": {when}, "stages": [{stages}]}}"#);
            fs::write(world.place("hooks.d").join(name), file).unwrap();
        };
        write("b-always.json", r#"{"always": true}"#, r#""createRuntime", "poststop""#);
        write(
            "a-annotated.json",
            r#"{"annotations": {"^example\\.org/hook$": "^yes$"}}"#,
            r#""createRuntime""#,
        );
        write("c-commands.json", r#"{"commands": ["^/no/such$"]}"#, r#""createRuntime""#);
        let pod = client.run(&client.pod("configured")).await.unwrap();
        let plain = client.launch(&pod, &client.container("plain", "sleep 1000")).await.unwrap();
        assert_eq!(world.noted(), ["b-always.json"]);
        let annotations = [("example.org/hook".to_owned(), "yes".to_owned())].into();
        let config = ContainerConfig { annotations, ..client.container("annotated", "sleep 1000") };
        client.launch(&pod, &config).await.unwrap();
        assert_eq!(world.noted(), ["b-always.json", "a-annotated.json", "b-always.json"]);
        client.remove_container(&plain).await.unwrap();
        assert_eq!(world.noted().len(), 4);
        fs::write(world.place("hooks.d/damaged.json"), "{").unwrap();
        let error = client.create(&pod, &client.container("refused", "true")).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("hooks.d/damaged.json"), "{error}");
        fs::remove_dir_all(world.place("hooks.d")).unwrap();
        client.launch(&pod, &client.container("none", "sleep 1000")).await.unwrap();
        client.down(&pod).await.unwrap();
        assert_eq!(world.noted().len(), 5, "the annotated container is removed, too");
    });
}

#[test]
fn what_cannot_be_as_the_spec_says_is_refused() {
    run(async |world| {
        let client = &world.client;
        let script = world.script("note", NOTE);
        let ids = || vec![IdMapping { host_id: 100_000, container_id: 0, length: 65_536 }];
        let mut mapped = client.pod("mapped");
        let options = pod_security(&mut mapped).namespace_options.get_or_insert_default();
        options.userns_options =
            Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(), gids: ids() });
        let rows = [
            (client.pod("plain"), "startContainer", "use createContainer"),
            (mapped, "createContainer", "user namespace"),
        ];
        for (pod, point, words) in rows {
            world.device(&[(point, &script, nothing())]);
            let pod = client.run(&pod).await.unwrap();
            let error = client.create(&pod, &hooked(client, "main")).await.unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition);
            assert!(error.message().contains(words), "{error}");
            client.down(&pod).await.unwrap();
        }
        assert_eq!(world.noted(), [""; 0]);
        // From outside, there is nothing that a user namespace would change.
        world.device(&[("createRuntime", &script, nothing())]);
        let mut mapped = client.pod("again");
        let options = pod_security(&mut mapped).namespace_options.get_or_insert_default();
        options.userns_options =
            Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(), gids: ids() });
        let pod = client.run(&mapped).await.unwrap();
        client.launch(&pod, &hooked(client, "main")).await.unwrap();
        assert_eq!(world.noted(), ["createRuntime"]);
        client.down(&pod).await.unwrap();
    });
}
