//! The engine as it is, on files and cgroups of a test's own, with supervisors that have no processes and say what the
//! test has them say.
#![expect(clippy::disallowed_methods, reason = "a test may wait for a disk")]

mod created;
mod ended;
mod found;
mod pods;
mod reports;
mod supervisor;
mod world;
