//! CreateContainer and StartContainer.

use wharf_cri_api::v1::{ContainerConfig, ContainerEventType, LinuxContainerResources};
use wharf_records::ContainerRecord;
use wharf_state::ExitRecord;
use wharf_types::{ContainerState, ErrorKind, Exit, Failure as _};
use wharf_wire::v1::failure::Kind;

use super::supervisor::{PID, Supervisor, exited};
use super::world::{World, alone, container_config, pod_config, until};
use crate::pod::Pod;

fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

#[test]
fn a_created_container_is_whole_on_disk_and_in_memory() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let mut events = world.engine.subscribe();
        let container = world.create(&pod).await;
        assert_eq!(supervisor.asked(), ["create"]);
        let facts = container.facts();
        assert_eq!((facts.state, container.pid()), (ContainerState::Created, PID));
        let record = ContainerRecord::load(&world.layout().container_record(pod.id(), container.id()));
        let record = record.unwrap();
        assert_eq!(record, facts.record);
        assert!(record.is_made());
        assert_eq!((record.uid, record.gid, record.stop_signal.as_str()), (7, 8, "SIGINT"));
        assert!(container.cgroup().unwrap().kill_directory().is_dir());
        assert!(container.stages().len() > 3, "each stage was timed");
        let spec = world.engine.runtime_spec(&pod, &container).await;
        assert_eq!(
            (&spec["process"]["args"][0], &spec["process"]["user"]["uid"]),
            (&"/app".into(), &7.into())
        );
        let event = events.recv().await.unwrap();
        assert_eq!(event.kind, ContainerEventType::ContainerCreatedEvent);
        assert_eq!((event.id.as_str(), event.containers.len()), (container.id().as_str(), 1));
    });
}

/// What goes wrong, and the class of the failure.
type Fault =
    (&'static str, fn(&World, &Pod, &Supervisor, &mut ContainerConfig), ErrorKind, &'static [&'static str]);

const FAULTS: &[Fault] = &[
    (
        "an image that is not there",
        |_, _, _, config| config.image.as_mut().unwrap().image = "registry.test/other:v1".to_owned(),
        ErrorKind::NotFound,
        &[],
    ),
    (
        "an image whose config is damaged on disk",
        |world, _, _, _| {
            let image = world.engine.parts.images.list().remove(0);
            let config = world.layout().root().join("content/sha256").join(image.id().hex());
            std::fs::write(config, "{}").unwrap();
        },
        ErrorKind::DataLoss,
        &[],
    ),
    (
        "a request that can never work",
        |_, _, _, config| config.working_dir = "not/absolute".to_owned(),
        ErrorKind::InvalidArgument,
        &[],
    ),
    (
        "a state directory that takes no record",
        |world, pod, _, _| {
            let records = world.layout().container_records(pod.id());
            std::fs::remove_dir(&records).unwrap();
            std::os::unix::fs::symlink("/proc/self/nowhere", &records).unwrap();
        },
        ErrorKind::Internal,
        &[],
    ),
    (
        "limits that the kernel refuses",
        |_, _, _, config| resources(config).cpuset_cpus = "4000".to_owned(),
        ErrorKind::InvalidArgument,
        &[],
    ),
    (
        "layers that somebody deleted",
        |world, _, _, _| {
            std::fs::rename(world.layout().root().join("layers"), world.aside("layers")).unwrap()
        },
        ErrorKind::Internal,
        &[],
    ),
    (
        "a supervisor that runs short",
        |_, _, supervisor, _| supervisor.refuse("create", Kind::Exhausted),
        ErrorKind::ResourceExhausted,
        &["create"],
    ),
    (
        "a disk without room for the record of the whole container",
        // For the first record and the runtime spec there is room.
        |world, pod, _, _| world.limit_files(&world.layout().container_records(pod.id()), 2),
        ErrorKind::ResourceExhausted,
        &["create"],
    ),
    (
        "a supervisor that answers something else",
        |_, _, supervisor, _| supervisor.ignore("create"),
        ErrorKind::Internal,
        &["create"],
    ),
];

#[test]
fn what_cannot_be_created_leaves_nothing_whatever_failed() {
    for (case, fault, kind, asked) in FAULTS {
        alone(async |world| {
            let (pod, supervisor) = world.pod().await;
            let mut config = container_config("app");
            fault(world, &pod, &supervisor, &mut config);
            let error = world.try_create(&pod, config).await.unwrap_err();
            assert_eq!(error.kind(), *kind, "{case}: {}", wharf_types::chain(&error));
            assert_eq!(supervisor.asked(), *asked, "{case}");
            world.assert_no_container(&pod, case);
            assert!(pod.making().is_empty(), "{case}");
        });
    }
}

/// Whoever wants to change the pod waits for that, and is to be told for which container.
#[test]
fn a_container_is_in_the_making_until_it_is_undone() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        world.hook("createRuntime", "exit 1");
        let [begun, held] = world.hold("poststop");
        let undoing = async {
            until(|| begun.exists()).await;
            let id = pod.making().keys().next().cloned().expect("it is being undone");
            supervisor.report(exited(id.as_str(), Exit::Code(0)));
            until(|| pod.making()[&id].is_some()).await;
            std::fs::remove_file(&held).unwrap();
        };
        let (created, ()) = tokio::join!(world.try_create(&pod, container_config("app")), undoing);
        assert_eq!(created.unwrap_err().kind(), ErrorKind::FailedPrecondition);
        assert!(pod.making().is_empty());
        world.assert_no_container(&pod, "undone");
        until(|| supervisor.asked().contains(&"remove".to_owned())).await;
    });
}

