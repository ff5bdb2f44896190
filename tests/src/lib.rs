//! The tests of the whole: rules of the workspace and end to end in `tests/`, the benchmark beside peers in
//! `src/bin/bench`. What the two clients of the CRI share is here.

pub mod connect;
