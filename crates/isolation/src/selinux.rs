//! SELinux: the kernel is told the label in advance, and gives it to the program that this process executes.
//!
//! Labels come with the plan; what they allow is the policy's. Here the program, new file systems and the message
//! queues get theirs. Volumes have theirs before, from the daemon (`host/src/relabel.rs`).

use std::os::fd::{AsFd as _, BorrowedFd};

use nix::fcntl::OFlag;
use wharf_sys::fs::{Resolve, open_below, write_value};
use wharf_sys::{mount, xattr};
use wharf_types::SelinuxLabel;

use crate::error::{Error, Stage};
use crate::plan::{Plan, Process};

/// The attribute with the label of a file.
const ATTRIBUTE: &str = "security.selinux";

/// Has the kernel give the label to this process at its next exec, which is that of its program; a process that it
/// clones until then likewise. Nothing else that happens until then has it, so this comes first: `/proc` is the host's,
/// and nothing of a container can stand in its place.
pub(crate) fn confine(process: &Process) -> Result<(), Error> {
    let Some(label) = &process.selinux else { return Ok(()) };
    let tell = |file: &str| {
        let told = write_value(format!("/proc/self/attr/{file}"), label.as_str());
        told.stage("asking for the SELinux label")
    };
    tell("exec")?;
    // The session keyring is made before the program, which is to have access to it.
    tell("keycreate")
}

/// The option for a new file system of a type, all of whose files are to have a label. Those that show the kernel's own
/// objects have the policy's labels.
pub(crate) fn option<'a>(kind: &str, label: Option<&'a SelinuxLabel>) -> Option<(&'static str, &'a str)> {
    let takes_one = matches!(kind, "tmpfs" | "devpts");
    label.filter(|_| takes_one).map(|label| (mount::LABEL, label.as_str()))
}

/// Labels the message queues. The kernel has mounted them with the IPC namespace, and so takes no option: only their
/// directory can be labelled. The host's are not the container's to label, and in a user namespace nobody can.
pub(crate) fn label_queues(root: BorrowedFd<'_>, plan: &Plan) -> wharf_sys::Result<()> {
    let is_own = plan.namespaces.ipc.is_some() && plan.namespaces.user.is_none();
    let Some(label) = plan.mount_label.as_ref().filter(|_| is_own) else { return Ok(()) };
    let root = open_below(root, "", OFlag::O_RDONLY | OFlag::O_DIRECTORY, Resolve::BeneathNoLinks)?;
    xattr::set(root.as_fd(), ATTRIBUTE, label.as_str().as_bytes())
}