#[test]
fn a_supervisor_that_relents_makes_the_container_at_the_next_attempt() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        supervisor.refuse("create", Kind::Exhausted);
        world.try_create(&pod, container_config("app")).await.unwrap_err();
        supervisor.relent();
        world.create(&pod).await;
        assert_eq!(supervisor.asked(), ["create", "create"]);
    });
}

#[test]
fn a_retry_joins_and_never_gets_what_has_exited() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let create = || world.try_create(&pod, container_config("app"));
        let (one, other) = tokio::join!(create(), create());
        let id = one.unwrap();
        assert_eq!(id, other.unwrap());
        assert_eq!(create().await.unwrap(), id, "a retry after the answer was lost");
        assert_eq!(supervisor.asked(), ["create"]);
        world.engine.stop_container(id.as_str(), std::time::Duration::ZERO).await.unwrap();
        assert_eq!(create().await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
        world.engine.remove_container(id.as_str()).await.unwrap();
        assert_ne!(create().await.unwrap(), id, "its name is free");
    });
}

#[test]
fn an_end_before_anyone_knows_the_container_is_not_lost() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        supervisor.end_before("create", Exit::Code(5));
        let error = world.try_create(&pod, container_config("app")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        let [container] = pod.containers().try_into().expect("it is listed, for who asks how it ended");
        assert_eq!((container.exit(), container.pid()), (Exit::Code(5), 0));
    });
}

/// As if the supervisor had died between its answer and the moment from which everybody knows the container.
#[test]
fn a_container_that_nobody_knew_when_its_supervisor_died_is_not_listed() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.create(&pod).await;
        world.engine.table.remove_container(&pod, &container);
        supervisor.die();
        until(|| pod.contact().is_gone()).await;
        let error = world.engine.publish(&pod, &container).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        assert!(pod.containers().is_empty(), "whoever asked for it undoes it");
        world.engine.undo_container(&pod, container.id()).await;
        world.engine.remove_pod(pod.id().as_str()).await.unwrap();
    });
}

/// Whoever has stopped a pod knows what is in it.
#[test]
fn a_container_whose_hooks_outlast_its_pod_is_undone() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let [begun, held] = world.hold("createRuntime");
        let ending = async {
            until(|| begun.exists()).await;
            world.engine.stop_pod(pod.id().as_str()).await.unwrap();
            let id = pod.making().keys().next().cloned().expect("it is being made");
            supervisor.report(exited(id.as_str(), Exit::Code(0)));
            std::fs::remove_file(&held).unwrap();
        };
        let (created, ()) = tokio::join!(world.try_create(&pod, container_config("app")), ending);
        let error = created.unwrap_err();
        assert!(wharf_types::chain(&error).contains("is not ready"), "{error}");
        world.assert_no_container(&pod, "undone");
        assert!(pod.making().is_empty());
    });
}

#[test]
fn a_pod_that_is_not_ready_gets_no_container() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        world.engine.stop_pod(pod.id().as_str()).await.unwrap();
        let error = world.try_create(&pod, container_config("app")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        assert_eq!(supervisor.asked(), ["shut down"]);
    });
}

#[test]
fn privilege_is_the_pods_to_give_then_or_now() {
    alone(async |world| {
        let (pod, _supervisor) = world.pod().await;
        let mut config = container_config("app");
        config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
        let refused = world.try_create(&pod, config.clone()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
        let mut now = pod_config("web");
        now.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
        world.engine.create_container(pod.id().as_str(), config, &now).await.unwrap();
    });
}

#[test]
fn a_start_is_done_once_and_its_retry_is_success() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let id = container.id().as_str();
        world.engine.start_container(id).await.unwrap();
        assert_eq!(supervisor.asked(), ["create", "start"]);
        assert_eq!(container.shown(), ContainerState::Running { started_at_ns: 10 });
        supervisor.report(exited(id, Exit::Code(0)));
        container.exited().await;
        let error = world.engine.start_container(id).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        let missing = world.engine.start_container("0123456789abcdef").await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    });
}

#[test]
fn why_a_program_cannot_be_executed_is_kept_with_its_container() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.create(&pod).await;
        let id = container.id().as_str();
        supervisor.refuse("start", Kind::NotStarted);
        supervisor.end_before("start", Exit::NotStarted);
        let error = world.engine.start_container(id).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        let ContainerState::Exited { exit, message, .. } = container.shown() else { panic!("it runs") };
        assert_eq!((exit.code(), message.as_str()), (128, "start is refused"));
        let record = ContainerRecord::load(&world.layout().container_record(pod.id(), container.id()));
        assert_eq!(record.unwrap().message, "start is refused", "the next daemon can say it, too");
    });
}

#[test]
fn a_supervisor_that_lets_a_start_lapse_leaves_the_container_as_it_is() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.create(&pod).await;
        supervisor.refuse("start", Kind::Expired);
        let error = world.engine.start_container(container.id().as_str()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert_eq!(container.shown(), ContainerState::Created);
        supervisor.relent();
        world.engine.start_container(container.id().as_str()).await.unwrap();
    });
}

#[test]
fn a_supervisor_that_dies_before_a_start_takes_the_container_along() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.create(&pod).await;
        let end = ExitRecord { exit: Exit::Code(6), started_at_ns: 0, finished_at_ns: 30 };
        end.save(&world.layout().exit_record(pod.id(), container.id())).unwrap();
        supervisor.die();
        container.exited().await;
        assert_eq!(container.exit(), Exit::Code(6), "what is on disk was seen");
        let error = world.engine.start_container(container.id().as_str()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    });
}
