//! A terminal for the container, opened in its own devpts, so that it has a name there.
//!
//! The process that opens it keeps the container's end; the other end goes to the supervisor with the report that the
//! process is ready. A terminal of the host never gets into a container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{DEVPTS_SUPER_MAGIC, fstatfs};
use wharf_sys::error::Named as _;
use wharf_sys::fs::{Resolve, open_below};
use wharf_sys::mount::{self, Depth};
use wharf_sys::terminal::{peer as terminal_peer, resize as resize_terminal, unlock as unlock_terminal};
use wharf_types::{ContainerPath, TerminalSize};

use crate::devices::has_own_dev;
use crate::error::{Error, Stage};
use crate::plan::Plan;
use crate::root::{Make, Root};

const STAGE: &str = "making the terminal";

/// Both ends of a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) peer: OwnedFd,
}

/// Opens a terminal in the container's `/dev/pts`, and makes it `/dev/console` if `/dev` is the container's own.
pub(crate) fn open(root: &Root, plan: &Plan) -> Result<Terminal, Error> {
    let master = open_ptmx(root.fd())?;
    let peer = terminal_peer(master.as_fd()).stage(STAGE)?;
    if !has_own_dev(plan) {
        return Ok(Terminal { master, peer });
    }
    let console = ContainerPath::new("/dev/console").map_err(|_never| Error::Stage {
        stage: STAGE,
        source: wharf_sys::Error::new("open", "/dev/console", Errno::EINVAL),
    })?;
    let console = root.ensure(&console, Make::File).stage(STAGE)?;
    let tree = mount::copy_tree_fd(peer.as_fd(), Depth::One).stage(STAGE)?;
    root.attach(tree.as_fd(), console.as_fd()).stage(STAGE)?;
    Ok(Terminal { master, peer })
}

/// Opens a terminal for a process that has joined the container.
pub(crate) fn open_joined(root: &OwnedFd, size: Option<TerminalSize>) -> Result<Terminal, Error> {
    let master = open_ptmx(root.as_fd())?;
    if let Some(TerminalSize { width, height }) = size {
        resize_terminal(master.as_fd(), width, height).stage(STAGE)?;
    }
    let peer = terminal_peer(master.as_fd()).stage(STAGE)?;
    Ok(Terminal { master, peer })
}

fn open_ptmx(root: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
    let master = open_below(root, "dev/pts/ptmx", flags, Resolve::BeneathNoLinks).stage(STAGE)?;
    let status = fstatfs(&master).named("fstatfs", || "/dev/pts/ptmx".into()).stage(STAGE)?;
    let filesystem = status.filesystem_type();
    if filesystem != DEVPTS_SUPER_MAGIC {
        let source = wharf_sys::Error::new("open", "/dev/pts/ptmx is not a terminal's", Errno::ENOTTY);
        return Err(Error::Stage { stage: STAGE, source });
    }
    unlock_terminal(master.as_fd()).stage(STAGE)?;
    Ok(master)
}
