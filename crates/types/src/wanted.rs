//! The streams of a process that a client wants.

/// The four flags of the CRI's Exec and Attach, independent of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "wanted independently, as in the CRI's requests")]
pub struct Wanted {
    /// To write input.
    pub stdin: bool,
    /// To read output.
    pub stdout: bool,
    /// To read errors, apart from output.
    pub stderr: bool,
    /// To do so at a terminal, which carries both outputs.
    pub terminal: bool,
}
