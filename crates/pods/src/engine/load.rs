//! How much goes on, for metrics.
//!
//! These are figures of one moment, from memory and without a wait, so that they can be had when the rest is stuck:
//! `daemon/src/figures.rs` shows them to Prometheus. What is counted over time is counted where it happens.

use wharf_tasks::pool;

use super::Engine;

/// What goes on at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Pods and containers that are being made.
    pub in_the_making: usize,
    /// Commands of ExecSync that run.
    pub exec_syncs: usize,
    /// Work that may be stuck: how many threads of the pool it has, and how many it may have.
    pub pool: [(&'static str, usize, usize); 4],
}

impl Engine {
    /// What goes on now; from memory.
    #[must_use]
    pub fn load(&self) -> Load {
        let (joining, leaving) = self.network_turns.taken();
        Load {
            in_the_making: self.table.in_the_making(),
            exec_syncs: self.commands.count(),
            pool: [
                ("network_setup", joining, pool::NETWORK),
                ("network_teardown", leaving, pool::NETWORK),
                ("logs", self.logs.taken(), pool::LOGS),
                ("making", self.making.pooled(), pool::MAKING),
            ],
        }
    }
}
