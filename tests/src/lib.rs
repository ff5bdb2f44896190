//! The tests of the whole: rules of the workspace in `tests/`, the benchmark beside peers in `src/bin/bench`.
