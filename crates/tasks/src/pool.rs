//! How the runtime's pool of threads for blocking work is shared. What may be stuck, because others or a disk do not
//! respond, takes at most three quarters of it: what ends pods, and what answers questions, needs the rest.

use std::time::Duration;

use crate::crowd::CrowdLimits;

/// How many threads the pool should have.
pub const THREADS: usize = 80;
/// How many may connect pods to the network, and as many may disconnect them.
pub const NETWORK: usize = 24;
/// How many may wait for the disk of logs.
pub const LOGS: usize = 8;
/// How long to wait for that disk.
pub const LOGS_PATIENCE: Duration = Duration::from_secs(1);
/// How many may make pods and containers, for which directories of the host are looked at.
pub const MAKING: usize = 4;
/// How many pods are made, or have a container made, at a time. Beyond the pool each has a thread of its own.
pub const MAKING_LIMITS: CrowdLimits = CrowdLimits { of_one: 1, of_all: 512 };

const _: () = assert!((2 * NETWORK + LOGS + MAKING) * 4 <= THREADS * 3, "too much of the pool may be stuck");
