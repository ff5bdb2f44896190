//! How records of a newer release are read.

use super::*;
use prost::Message as _;
use wharf_cri_api::v1::{ContainerConfig, ContainerMetadata, PodSandboxConfig, PodSandboxMetadata};
use wharf_state::record::{Durability, Format};
use wharf_types::{ErrorKind, Failure as _};
use wharf_wire::v1::Identity;

fn pod(phase: i32) -> PodRecord {
    let metadata = Some(PodSandboxMetadata { name: "web".to_owned(), ..Default::default() });
    let config = PodSandboxConfig { metadata, ..Default::default() };
    PodRecord { config, handler: String::new(), created_at_ns: 7, phase, selinux_level: None }
}

fn newer(path: &Path, format: Format, content: &[u8]) {
    let format = Format { version: format.version + 1, ..format };
    record::save(path, format, content, Durability::Volatile).unwrap();
}

#[test]
fn a_newer_pod_is_listed_if_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let with_more = [pod(Phase::Made.into()).encode_to_vec(), b"\xa2\x06\x03new".to_vec()].concat();
    newer(&path, PodRecord::FORMAT, &with_more);
    assert_eq!(PodRecord::load(&path).unwrap(), pod(Phase::Made.into()));
    let unknown_phase = pod(9).encode_to_vec();
    let in_the_making = pod(Phase::Making.into()).encode_to_vec();
    for content in [&b"\xff"[..], b"", &unknown_phase, &in_the_making] {
        newer(&path, PodRecord::FORMAT, content);
        assert!(matches!(PodRecord::load(&path), Err(Unreadable::LeftAlone(_))), "{content:?}");
    }
}

#[test]
fn a_newer_container_is_listed_and_its_record_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let mut record = ContainerRecord { cgroup: "/wharf/c".to_owned(), ..Default::default() };
    newer(&path, ContainerRecord::FORMAT, &record.encode_to_vec());
    assert!(matches!(ContainerRecord::load(&path), Err(Unreadable::LeftAlone(_))), "nobody was told of it");
    record.config.metadata = Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 });
    record.identify(Identity::default());
    newer(&path, ContainerRecord::FORMAT, &record.encode_to_vec());
    assert_eq!(ContainerRecord::load(&path).unwrap(), record);
    let before = std::fs::read(&path).unwrap();
    let error = record.update(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unimplemented);
    assert!(record.stage(&path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_log_has_a_path_where_both_parts_are_named() {
    let record = |log_path: &str| {
        let config = ContainerConfig { log_path: log_path.to_owned(), ..Default::default() };
        ContainerRecord { config, ..Default::default() }
    };
    assert_eq!(record("main/0.log").log_path("/var/log/pods/x/"), "/var/log/pods/x/main/0.log");
    assert_eq!(
        (record("0.log").log_path(""), record("").log_path("/x")),
        (NO_LOG.to_owned(), NO_LOG.to_owned())
    );
}
