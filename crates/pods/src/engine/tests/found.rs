//! What a daemon does with what an earlier one left.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use wharf_cri_api::v1::LinuxContainerResources;
use wharf_planner::PodKey;
use wharf_records::{ContainerRecord, Phase, PodRecord};
use wharf_state::record::{Durability, Format};
use wharf_state::records::Content;
use wharf_state::{ExitRecord, Layout};
use wharf_supervision::KILL_PATIENCE;
use wharf_types::{ContainerState, ErrorKind, Exit, Failure as _, chain};
use wharf_wire::v1::container_status;

use super::ended::Undead;
use super::supervisor::Supervisor;
use super::world::{World, alone, container_config, pod_config, until};
use crate::container::Container;
use crate::engine::Engine;

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// The records in quarantine, without the numbers that tell them apart.
fn quarantined(world: &World) -> usize {
    names(&world.layout().quarantine()).len()
}

/// Saves a record as a newer release would, whose content this one does not understand.
fn save_newer<R: Content>(path: &Path) {
    let format = Format { version: R::FORMAT.version + 1, ..R::FORMAT };
    wharf_state::record::save(path, format, b"\xff", Durability::Volatile).unwrap();
}

#[test]
fn containers_without_their_supervisor_have_ended_as_is_on_disk() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let seen = world.start(&pod).await;
        let unseen = world.try_create(&pod, container_config("other")).await.unwrap();
        let end = ExitRecord { exit: Exit::Code(3), started_at_ns: 10, finished_at_ns: 20 };
        end.save(&world.layout().exit_record(pod.id(), seen.id())).unwrap();
        let next = world.next_engine();
        next.recover().await.unwrap();
        let (found, seen) = next.container(seen.id().as_str()).unwrap();
        assert_eq!(seen.exit(), Exit::Code(3));
        assert_eq!(next.container(unseen.as_str()).unwrap().1.exit(), Exit::Lost);
        assert!(!found.is_ready(), "no supervisor, no pod");
        assert!(next.table.creation_time() > pod.facts().created_at_ns, "newer pods are newer");
        let again = next.create_container(pod.id().as_str(), container_config("app"), &pod.config()).await;
        assert_eq!(again.unwrap_err().kind(), ErrorKind::FailedPrecondition, "its name is taken");
        let again = next.run_pod(pod_config("web"), String::new()).await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::FailedPrecondition, "so is the pod's");
        next.remove_pod(pod.id().as_str()).await.unwrap();
        assert!(names(&world.layout().pods()).is_empty());
    });
}

/// Recovers while a supervisor listens that has this container.
async fn recover_with(next: &std::sync::Arc<Engine>, directory: &Path, supervised: impl FnOnce(&Supervisor)) {
    let listener = wharf_sys::socket::listen(&Layout::supervisor_socket(directory)).unwrap();
    let accept = async {
        loop {
            match wharf_sys::socket::accept(listener.as_fd()) {
                Ok((socket, _)) => return Supervisor::prepared(socket, supervised),
                Err(error) if error.errno == nix::errno::Errno::EAGAIN => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::join!(next.recover(), accept).0.unwrap();
}

#[test]
fn a_supervisor_that_lives_is_believed_and_its_containers_go_on() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let next = world.next_engine();
        let running = |supervisor: &Supervisor| {
            supervisor.hold(container.id(), container_status::Phase::Running);
        };
        recover_with(&next, &world.layout().pod(pod.id()), running).await;
        let (pod, container) = next.container(container.id().as_str()).unwrap();
        assert!(pod.is_ready());
        assert_eq!(container.known(), Some(ContainerState::Running { started_at_ns: 10 }));
        assert!(container.stages().is_empty(), "this daemon did not make it");
        assert!(container.cgroup().is_some());
    });
}

