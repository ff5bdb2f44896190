//! Limits on how many commands run at a time.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};

use wharf_types::ContainerId;

use crate::error::Error;
use crate::exec::{ExecError, STAGE};
use crate::lock::Mutex;

/// Commands of one container at a time: there are only a handful of probes and hooks.
const CONTAINER_LIMIT: usize = 512;
/// Commands of all containers at a time: each takes a few descriptors and some tens of KiB in this process.
const NODE_LIMIT: usize = 4096;

/// The number of running commands for each container.
#[derive(Debug, Default, Clone)]
pub(super) struct Turns(Arc<Mutex<HashMap<ContainerId, usize>>>);

impl Turns {
    fn counts(&self) -> MutexGuard<'_, HashMap<ContainerId, usize>> {
        self.0.lock()
    }

    /// Counts one more command until the turn is dropped.
    pub(super) fn take(&self, container: &ContainerId) -> Result<Turn, Error> {
        let mut counts = self.counts();
        let (here, everywhere) =
            (counts.get(container).copied().unwrap_or(0), counts.values().sum::<usize>());
        if here >= CONTAINER_LIMIT {
            return Err(refused(here, format!("in container {container}")));
        }
        if everywhere >= NODE_LIMIT {
            return Err(refused(everywhere, "on this node".to_owned()));
        }
        counts.insert(container.clone(), here + 1);
        Ok(Turn { turns: self.clone(), container: container.clone() })
    }
}

fn refused(count: usize, place: String) -> Error {
    Error::at(STAGE, ExecError::Turns { count, place })
}

/// One command's.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    container: ContainerId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut counts = self.turns.counts();
        match counts.get_mut(&self.container) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                counts.remove(&self.container);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::{ErrorKind, Failure as _};

    #[test]
    fn a_container_has_so_many_turns_and_the_node_so_many() {
        let turns = Turns::default();
        let id = |number: usize| ContainerId::from_random([u8::try_from(number).unwrap(); 32]);
        let mut taken: Vec<_> = (0..CONTAINER_LIMIT).map(|_| turns.take(&id(0)).unwrap()).collect();
        assert_eq!(turns.take(&id(0)).unwrap_err().kind(), ErrorKind::ResourceExhausted);
        taken.pop();
        taken.push(turns.take(&id(0)).unwrap());
        for container in 1..NODE_LIMIT / CONTAINER_LIMIT {
            taken.extend((0..CONTAINER_LIMIT).map(|_| turns.take(&id(container)).unwrap()));
        }
        assert_eq!(turns.take(&id(200)).unwrap_err().kind(), ErrorKind::ResourceExhausted);
        drop(taken);
        assert!(turns.counts().is_empty());
    }
}
