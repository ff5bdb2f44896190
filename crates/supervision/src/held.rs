//! What a supervisor holds for its pod, and where people find it.
//!
//! The paths lead through the supervisor's own descriptors in procfs and end with it. They are for people and tools;
//! the daemon asks the supervisor for a copy of the descriptor instead.

use std::path::PathBuf;

use wharf_wire::v1;

/// What a supervisor holds for its pod. Nothing if an earlier release made the pod: its namespaces are pinned as files.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct HeldPaths {
    supervisor: i32,
    descriptors: Vec<(v1::Held, i32)>,
}

impl HeldPaths {
    /// From the supervisor's state message.
    pub fn of(state: &v1::State) -> Self {
        let descriptors = state.held.iter().map(|held| (held.held(), held.number));
        Self { supervisor: state.pid, descriptors: descriptors.collect() }
    }

    /// Whether nothing is held, which means that an earlier release made the pod.
    pub fn is_nothing(&self) -> bool {
        self.descriptors.is_empty()
    }

    /// A path, for people and their tools, that is valid as long as the supervisor lives. wharf itself asks for a
    /// descriptor instead.
    pub fn path(&self, wanted: v1::Held) -> Option<PathBuf> {
        let found = self.descriptors.iter().find(|(held, _)| *held == wanted);
        found.map(|(_, number)| PathBuf::from(format!("/proc/{}/fd/{number}", self.supervisor)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_has_a_path() {
        let network = v1::HeldDescriptor { held: v1::Held::Network.into(), number: 7 };
        let held = HeldPaths::of(&v1::State { pid: 12, held: vec![network], ..v1::State::default() });
        assert_eq!(held.path(v1::Held::Network), Some("/proc/12/fd/7".into()));
        assert_eq!(held.path(v1::Held::Ipc), None);
        assert!(!held.is_nothing() && HeldPaths::of(&v1::State::default()).is_nothing());
    }
}
