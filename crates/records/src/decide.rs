//! Decides the state of a container whose daemon or supervisor is gone, from what is left: its record, its exit record,
//! and its supervisor's report. It does no I/O.

use wharf_state::ExitRecord;
use wharf_types::{ContainerState, Exit};
use wharf_wire::exit_of;
use wharf_wire::v1::{ContainerStatus, container_status::Phase};

use crate::ContainerRecord;

/// A supervisor's report about one container.
#[derive(Debug, Clone, Copy)]
pub enum Word<'a> {
    /// It has not responded yet: it may be stopped, or may be waiting for a disk.
    NoneYet,
    /// It is gone, with every process that it supervised.
    Gone,
    /// It has responded; a container that it does not know is missing from the report.
    Given(Option<&'a ContainerStatus>),
}

/// What has become of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    /// It waits for its start.
    Created,
    /// Its program runs.
    Running {
        /// Nanoseconds since the epoch.
        started_at_ns: i64,
    },
    /// It has exited, and this is known about it.
    Ended(ExitRecord),
    /// It has exited, and nobody saw how.
    Lost,
    /// Its supervisor will report; until then the state is unknown.
    Unknown,
    /// The call that made it failed with its daemon, and nobody was told about it: it is undone.
    HalfMade,
}

/// Decides. A container that is not whole on disk was never told of, and may lack what is set once its first process
/// exists. Of others the supervisor knows best; the exit record is its report, too, and outlives it.
#[must_use]
pub fn decide(record: &ContainerRecord, exit: Option<ExitRecord>, word: Word<'_>) -> Recovered {
    let status = if let Word::Given(status) = word { status } else { None };
    let has_answered = !matches!(word, Word::NoneYet);
    if !record.is_made() {
        return if has_answered { Recovered::HalfMade } else { Recovered::Unknown };
    }
    if let Some(living) = status.and_then(living) {
        return living;
    }
    match status.and_then(end_of).or(exit) {
        Some(exit) => Recovered::Ended(exit),
        None if has_answered => Recovered::Lost,
        None => Recovered::Unknown,
    }
}

/// The supervisor's report about a container whose first process exists and has been set up.
fn living(status: &ContainerStatus) -> Option<Recovered> {
    match status.phase() {
        Phase::Created | Phase::Starting => Some(Recovered::Created),
        Phase::Running => Some(Recovered::Running { started_at_ns: status.started_at_ns }),
        Phase::Unknown | Phase::Exited => None,
    }
}

/// The exit in the supervisor's report, for a container whose first process is gone.
#[must_use]
pub fn end_of(status: &ContainerStatus) -> Option<ExitRecord> {
    let exit = status.exit.filter(|_| status.phase() == Phase::Exited)?;
    let ContainerStatus { started_at_ns, finished_at_ns, .. } = *status;
    Some(ExitRecord { exit: exit_of(Some(exit)), started_at_ns, finished_at_ns })
}

/// The exit of a container that nobody saw end, and of which this was known last. If nothing was, it may have started
/// right after it was created.
#[must_use]
pub fn lost_at(finished_at_ns: i64, record: &ContainerRecord, known: Option<&ContainerState>) -> ExitRecord {
    let started_at_ns = match known {
        Some(ContainerState::Running { started_at_ns }) => *started_at_ns,
        Some(ContainerState::Created | ContainerState::Exited { .. }) => 0,
        None => record.created_at_ns,
    };
    ExitRecord { exit: Exit::Lost, started_at_ns, finished_at_ns }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_wire::v1;

    const ON_DISK: ExitRecord = ExitRecord { exit: Exit::Code(3), started_at_ns: 10, finished_at_ns: 20 };
    const TOLD: ExitRecord = ExitRecord { exit: Exit::Code(4), started_at_ns: 11, finished_at_ns: 21 };

    fn half_made() -> ContainerRecord {
        ContainerRecord::default()
    }

    fn made() -> ContainerRecord {
        let mut record = ContainerRecord::default();
        record.identify(v1::Identity::default());
        record
    }

    /// As recorded by builds that did not write how far a container had come.
    fn made_by_an_older_build() -> ContainerRecord {
        ContainerRecord { groups: vec![0], ..ContainerRecord::default() }
    }

    fn status(phase: Phase) -> ContainerStatus {
        ContainerStatus { phase: phase.into(), started_at_ns: 11, finished_at_ns: 21, ..Default::default() }
    }

    fn exited(kind: v1::exit::Kind) -> ContainerStatus {
        let exit = v1::Exit { kind: kind.into(), value: 4, oom: false };
        ContainerStatus { exit: Some(exit), ..status(Phase::Exited) }
    }

    #[test]
    fn a_supervisor_that_has_answered_is_believed_whatever_is_on_disk() {
        let running = Recovered::Running { started_at_ns: 11 };
        let lost = Recovered::Ended(ExitRecord { exit: Exit::Lost, ..TOLD });
        let rows = [
            (status(Phase::Created), Recovered::Created),
            (status(Phase::Starting), Recovered::Created),
            (status(Phase::Running), running),
            (exited(v1::exit::Kind::Code), Recovered::Ended(TOLD)),
            (exited(v1::exit::Kind::Lost), lost),
        ];
        for (status, expected) in rows {
            for record in [made(), made_by_an_older_build()] {
                for exit in [None, Some(ON_DISK)] {
                    let decided = decide(&record, exit, Word::Given(Some(&status)));
                    assert_eq!(decided, expected, "{status:?} with {exit:?} on disk");
                }
            }
        }
    }

    #[test]
    fn what_a_supervisor_does_not_know_has_ended_or_never_was() {
        let (unknown, untold) = (status(Phase::Unknown), status(Phase::Exited));
        let silence = [Word::Gone, Word::Given(None), Word::Given(Some(&unknown))];
        for word in silence {
            for record in [made(), made_by_an_older_build()] {
                assert_eq!(decide(&record, None, word), Recovered::Lost, "{word:?}");
                assert_eq!(decide(&record, Some(ON_DISK), word), Recovered::Ended(ON_DISK), "{word:?}");
            }
            for exit in [None, Some(ON_DISK)] {
                assert_eq!(decide(&half_made(), exit, word), Recovered::HalfMade, "{word:?}");
            }
        }
        let word = Word::Given(Some(&untold));
        assert_eq!(decide(&made(), None, word), Recovered::Lost, "it has ended, and is silent about how");
        assert_eq!(decide(&made(), Some(ON_DISK), word), Recovered::Ended(ON_DISK));
    }

    #[test]
    fn what_was_not_made_whole_is_undone_though_its_process_is_there() {
        for phase in [Phase::Created, Phase::Starting, Phase::Running, Phase::Exited] {
            let status = status(phase);
            assert_eq!(
                decide(&half_made(), None, Word::Given(Some(&status))),
                Recovered::HalfMade,
                "{phase:?}"
            );
        }
    }

    #[test]
    fn until_a_supervisor_answers_only_the_disk_is_believed() {
        for record in [made(), made_by_an_older_build()] {
            assert_eq!(decide(&record, None, Word::NoneYet), Recovered::Unknown);
            assert_eq!(decide(&record, Some(ON_DISK), Word::NoneYet), Recovered::Ended(ON_DISK));
        }
        for exit in [None, Some(ON_DISK)] {
            assert_eq!(decide(&half_made(), exit, Word::NoneYet), Recovered::Unknown, "nobody knows of it");
        }
    }
}
