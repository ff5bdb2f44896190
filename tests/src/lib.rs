//! The tests of the whole program: the rules of the workspace and the end-to-end tests in `tests/`, and in `src/bin`
//! the benchmark of wharf and other runtimes and the comparison with containerd. This library has what the clients of
//! the CRI share.

pub mod calls;
pub mod connect;
