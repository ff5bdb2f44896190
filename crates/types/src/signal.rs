//! The signals that wharf knows by itself, by their names. All others are numbers here, as requests and the kernel give
//! them; `planner/src/stop_signal.rs` has the names that images and requests may use.
//!
//! The numbers are those of Linux on every machine that wharf runs on, and as wide as in an exit.

/// Kills a process: it can neither be caught nor held back.
pub const SIGKILL: u8 = 9;

/// What a person at a terminal sends with Control-C.
pub const SIGINT: u8 = 2;

/// Asks a process to end.
pub const SIGTERM: u8 = 15;

/// The last real-time signal, and the highest number that a signal has.
pub const SIGRTMAX: u8 = 64;

/// What a shell adds to the number of the signal that has killed a command, for an exit code.
pub const SHELL_BASE: u8 = 128;
