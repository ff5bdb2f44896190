//! Work for a container in its own cgroups, where its limits and its device rules hold: how much work it is, and what
//! it comes upon, is up to the image. Whoever calls another runtime stays outside of them.

use std::os::fd::AsFd as _;

use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use wharf_sys::clone::{Clone, clone, end_with_parent};
use wharf_sys::process::{self, Reap, exit_now};
use wharf_sys::socket;
use wharf_types::{ErrorKind, Subject};

use crate::birth::Origin;
use crate::create::enter_cgroup;
use crate::error::{Error, Stage as _};
use crate::identity::Identity;
use crate::plan::CgroupPlan;
use crate::report::{self, Report};

const STAGE: &str = "working in the container's cgroup";

/// Does the work in a child that is in the container's cgroups. What it changes in this process's memory is lost.
pub(crate) fn to(
    cgroup: &CgroupPlan,
    origin: &Origin<'_>,
    work: impl FnOnce() -> Result<Identity, Error>,
) -> Result<Identity, Error> {
    let (reports, line) = socket::pair().stage(STAGE)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let open = |directory: &wharf_types::HostPath| wharf_sys::fs::open(directory.as_path(), flags);
    let directory = cgroup.directory.as_ref().map(open).transpose().stage(STAGE)?;
    let this = std::process::id();
    let into = directory.as_ref().map(|directory| directory.as_fd());
    let child = match clone(origin.child.single_threaded(), CloneFlags::empty(), into).stage(STAGE)? {
        Clone::Parent { pidfd, .. } => pidfd,
        Clone::Child(_) => {
            let begun = match end_with_parent(this) {
                Ok(true) => Ok(()),
                // Nobody is left who wants it.
                Ok(false) => exit_now(1),
                Err(error) => Err(error).stage(STAGE),
            };
            let done = begun.and_then(|()| enter_cgroup(&cgroup.entries)).and_then(|()| work());
            if let Err(error) = done.and_then(|identity| report::ready(&line, &identity, None, &[])) {
                report::failed(&line, &error);
            }
            exit_now(0)
        }
    };
    drop(line);
    let report = Report::receive(reports.as_fd()).stage(STAGE)?;
    process::await_end(child.as_fd()).stage(STAGE)?;
    process::wait(child.as_fd(), Reap::Remove).stage(STAGE)?;
    result(report)
}

fn result(report: Report) -> Result<Identity, Error> {
    let (class, message) = match report {
        Report::Ready { identity, .. } => return Ok(identity),
        Report::Failed { class, message } => (class, message),
        _ => {
            let killed =
                "a process of the container was killed while it was set up: is its memory limit too low?";
            ((ErrorKind::Internal, Subject::Other), killed.to_owned())
        }
    };
    Err(Error::Reported { class, message })
}

#[cfg(test)]
mod tests {
    use wharf_types::{Failure as _, OwnerId};

    use super::*;

    #[test]
    fn what_the_child_reports_is_the_result() {
        let (reports, line) = socket::pair().unwrap();
        let receive = || result(Report::receive(reports.as_fd()).unwrap());
        let me = Identity { uid: OwnerId::new(7).unwrap(), ..Identity::default() };
        report::ready(&line, &me, None, &[]).unwrap();
        assert_eq!(receive().unwrap().uid, me.uid);
        let unknown = Error::Identity { what: "user", name: "me".to_owned(), problem: "is not there" };
        report::failed(&line, &unknown);
        let error = receive().unwrap_err();
        assert_eq!((error.kind(), error.line()), (unknown.kind(), unknown.line()));
        drop(line);
        let error = receive().unwrap_err();
        assert!(error.line().contains("is its memory limit too low?"), "{error}");
    }
}