#[test]
fn what_nobody_was_told_of_is_taken_back() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let container = world.create(&pod).await;
        let path = world.layout().container_record(pod.id(), container.id());
        let half = ContainerRecord { phase: Phase::Making.into(), groups: Vec::new(), ..container.record() };
        half.save(&path).unwrap();
        let next = world.next_engine();
        next.recover().await.unwrap();
        super::world::until(|| !path.exists()).await;
        world.engine.table.remove_container(&pod, &container);
        world.assert_no_container(&pod, "taken back");
        assert_eq!(next.pods().len(), 1, "its pod is whole");
    });
}

#[test]
fn a_damaged_record_is_put_aside_and_what_it_meant_is_undone() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let ended = world.aside("ended");
        world.hook("poststop", &format!("touch {}", ended.display()));
        let container = world.create(&pod).await;
        std::fs::write(world.layout().container_record(pod.id(), container.id()), "nonsense").unwrap();
        let next = world.next_engine();
        next.recover().await.unwrap();
        assert_eq!((next.pods().len(), next.containers().len(), quarantined(world)), (1, 0, 1));
        world.engine.table.remove_container(&pod, &container);
        let exits = Layout::exits(&world.layout().pod(pod.id()));
        let kept = [world.layout().container_records(pod.id()), exits];
        until(|| kept.iter().all(|kept| names(kept).is_empty())).await;
        world.assert_no_container(&pod, "undone");
        assert!(ended.exists() && !world.layout().bundle(pod.id(), container.id()).exists());
        std::fs::write(world.layout().pod_record(pod.id()), "nonsense").unwrap();
        let next = world.next_engine();
        next.recover().await.unwrap();
        assert_eq!((next.pods().len(), quarantined(world)), (0, 2));
        assert!(PodKey::of(&pod.config()).is_ok() && next.table.owners().contains(pod.id()));
        next.tidy().await;
        assert!(names(&world.layout().pods()).is_empty() && next.table.owners().is_empty());
    });
}

/// A container whose first process the kernel does not let die until this is dropped.
fn undead(world: &World, container: &Container) -> Undead {
    Undead::in_cgroup(&container.cgroup().unwrap().kill_directory(), world.layout().root())
}

#[test]
fn a_process_that_does_not_die_holds_up_no_start() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let undead = undead(world, &container);
        let next = world.next_engine();
        let recovered = timeout(KILL_PATIENCE / 2, next.recover()).await;
        recovered.expect("nobody waits for it").unwrap();
        let (pod, container) = next.container(container.id().as_str()).unwrap();
        assert!(!pod.is_ready() && !container.is_exited(), "something of it is left");
        drop(undead);
        container.exited().await;
    });
}

/// A daemon that is killed meanwhile leaves the record to the next one, with what it says of the rest.
#[test]
fn what_a_damaged_record_meant_keeps_its_files_and_its_record_as_long_as_it_runs() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let undead = undead(world, &container);
        let path = world.layout().container_record(pod.id(), container.id());
        std::fs::write(&path, "nonsense").unwrap();
        world.next_engine().recover().await.unwrap();
        let snapshots = || world.engine.parts.snapshots.list().unwrap();
        assert_eq!((snapshots(), quarantined(world)), (vec![container.id().clone()], 1));
        assert!(path.exists());
        let early = world.engine.delete_pod(&pod).await.unwrap_err();
        assert_eq!(early.kind(), ErrorKind::DeadlineExceeded, "{early}");
        assert!(path.exists(), "the pod's removal leaves it");
        drop(undead);
        until(|| !path.exists()).await;
        assert!(snapshots().is_empty());
    });
}

#[test]
fn a_pod_is_removed_after_what_an_earlier_daemon_left_half_made_in_it() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let [begun, held] = world.hold("poststop");
        let container = world.create(&pod).await;
        let half = ContainerRecord { phase: Phase::Making.into(), groups: Vec::new(), ..container.record() };
        half.save(&world.layout().container_record(pod.id(), container.id())).unwrap();
        let next = world.next_engine();
        next.recover().await.unwrap();
        until(|| begun.exists()).await;
        let remove = || next.remove_pod(pod.id().as_str());
        timeout(Duration::from_millis(100), remove()).await.expect_err("its hook is not at its end");
        std::fs::remove_file(&held).unwrap();
        remove().await.unwrap();
        assert!(names(&world.layout().pods()).is_empty());
    });
}

