//! StopContainer, RemoveContainer and UpdateContainerResources.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt as _;
use wharf_cri_api::v1::{ContainerEventType, LinuxContainerResources};
use wharf_records::ContainerRecord;
use wharf_state::ExitRecord;
use wharf_types::signal::{SIGINT, SIGKILL};
use wharf_types::{ContainerId, ContainerState, ErrorKind, Exit, Failure as _, chain};
use wharf_wire::v1::failure::Kind;

use super::super::supervision::{READERS, READERS_LIMIT};
use super::world::{World, alone, container_config, until};
use crate::container::Container;
use crate::pod::Pod;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3600);
/// Over before a supervisor could do anything.
const SHORT: Duration = Duration::from_millis(1);

#[test]
fn a_program_is_asked_before_it_is_killed() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        world.engine.stop_container(container.id().as_str(), LONG).await.unwrap();
        assert_eq!(supervisor.asked()[2..], ["signal 2"], "the image's own signal");
        assert_eq!(container.exit(), Exit::Signal { number: SIGINT, oom: false });
        world.engine.stop_container(container.id().as_str(), LONG).await.unwrap();
        assert_eq!(supervisor.asked().len(), 3, "an exited container is stopped");
    });
}

#[test]
fn a_program_that_does_not_listen_is_killed_after_its_time() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        supervisor.ignore("signal 2");
        world.engine.stop_container(container.id().as_str(), SHORT).await.unwrap();
        assert_eq!(supervisor.asked()[2..], ["signal 2", "kill"]);
        assert_eq!(container.exit(), Exit::Signal { number: SIGKILL, oom: false });
    });
}

#[test]
fn a_container_that_was_never_started_is_not_waited_for() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.create(&pod).await;
        world.engine.stop_container(container.id().as_str(), LONG).await.unwrap();
        assert_eq!(supervisor.asked(), ["create", "kill"]);
        assert!(container.is_exited());
    });
}

#[test]
fn a_supervisor_that_sends_no_signal_is_done_without() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        supervisor.refuse("kill", Kind::Internal);
        world.engine.stop_container(container.id().as_str(), Duration::ZERO).await.unwrap();
        assert_eq!(container.exit(), Exit::Lost, "its cgroup is empty, and nobody says how that came");
    });
}

#[test]
fn an_end_that_the_disk_never_tells_keeps_nobody_from_removing_the_container() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let id = container.id().as_str();
        supervisor.refuse("kill", Kind::Internal);
        // Reading it fails.
        std::fs::create_dir(world.layout().exit_record(pod.id(), container.id())).unwrap();
        world.engine.stop_container(id, Duration::ZERO).await.unwrap();
        assert_eq!(container.exit(), Exit::Lost);
        supervisor.relent();
        world.engine.remove_container(id).await.unwrap();
        world.assert_no_container(&pod, "removed without its exit record");
    });
}

/// A file system that waits for its server does not fail.
#[test]
fn an_end_that_hangs_on_the_disk_counts_as_lost_in_time() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        // As many records as are read at a time never come.
        let (mut disks, mut hanging) = (Vec::new(), Vec::new());
        for _ in 0..READERS_LIMIT {
            let (disk, waits) = std::sync::mpsc::channel::<()>();
            let mut reading = Box::pin(READERS.run(&(), "a reading", move || waits.recv().is_err()));
            assert!(reading.as_mut().now_or_never().is_none());
            disks.push(disk);
            hanging.push(reading);
        }
        world.engine.note_lost_within(&pod, &container, Duration::from_millis(50)).await;
        assert_eq!(container.exit(), Exit::Lost);
        drop(disks);
        futures_util::future::join_all(hanging).await;
    });
}

