//! How long a container's creation and start took, stage by stage. The daemon is told with its replies, for people.
//!
//! The first process of a container measures its own stages by the same monotonic clock, and reports when each has
//! ended. Nothing is decided by them: they are what `wharf explain` shows.

use wharf_isolation::STAGES;
use wharf_sys::clock::monotonic_ns;
use wharf_wire::v1::Stage;
use wharf_wire::v1::stage::Name;

/// The stages that nobody has been told of yet.
#[derive(Debug)]
pub(crate) struct Stages {
    asked_ns: u64,
    creation: Vec<Stage>,
    /// When the first process was told to execute the program.
    ordered_ns: Option<u64>,
}

impl Stages {
    /// The creation begins now.
    pub(crate) fn begin() -> Self {
        Self { asked_ns: monotonic_ns(), creation: Vec::new(), ordered_ns: None }
    }

    /// The first process has set everything up, and has reported when each stage of that ended.
    pub(crate) fn created(&mut self, ends_ns: &[u64]) {
        let begins_ns = std::iter::once(&self.asked_ns).chain(ends_ns);
        let spans = begins_ns.zip(ends_ns);
        self.creation = STAGES.into_iter().zip(spans).map(|(name, span)| stage(name, span)).collect();
    }

    /// The first process is told to execute the program.
    pub(crate) fn ordered(&mut self) {
        self.ordered_ns = Some(monotonic_ns());
    }

    pub(crate) fn take_creation(&mut self) -> Vec<Stage> {
        std::mem::take(&mut self.creation)
    }

    /// The start, which ends now.
    pub(crate) fn take_start(&mut self) -> Option<Stage> {
        let ordered_ns = self.ordered_ns.take()?;
        Some(stage(Name::Execute, (&ordered_ns, &monotonic_ns())))
    }
}

fn stage(name: Name, (began_ns, ended_ns): (&u64, &u64)) -> Stage {
    Stage { name: name.into(), began_ns: *began_ns, took_ns: ended_ns.saturating_sub(*began_ns) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_begins_where_the_one_before_it_ended() {
        let mut stages = Stages::begin();
        let asked_ns = stages.asked_ns;
        stages.created(&[asked_ns + 5, asked_ns + 7]);
        let expected = [
            stage(Name::Clone, (&asked_ns, &(asked_ns + 5))),
            stage(Name::Open, (&(asked_ns + 5), &(asked_ns + 7))),
        ];
        assert_eq!(stages.take_creation(), expected);
        assert_eq!(expected.map(|stage| stage.took_ns), [5, 2]);
    }

    #[test]
    fn each_is_told_once() {
        let mut stages = Stages::begin();
        stages.created(&[1]);
        stages.ordered();
        assert_eq!((stages.take_creation().len(), stages.take_start().is_some()), (1, true));
        assert_eq!((stages.take_creation().len(), stages.take_start().is_some()), (0, false));
    }
}