/// Attempts to undo it go on in the background, and nobody else's comes in between.
#[test]
fn the_hooks_of_a_container_are_executed_once_whoever_undoes_it() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let [begun, held] = world.hold("poststop");
        let container = world.create(&pod).await;
        world.engine.table.remove_container(&pod, &container);
        let undo = || world.engine.delete(&pod, container.id());
        let meanwhile = async {
            until(|| begun.exists()).await;
            std::fs::remove_file(&begun).unwrap();
            let early = timeout(Duration::from_millis(200), world.engine.delete_pod(&pod)).await;
            early.expect_err("its hook is not at its end");
            assert!(!begun.exists(), "no other one has begun");
            std::fs::remove_file(&held).unwrap();
        };
        let (one, other, removed, ()) =
            tokio::join!(undo(), undo(), world.engine.remove_pod(pod.id().as_str()), meanwhile);
        one.and(other).and(removed).unwrap();
        assert!(!begun.exists(), "nor afterwards");
        assert!(names(&world.layout().pods()).is_empty());
    });
}

/// A record that cannot be read now, and one that can be read again.
#[test]
fn what_was_left_alone_ends_with_its_pod() {
    for comes_back in [false, true] {
        alone(async |world| {
            let (pod, _supervisor) = world.pod().await;
            let ended = world.aside("ended");
            world.hook("poststop", &format!("touch {}", ended.display()));
            let container = world.create(&pod).await;
            let path = world.layout().container_record(pod.id(), container.id());
            let whole = container.record();
            save_newer::<ContainerRecord>(&path);
            let next = world.next_engine();
            next.recover().await.unwrap();
            if comes_back {
                std::fs::remove_file(&path).unwrap();
                whole.save(&path).unwrap();
            }
            next.stop_pod(pod.id().as_str()).await.unwrap();
            assert!(path.exists() && !ended.exists(), "a stop leaves it alone");
            next.remove_pod(pod.id().as_str()).await.unwrap();
            assert!(ended.exists() && names(&world.layout().pods()).is_empty());
            assert_eq!(next.parts.snapshots.list().unwrap(), []);
            assert!(!container.cgroup().unwrap().kill_directory().exists());
        });
    }
}

/// Only its record says which hooks are due, or its spec if that is damaged.
#[test]
fn what_cannot_be_read_is_removed_once_its_hooks_can_be() {
    for is_damaged in [false, true] {
        alone(async |world| {
            let (pod, _supervisor) = world.pod().await;
            let ended = world.aside("ended");
            world.hook("poststop", &format!("touch {}", ended.display()));
            let container = world.create(&pod).await;
            world.engine.table.remove_container(&pod, &container);
            let mut path = world.layout().container_record(pod.id(), container.id());
            if is_damaged {
                std::fs::write(&path, "nonsense").unwrap();
                path = world.layout().container_spec(pod.id(), container.id());
            }
            std::fs::rename(&path, world.aside("whole")).unwrap();
            // Reading it fails as on a broken disk.
            std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
            // Instead of the record, the spec is enough.
            if is_damaged {
                for _ in 0..2 {
                    let early = world.engine.delete(&pod, container.id()).await.unwrap_err();
                    assert!(chain(&early).contains("os error 5"), "{}", chain(&early));
                }
                std::fs::rename(world.aside("whole"), &path).unwrap();
            }
            world.engine.delete(&pod, container.id()).await.unwrap();
            assert!(ended.exists());
            world.assert_no_container(&pod, "read again");
        });
    }
}

