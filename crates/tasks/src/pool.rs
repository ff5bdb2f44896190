//! How the runtime's pool of threads for blocking work is shared. What may be stuck, because others or a disk do not
//! respond, takes at most three quarters of it: what ends pods, and what answers questions, needs the rest.

use std::time::Duration;

use crate::crowd::CrowdLimits;

/// How many threads the pool should have.
pub const THREADS: usize = 90;
/// How many may connect pods to the network, and as many may disconnect them.
pub const NETWORK: usize = 24;
/// How many may wait for the disk of logs.
pub const LOGS: usize = 8;
/// How long to wait for that disk.
pub const LOGS_PATIENCE: Duration = Duration::from_secs(1);
/// How many may make pods and containers, for which directories of the host are looked at.
pub const MAKING: usize = 4;
/// How many containers of one pod, and pods and containers of all, are made at a time. Beyond the pool each has a
/// thread of its own.
pub const MAKING_LIMITS: CrowdLimits = CrowdLimits { of_one: 8, of_all: 512 };
/// How many may look up names of registries.
pub const LOOKUPS: usize = 2;
/// How many may read the settings of registries.
pub const SETTINGS: usize = 2;
/// How many may wait for the disk of images on behalf of pulls, and as many on behalf of other calls.
pub const IMAGES: usize = 1;
/// How many may gather what is told about the daemon itself.
pub const INFO: usize = 1;

/// How many may be stuck.
const STUCK: usize = 2 * NETWORK + LOGS + MAKING + LOOKUPS + SETTINGS + 2 * IMAGES + INFO;

const _: () = assert!(STUCK * 4 <= THREADS * 3, "too much of the pool may be stuck");
