//! Which streams of a process a client wants.

/// The four flags of the CRI's Exec and Attach, each independent of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "wanted independently, as in the CRI's requests")]
pub struct StreamOptions {
    /// The client writes to standard input.
    pub stdin: bool,
    /// The client reads standard output.
    pub stdout: bool,
    /// The client reads standard error, apart from standard output.
    pub stderr: bool,
    /// The process has a terminal, which carries both outputs.
    pub terminal: bool,
}