#[test]
fn what_a_newer_release_recorded_is_left_alone() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let container = world.create(&pod).await;
        let path = world.layout().container_record(pod.id(), container.id());
        save_newer::<ContainerRecord>(&path);
        let next = world.next_engine();
        next.recover().await.unwrap();
        assert_eq!((next.pods().len(), next.containers().len()), (1, 0));
        assert!(next.pods()[0].is_stranger(container.id()), "its supervisor keeps it");
        save_newer::<PodRecord>(&world.layout().pod_record(pod.id()));
        let next = world.next_engine();
        next.recover().await.unwrap();
        next.tidy().await;
        assert!(next.pods().is_empty() && next.table.owners().contains(pod.id()));
        assert!(path.exists() && world.layout().pod_record(pod.id()).exists());
        let snapshots = world.engine.parts.snapshots.list().unwrap();
        assert_eq!(snapshots, [container.id().clone()], "its files, too");
        assert_eq!(quarantined(world), 0);
    });
}

#[test]
fn what_an_update_says_of_a_pods_cgroup_is_kept() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let id = pod.id().as_str();
        let shares = |cpu_shares| Some(LinuxContainerResources { cpu_shares, ..Default::default() });
        world.engine.update_pod(id, [shares(2), shares(512)]).await.unwrap();
        world.engine.update_pod(id, [None, shares(1024)]).await.unwrap();
        let next = world.next_engine();
        next.recover().await.unwrap();
        let found = next.pod(id).unwrap();
        for pod in [&pod, &found] {
            let linux = pod.config().linux.clone().unwrap();
            assert_eq!((linux.overhead, linux.resources), (shares(2), shares(1024)));
        }
        save_newer::<PodRecord>(&world.layout().pod_record(pod.id()));
        let refused = world.engine.update_pod(id, [None, shares(7)]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unimplemented, "{refused}");
        assert_eq!(pod.config().linux.as_ref().unwrap().resources, shares(1024));
        world.engine.remove_pod(id).await.unwrap();
        let gone = world.engine.update_pod(id, [None, shares(7)]).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
    });
}

#[test]
fn snapshots_of_no_container_are_swept() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let container = world.create(&pod).await;
        let stray = wharf_types::ContainerId::from_random([9; 32]);
        let top = world.engine.parts.images.list()[0].layers()[0].clone();
        world.engine.parts.snapshots.prepare(&stray, &top, None).unwrap();
        world.next_engine().recover().await.unwrap();
        let left = world.engine.parts.snapshots.list().unwrap();
        assert_eq!(left, [container.id().clone()]);
    });
}

#[test]
fn a_snapshot_that_cannot_be_removed_keeps_no_other() {
    alone(async |world| {
        let snapshots = &world.engine.parts.snapshots;
        let top = world.engine.parts.images.list()[0].layers()[0].clone();
        for byte in 1..=3 {
            snapshots.prepare(&wharf_types::ContainerId::from_random([byte; 32]), &top, None).unwrap();
        }
        let first = snapshots.list().unwrap()[0].clone();
        // Something is mounted there.
        world.limit_files(&world.layout().snapshots().join(first.as_str()), 1);
        world.next_engine().recover().await.unwrap();
        assert_eq!(snapshots.list().unwrap(), [first]);
    });
}

#[test]
fn a_state_directory_that_cannot_be_read_keeps_no_daemon_from_starting() {
    alone(async |world| {
        let next = world.next_engine();
        std::fs::remove_dir(world.layout().pods()).unwrap();
        next.recover().await.unwrap();
        assert!(next.pods().is_empty());
        assert_eq!(next.unready().unwrap().reason, "StateDirectoryMissing");
    });
}

#[test]
fn what_cannot_be_listed_is_nobodys_to_remove() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let layout = world.layout();
        for directory in [layout.container_records(pod.id()), layout.pods()] {
            let aside = directory.with_file_name("aside");
            let next = world.next_engine();
            std::fs::rename(&directory, &aside).unwrap();
            std::fs::write(&directory, "").unwrap();
            assert_eq!(next.recover().await.is_err(), directory == layout.pods());
            assert!(next.pods().is_empty(), "the pod is left alone");
            assert_eq!(next.parts.snapshots.list().unwrap(), [container.id().clone()]);
            std::fs::remove_file(&directory).unwrap();
            std::fs::rename(&aside, &directory).unwrap();
        }
        let next = world.next_engine();
        next.recover().await.unwrap();
        assert_eq!(next.pods().len(), 1);
    });
}
