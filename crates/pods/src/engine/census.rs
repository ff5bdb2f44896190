//! How many there are of everything, for metrics: counted in memory whenever somebody asks. It takes the locks of each
//! pod for moments, one after another.

use wharf_supervision::Contact;
use wharf_tasks::pool;
use wharf_types::ContainerState;

use super::Engine;
use crate::container::Container;
use crate::pod::Pod;

/// What there is at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// Pods that are ready.
    pub ready_pods: usize,
    /// Pods that are being set up or torn down, or are stopped.
    pub unready_pods: usize,
    /// Containers that were created and not started.
    pub created: usize,
    /// Containers that run.
    pub running: usize,
    /// Containers that have exited.
    pub exited: usize,
    /// Containers of which only their supervisor knows the state, and has yet to say it.
    pub unknown: usize,
    /// Supervisors that have responded.
    pub connected: usize,
    /// Supervisors that were asked something, and have been silent since.
    pub silent: usize,
    /// Supervisors to which a connection is being made, at first or because it broke.
    pub connecting: usize,
}

/// What has a share of the thread pool, or a bound of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolShare {
    /// What they are for.
    pub work: &'static str,
    /// How many are taken.
    pub used: usize,
    /// How many there are.
    pub limit: usize,
}

impl Census {
    fn count(&mut self, pod: &Pod) {
        match pod.is_ready() {
            true => self.ready_pods += 1,
            false => self.unready_pods += 1,
        }
        match pod.contact().now() {
            Contact::Up(connection) if connection.is_silent() => self.silent += 1,
            Contact::Up(_) => self.connected += 1,
            Contact::Connecting => self.connecting += 1,
            // There is none.
            Contact::Gone => {}
        }
        pod.containers().iter().for_each(|container| self.count_container(container));
    }

    fn count_container(&mut self, container: &Container) {
        match container.known() {
            Some(ContainerState::Created) => self.created += 1,
            Some(ContainerState::Running { .. }) => self.running += 1,
            Some(ContainerState::Exited { .. }) => self.exited += 1,
            None => self.unknown += 1,
        }
    }
}

impl Engine {
    /// Counts what there is.
    #[must_use]
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        self.pods().iter().for_each(|pod| census.count(pod));
        census
    }

    /// The commands of ExecSync that run.
    #[must_use]
    pub fn exec_syncs(&self) -> usize {
        self.commands.count()
    }

    /// How much of the thread pool those have that may be stuck there.
    #[must_use]
    pub fn pool_shares(&self) -> [PoolShare; 4] {
        let (joining, leaving) = self.network_turns.taken();
        [
            PoolShare { work: "network_setup", used: joining, limit: pool::NETWORK },
            PoolShare { work: "network_teardown", used: leaving, limit: pool::NETWORK },
            PoolShare { work: "logs", used: self.logs.taken(), limit: pool::LOGS },
            PoolShare { work: "making", used: self.making.pooled(), limit: pool::MAKING },
        ]
    }

    /// How many pods and containers are being made, with a thread of the pool or one of their own.
    #[must_use]
    pub fn in_the_making(&self) -> usize {
        self.making.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_state::ExitRecord;
    use wharf_types::{Exit, PodId};

    #[test]
    fn each_is_counted_once_in_the_state_that_it_has() {
        let pod = |byte| Pod::new(PodId::from_random([byte; 32]), Default::default(), String::new(), 0);
        let (ready, stopped) = (pod(1), pod(2));
        ready.write_state().ready = true;
        stopped.contact().set(Contact::Gone);
        let exit = ExitRecord { exit: Exit::Code(0), started_at_ns: 1, finished_at_ns: 2 };
        for (number, pod) in [(3, &ready), (4, &ready), (5, &ready), (6, &stopped)] {
            let container = Container::unknown(pod, number);
            match number {
                4 => drop(container.note_start(1)),
                5 | 6 => drop(container.note_exit(exit)),
                _ => {}
            }
            pod.insert(std::sync::Arc::new(container));
        }
        let mut census = Census::default();
        [ready, stopped].iter().for_each(|pod| census.count(pod));
        let expected = Census {
            ready_pods: 1,
            unready_pods: 1,
            running: 1,
            exited: 2,
            unknown: 1,
            connecting: 1,
            ..Census::default()
        };
        assert_eq!(census, expected);
    }
}
