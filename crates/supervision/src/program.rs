//! Starting a supervisor, from a copy in memory, so that no container can overwrite its own supervisor.
//!
//! The copy is made when the daemon starts, so that pods of one daemon have one release of the program, even if the
//! file is replaced by an upgrade meanwhile.
#![expect(clippy::disallowed_methods, reason = "only `blocking` leads here")]

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::fcntl::OFlag;
use wharf_cgroup::{Cgroups, Placement};
use wharf_state::Layout;
use wharf_sys::fs::{detached_program, open, read_bounded};
use wharf_sys::launch::Launcher;
use wharf_sys::socket;
use wharf_types::{Stage as _, StageError};

use crate::cgroup::cgroup;
use crate::process::Process;

/// What its processes are called.
pub(crate) const PROGRAM: &CStr = c"wharf-shim";

/// Many times as much as the program has.
const PROGRAM_LIMIT_BYTES: usize = 1 << 30;

/// The supervisor's program, and where its processes are.
#[derive(Debug)]
pub struct Program {
    launcher: Launcher,
    pub(crate) cgroups: Cgroups,
    pub(crate) placement: Placement,
}

impl Program {
    /// Copies the program at a path into memory that nobody can change. This is for the start of a daemon, when it has
    /// few descriptors: see [`Launcher`].
    ///
    /// # Errors
    /// The program cannot be read.
    pub fn load(path: &Path, cgroups: &Cgroups, placement: &Placement) -> wharf_sys::Result<Self> {
        // A FIFO in its place would be waited for.
        let bytes = open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)
            .and_then(|file| read_bounded(&file, PROGRAM_LIMIT_BYTES))?;
        let launcher = detached_program("wharf-shim", &bytes).and_then(Launcher::new)?;
        Ok(Self { launcher, cgroups: cgroups.clone(), placement: placement.clone() })
    }

    /// Starts it for a pod's directory, in the cgroup (v2) of all supervisors below the configured parent, and returns
    /// the connection.
    pub fn start(&self, directory: &Path) -> Result<(Process, OwnedFd), StageError> {
        const STAGE: &str = "starting the pod's supervisor";
        let cgroup = cgroup(&self.cgroups, &self.placement)?;
        let cgroup = cgroup.as_ref().map(AsFd::as_fd);
        let (ours, theirs) = socket::pair().stage(STAGE)?;
        let log = File::create(Layout::supervisor_log(directory)).stage(STAGE)?;
        let null = wharf_sys::fs::open("/dev/null", OFlag::O_WRONLY).stage(STAGE)?;
        let directory = wharf_sys::launch::c_string(directory.as_os_str().as_bytes()).stage(STAGE)?;
        let streams = [theirs.as_fd(), null.as_fd(), log.as_fd()];
        let pidfd = self.launcher.start(&[PROGRAM.to_owned(), directory], streams, cgroup).stage(STAGE)?;
        Ok((Process::started(pidfd)?, ours))
    }
}
