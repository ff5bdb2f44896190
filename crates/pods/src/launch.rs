//! Starting a supervisor: from a sealed memory file, so that no container can overwrite what supervises it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use wharf_sys::fs::sealed_memfd;
use wharf_sys::socket;

use crate::error::{Error, Stage};

/// The supervisor's program.
#[derive(Debug)]
pub(crate) struct Program(OwnedFd);

impl Program {
    /// Copies the program at a path into memory and seals it.
    ///
    /// # Errors
    /// The program cannot be read.
    pub(crate) fn load(path: &Path) -> std::io::Result<Self> {
        let bytes = std::fs::read(path)?;
        sealed_memfd("wharf-shim", &bytes).map(Self).map_err(|error| std::io::Error::from(error.errno))
    }

    /// Starts it for a pod's directory, and returns its connection.
    pub(crate) fn start(&self, directory: &Path) -> Result<(Child, OwnedFd), Error> {
        const STAGE: &str = "starting the pod's supervisor";
        let (ours, theirs) = socket::pair().stage(STAGE)?;
        let log = File::create(directory.join("shim.log")).stage(STAGE)?;
        let path = format!("/proc/self/fd/{}", self.0.as_fd().as_raw_fd());
        #[expect(clippy::disallowed_methods, reason = "the one place that starts a supervisor")]
        let child = Command::new(path)
            .arg(directory)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .stage(STAGE)?;
        Ok((child, ours))
    }
}