#[test]
fn a_removed_container_leaves_nothing_and_is_gone_for_good() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let mut events = world.engine.subscribe();
        let id = container.id().as_str();
        let (one, other) = tokio::join!(world.engine.remove_container(id), world.engine.remove_container(id));
        one.and(other).unwrap();
        let removals = supervisor.asked().iter().filter(|asked| *asked == "remove").count();
        assert_eq!(removals, 1, "the second caller found nothing to remove");
        world.assert_no_container(&pod, "removed");
        world.engine.remove_container(id).await.unwrap();
        world.engine.stop_container(id, LONG).await.unwrap();
        let mut kinds = Vec::new();
        while let Ok(event) = events.try_recv() {
            kinds.push(event.kind);
        }
        use ContainerEventType::{ContainerDeletedEvent, ContainerStoppedEvent};
        assert_eq!(kinds, [ContainerStoppedEvent, ContainerDeletedEvent], "each once");
    });
}

#[test]
fn a_removal_that_a_supervisor_refuses_can_be_repeated() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let id = container.id().as_str();
        supervisor.refuse("remove", Kind::Internal);
        world.engine.remove_container(id).await.unwrap_err();
        assert!(world.engine.container(id).is_ok(), "it is still listed");
        supervisor.relent();
        world.engine.remove_container(id).await.unwrap();
        world.assert_no_container(&pod, "removed at the second attempt");
    });
}

#[test]
fn a_supervisor_that_cannot_forget_now_is_asked_again_later() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        supervisor.refuse("remove", Kind::Expired);
        world.engine.remove_container(container.id().as_str()).await.unwrap();
        world.assert_no_container(&pod, "removed without its supervisor");
        until(|| supervisor.asked()[2..] == ["kill", "remove", "kill", "remove"]).await;
    });
}

/// It is removed without its supervisor, and its hooks for the end may take minutes. If a kill of the daemon cuts them
/// off, the next one has to find how it ended.
#[test]
fn a_supervisor_that_forgets_late_takes_no_exit_of_a_recorded_container_along() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let unknown = ContainerId::from_random([9; 32]);
        let exits = [container.id(), &unknown].map(|id| world.layout().exit_record(pod.id(), id));
        let end = ExitRecord { exit: Exit::Code(7), started_at_ns: 1, finished_at_ns: 2 };
        exits.iter().for_each(|exit| end.save(exit).unwrap());
        for id in [container.id(), &unknown] {
            world.engine.disown(&pod, &pod.connection().unwrap(), id.as_str());
            until(|| supervisor.asked().ends_with(&["remove".to_owned()])).await;
        }
        until(|| !exits[1].exists()).await;
        assert!(exits[0].exists());
        world.engine.remove_container(container.id().as_str()).await.unwrap();
        world.assert_no_container(&pod, "its exit record goes last");
    });
}

/// Without its bundle, a hook would see nothing of the container.
#[test]
fn hooks_for_the_end_are_not_executed_again_if_something_else_cannot_be_removed() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let ended = world.aside("ended");
        world.hook("poststop", &format!("pwd >> {}", ended.display()));
        let container = world.create(&pod).await;
        // Something is mounted there.
        world.limit_files(&world.layout().snapshots().join(container.id().as_str()), 1);
        for _ in 0..2 {
            world.engine.remove_container(container.id().as_str()).await.unwrap_err();
        }
        let bundle = world.layout().bundle(pod.id(), container.id());
        assert_eq!(std::fs::read_to_string(&ended).unwrap(), format!("{}\n", bundle.display()));
    });
}

/// Nor by the next daemon. A hook may unmount what is mounted over the bundle itself.
#[test]
fn hooks_for_the_end_are_executed_once_if_the_bundle_cannot_be_removed() {
    for place in ["rootfs", ""] {
        alone(async |world| {
            let (pod, _supervisor) = world.pod().await;
            let ended = world.aside("ended");
            world.hook("poststop", &format!("echo once >> {}", ended.display()));
            let container = world.create(&pod).await;
            let bundle = world.layout().bundle(pod.id(), container.id());
            let bundles = bundle.parent().unwrap();
            let executed = || std::fs::read_to_string(&ended).unwrap_or_default();
            world.limit_files(&bundle.join(place), 1);
            for _ in 0..2 {
                let busy = world.engine.remove_container(container.id().as_str()).await.unwrap_err();
                assert!(chain(&busy).contains("unmount what is mounted"), "{}", chain(&busy));
                assert_eq!(executed(), "once\n");
            }
            let next = world.next_engine();
            next.recover().await.unwrap();
            next.remove_container(container.id().as_str()).await.unwrap_err();
            world.unlimit_files(&bundle.join(place));
            next.remove_container(container.id().as_str()).await.unwrap();
            assert_eq!(std::fs::read_dir(bundles).unwrap().count(), 0);
            assert_eq!(executed(), "once\n");
        });
    }
}

