//! What the pod has of its own: its namespaces and the root of its file system. They are not pinned, so they live as
//! long as the supervisor, and the kernel removes them with it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use wharf_isolation::PodNamespaces;
use wharf_wire::v1;

use crate::failure::Failure;

/// The descriptors by their kind.
#[derive(Debug, Default)]
pub(crate) struct PodDescriptors(BTreeMap<v1::Held, OwnedFd>);

impl PodDescriptors {
    /// Holds what the daemon that makes the pod passes. Later daemons cannot replace it: containers may already use it.
    pub(crate) fn hold(&mut self, given: Vec<(v1::Held, OwnedFd)>) {
        if self.0.is_empty() {
            self.0.extend(given);
        }
    }

    /// A held descriptor, to send a copy of it.
    pub(crate) fn get(&self, held: v1::Held) -> Option<BorrowedFd<'_>> {
        self.0.get(&held).map(AsFd::as_fd)
    }

    /// The namespaces, for a process that will enter them.
    pub(crate) fn namespaces(&self) -> Result<PodNamespaces<'_>, Failure> {
        let mounts = self.get(v1::Held::Mounts).zip(self.get(v1::Held::Empty));
        let (mounts, empty) =
            mounts.ok_or_else(|| Failure::fault("the supervisor holds no mount namespace for the pod"))?;
        Ok(PodNamespaces {
            net: self.get(v1::Held::Network),
            ipc: self.get(v1::Held::Ipc),
            uts: self.get(v1::Held::Uts),
            user: self.get(v1::Held::User),
            mounts,
            empty,
        })
    }

    /// The number of each among this process's descriptors.
    pub(crate) fn numbers(&self) -> Vec<v1::HeldDescriptor> {
        let number = |(held, descriptor): (&v1::Held, &OwnedFd)| v1::HeldDescriptor {
            held: (*held).into(),
            number: descriptor.as_raw_fd(),
        };
        self.0.iter().map(number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_stays() {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut held = PodDescriptors::default();
        assert!(held.namespaces().is_err() && held.numbers().is_empty());
        held.hold([v1::Held::Mounts, v1::Held::Empty, v1::Held::Network].map(|held| (held, open())).into());
        let numbers = held.numbers();
        held.hold(vec![(v1::Held::Mounts, open()), (v1::Held::Ipc, open())]);
        assert_eq!(held.numbers(), numbers, "the first daemon made the pod");
        let pod = held.namespaces().unwrap();
        assert!(pod.net.is_some() && pod.ipc.is_none() && pod.uts.is_none());
        assert_eq!(pod.descriptors().count(), 3);
    }
}
