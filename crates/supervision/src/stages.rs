//! The stages of a supervisor's work, under the names that people see.

use std::time::{Duration, Instant};

use wharf_sys::clock::monotonic_ns;
use wharf_types::Timings;
use wharf_wire::v1::Stage;
use wharf_wire::v1::stage::Name;

/// Notes stages that a supervisor told of with its reply, except those that this release does not know.
pub(crate) fn note<'a>(timings: &Timings, stages: impl IntoIterator<Item = &'a Stage>) {
    // In this order, so that no stage seems to begin before it was asked for.
    let (now_ns, now) = (monotonic_ns(), Instant::now());
    for stage in stages {
        let Some(name) = name(stage.name()) else { continue };
        let ago = Duration::from_nanos(now_ns.saturating_sub(stage.began_ns));
        let began = now.checked_sub(ago).unwrap_or(now);
        timings.note(name, began, Duration::from_nanos(stage.took_ns));
    }
}

fn name(name: Name) -> Option<&'static str> {
    Some(match name {
        Name::Other => return None,
        Name::Clone => "supervisor: clone of the first process",
        Name::Open => "first process: cgroup, volumes and layers",
        Name::Enter => "first process: namespaces and root",
        Name::Mount => "first process: mounts",
        Name::Devices => "first process: devices",
        Name::Cover => "first process: masked and read-only paths",
        Name::Settle => "first process: user, streams, working directory",
        Name::Execute => "supervisor: from the order until the program was executed",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_supervisor_tells_stands_where_it_happened() {
        let timings = Timings::default();
        let told = timings.time("outer", || {
            let began_ns = monotonic_ns();
            let stage = |name: Name, took_ns| Stage { name: name.into(), began_ns, took_ns };
            let later = Stage { name: 1000, ..stage(Name::Other, 1) };
            [stage(Name::Mount, 3), stage(Name::Other, 1), later]
        });
        note(&timings, &told);
        let [outer, inner]: [_; 2] = timings.all().try_into().unwrap();
        assert_eq!((outer.name, inner.name), ("outer", "first process: mounts"));
        assert_eq!(inner.took, Duration::from_nanos(3));
        assert!(outer.began <= inner.began, "{inner:?}");
    }
}
