//! RunPodSandbox, StopPodSandbox and RemovePodSandbox.

use tokio::time::timeout;
use wharf_cri_api::v1::ContainerEventType;
use wharf_records::{Phase, PodRecord};
use wharf_types::{ErrorKind, Failure as _};
use wharf_wire::v1::failure::Kind;

use super::world::{PATIENCE, World, alone, container_config, pod_config, until};
use crate::container::Container;

fn pods_on_disk(world: &World) -> usize {
    std::fs::read_dir(world.layout().pods()).unwrap().count()
}

#[test]
fn a_pod_whose_supervisor_dies_at_birth_leaves_nothing() {
    alone(async |world| {
        let error = world.engine.run_pod(pod_config("web"), String::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", wharf_types::chain(&error));
        assert!(world.engine.pods().is_empty() && world.engine.table.owners().is_empty());
        assert_eq!(pods_on_disk(world), 0);
        let again = world.engine.run_pod(pod_config("web"), String::new()).await.unwrap_err();
        let again = wharf_types::chain(&again);
        assert!(
            again.contains("ended before its first response: "),
            "it is tried again, and fails anew: {again}"
        );
    });
}

#[test]
fn a_pod_that_cannot_be_recorded_is_not_begun() {
    alone(async |world| {
        std::fs::remove_dir(world.layout().pods()).unwrap();
        std::fs::write(world.layout().pods(), "no directory").unwrap();
        let error = world.engine.run_pod(pod_config("web"), String::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
        assert!(world.engine.pods().is_empty());
    });
}

#[test]
fn a_pod_that_can_never_be_made_is_refused_before_anything_is_done() {
    alone(async |world| {
        let nameless = Default::default();
        let mut outside = pod_config("web");
        outside.linux.as_mut().unwrap().cgroup_parent = "/../outside".to_owned();
        for (config, handler) in [(nameless, ""), (outside, ""), (pod_config("web"), "unknown")] {
            let error = world.engine.run_pod(config, handler.to_owned()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        }
        world.engine.handlers().find("known").unwrap();
        assert_eq!(pods_on_disk(world), 0);
    });
}

#[test]
fn a_stopped_pod_shows_its_containers_until_it_is_removed() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let id = pod.id().as_str();
        world.engine.stop_pod(id).await.unwrap();
        assert_eq!(supervisor.asked()[2..], ["kill", "shut down"]);
        assert!(container.is_exited() && !pod.is_ready());
        assert!(world.engine.container(container.id().as_str()).is_ok());
        assert_eq!(world.engine.ready_pod(id).unwrap_err().kind(), ErrorKind::FailedPrecondition);
        world.engine.pod_ended(id).await;
        world.engine.stop_pod(id).await.unwrap();
        world.engine.remove_pod(id).await.unwrap();
        assert_eq!(pods_on_disk(world), 0);
        world.engine.remove_pod(id).await.unwrap();
        world.engine.stop_pod(id).await.unwrap();
        assert_eq!(world.engine.pod(id).unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn a_removed_pod_is_told_of_once_whoever_asks() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        world.start(&pod).await;
        let mut events = world.engine.subscribe();
        let id = pod.id().as_str();
        let (one, other) = tokio::join!(world.engine.remove_pod(id), world.engine.remove_pod(id));
        one.and(other).unwrap();
        let mut told = Vec::new();
        while let Ok(event) = events.try_recv() {
            told.push((event.kind, event.id == id));
        }
        use ContainerEventType::{ContainerDeletedEvent, ContainerStoppedEvent};
        let (its, containers) = (true, false);
        let expected = [
            (ContainerStoppedEvent, containers),
            (ContainerStoppedEvent, its),
            (ContainerDeletedEvent, containers),
            (ContainerDeletedEvent, its),
        ];
        assert_eq!(told, expected);
        world.engine.end_events();
        assert!(events.recv().await.is_err());
    });
}

#[test]
fn a_pod_that_cannot_be_removed_yet_stays_until_it_can() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        supervisor.refuse("shut down", Kind::Internal);
        let (directory, aside) = (world.layout().pod(pod.id()), world.aside("pod"));
        std::fs::rename(&directory, &aside).unwrap();
        std::fs::write(&directory, "no directory").unwrap();
        world.engine.remove_pod(pod.id().as_str()).await.unwrap_err();
        assert!(world.engine.pod(pod.id().as_str()).is_ok(), "it is still listed");
        std::fs::remove_file(&directory).unwrap();
        std::fs::rename(&aside, &directory).unwrap();
        world.engine.remove_pod(pod.id().as_str()).await.unwrap();
        assert_eq!(pods_on_disk(world), 0);
    });
}

#[test]
fn a_container_that_cannot_be_removed_keeps_no_other_of_its_pod() {
    for is_listed in [true, false] {
        alone(async |world| {
            let (pod, _supervisor) = world.pod().await;
            for name in ["one", "other"] {
                world.try_create(&pod, container_config(name)).await.unwrap();
            }
            let [first, second] = pod.containers().try_into().unwrap();
            // Something is mounted there.
            world.limit_files(&world.layout().snapshots().join(first.id().as_str()), 1);
            for container in [&first, &second].iter().filter(|_| !is_listed) {
                world.engine.table.remove_container(&pod, container);
            }
            world.engine.remove_pod(pod.id().as_str()).await.unwrap_err();
            let is_there =
                |container: &Container| world.layout().container_record(pod.id(), container.id()).exists();
            assert!(is_there(&first) && !is_there(&second), "{is_listed}");
        });
    }
}

#[test]
fn a_stopped_pod_that_is_being_removed_is_stopped_at_once() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let [begun, held] = world.hold("poststop");
        world.create(&pod).await;
        let stopping = async {
            until(|| begun.exists()).await;
            let stopped = timeout(PATIENCE, world.engine.stop_pod(pod.id().as_str())).await;
            std::fs::remove_file(&held).unwrap();
            stopped.expect("nothing is left to stop").unwrap();
        };
        let (removed, ()) = tokio::join!(world.engine.remove_pod(pod.id().as_str()), stopping);
        removed.unwrap();
    });
}

#[test]
fn what_a_crash_left_of_a_pod_is_undone_in_the_background() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        world.engine.record_pod(&pod, Phase::Making).unwrap();
        let next = world.next_engine();
        next.recover().await.unwrap();
        assert!(next.pods().is_empty() && next.table.owners().contains(pod.id()));
        assert!(PodRecord::load(&world.layout().pod_record(pod.id())).is_ok(), "until it is undone");
        next.tidy().await;
        until(|| next.table.owners().is_empty()).await;
        assert_eq!(pods_on_disk(world), 0);
    });
}
