//! The tests of the whole: rules of the workspace and end to end in `tests/`, and in `src/bin` the benchmark beside peers
//! and the comparison with them. What the clients of the CRI share is here.

pub mod calls;
pub mod connect;