#[test]
fn what_is_listed_is_removed_as_it_was_made_whatever_became_of_its_record() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let ended = world.aside("ended");
        world.hook("poststop", &format!("touch {}", ended.display()));
        let container = world.start(&pod).await;
        std::fs::remove_file(world.layout().container_record(pod.id(), container.id())).unwrap();
        std::fs::remove_file(world.layout().container_spec(pod.id(), container.id())).unwrap();
        world.engine.remove_container(container.id().as_str()).await.unwrap();
        assert!(ended.exists());
        world.assert_no_container(&pod, "without a record");
    });
}

fn limits(cpu_shares: i64, cpuset: &str) -> LinuxContainerResources {
    LinuxContainerResources { cpu_shares, cpuset_cpus: cpuset.to_owned(), ..Default::default() }
}

/// The shares in memory and on disk, which are always the same.
fn shares(world: &World, pod: &Pod, container: &Container) -> i64 {
    let of = |record: &ContainerRecord| record.config.linux.clone()?.resources.map(|it| it.cpu_shares);
    let on_disk = ContainerRecord::load(&world.layout().container_record(pod.id(), container.id()));
    let in_memory = container.with_record(of);
    assert_eq!(of(&on_disk.unwrap()), in_memory);
    in_memory.unwrap_or_default()
}

#[test]
fn an_update_changes_limits_and_record_or_neither() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let id = container.id().as_str();
        world.engine.update_container(id, limits(512, "")).await.unwrap();
        assert_eq!(shares(world, &pod, &container), 512);
        world.engine.update_container(id, limits(0, "0")).await.unwrap();
        assert_eq!(shares(world, &pod, &container), 512, "what a request does not set stays");
        let refused = world.engine.update_container(id, limits(256, "4000")).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
        assert_eq!(shares(world, &pod, &container), 512);
        let records = world.layout().container_records(pod.id());
        std::fs::rename(&records, world.aside("records")).unwrap();
        world.engine.update_container(id, limits(256, "")).await.unwrap_err();
        std::fs::rename(world.aside("records"), &records).unwrap();
        assert_eq!(shares(world, &pod, &container), 512, "without a record, no limit");
        assert!(matches!(container.shown(), ContainerState::Running { .. }));
        world.engine.stop_container(id, Duration::ZERO).await.unwrap();
        let late = world.engine.update_container(id, limits(256, "")).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::FailedPrecondition, "{late}");
    });
}

/// A cgroup that looks, as long as this exists, as if it had a process that the kernel does not let die.
pub(super) struct Undead(PathBuf);

impl Undead {
    pub(super) fn in_cgroup(directory: &Path, scratch: &Path) -> Self {
        let seen = scratch.join("undead");
        std::fs::create_dir(&seen).unwrap();
        for (file, text) in
            [("cgroup.events", "populated 1\nfrozen 0\n"), ("cgroup.kill", ""), ("cgroup.procs", "")]
        {
            std::fs::write(seen.join(file), text).unwrap();
        }
        nix::mount::mount(Some(&seen), directory, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)
            .unwrap();
        Self(directory.to_owned())
    }
}

impl Drop for Undead {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn one_process_that_does_not_die_holds_up_the_end_of_no_other_container() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        world.start(&pod).await;
        let other = world.try_create(&pod, container_config("other")).await.unwrap();
        world.engine.start_container(other.as_str()).await.unwrap();
        let [first, second] = pod.containers().try_into().unwrap();
        let undead = Undead::in_cgroup(&first.cgroup().unwrap().kill_directory(), world.layout().root());
        supervisor.die();
        second.exited().await;
        assert!(!first.is_exited(), "something of it is left");
        drop(undead);
        first.exited().await;
    });
}
