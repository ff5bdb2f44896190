//! A process that was killed and does not end: a thread of it waits in the kernel, as a rule for a disk, where no
//! signal reaches it. Until that responds, the process keeps its sockets and its locks. But it executes nothing of its
//! own any more: it serves nobody, begins nothing, and cannot be asked to stop.
#![expect(clippy::disallowed_methods, reason = "procfs waits for no disk")]

use std::fmt;

use wharf_sys::fs::kernel_text;
use wharf_sys::process::is_exiting;
use wharf_types::signal::SIGKILL;

/// A wharfd like that, which has what another one needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Killed {
    pid: i32,
}

impl Killed {
    /// This process, if it is one. One that is about to end may look like it for a moment.
    pub(crate) fn find(pid: i32) -> Option<Self> {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let threads = threads.filter_map(|thread| {
            // One that exits has taken the signal, and may wait for a file that it closes.
            let exits = is_exiting(&thread.path()).unwrap_or_default();
            Some((kernel_text(thread.path().join("status")).ok()?, exits))
        });
        are_killed(threads).then_some(Self { pid })
    }

    /// What it is, without what to do about it.
    pub(crate) fn words(&self) -> String {
        format!(
            "wharfd (pid {}) was killed or told to exit, but cannot end before its disk responds",
            self.pid
        )
    }
}

impl fmt::Display for Killed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}, and keeps its pods until then: check the disk, and see the kernel's log (dmesg); if it has failed, \
             restart the machine or, unless it is the disk of `state`, end the pods without it: wharfd clean --force",
            self.words()
        )
    }
}

impl std::error::Error for Killed {}

/// Whether some of these threads have not ended, and each of those has been killed.
fn are_killed(threads: impl Iterator<Item = (String, bool)>) -> bool {
    let field = |status: &str, name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    let mut left = threads.filter(|(status, _)| !field(status, "State:").starts_with(['Z', 'X'])).peekable();
    let is_killed = |(status, exits): (String, bool)| {
        let pending = u64::from_str_radix(&field(&status, "SigPnd:"), 16);
        exits || pending.is_ok_and(|pending| pending & (1 << (SIGKILL - 1)) != 0)
    };
    left.peek().is_some() && left.all(is_killed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_which_a_killed_thread_is_left_is_told_from_others() {
        let status =
            |state: &str, pending: &str| format!("Name:\twharfd\nState:\t{state}\nSigPnd:\t{pending}\n");
        let ended = || (status("Z (zombie)", "0000000000000000"), true);
        let waits = |pending: &str| (status("D (disk sleep)", pending), false);
        let exits = (waits("0000000000000000").0, true);
        assert!(are_killed([ended(), exits].into_iter()));
        let (killed, none) = (|| waits("0000000000000100"), || waits("0000000000000000"));
        assert!(are_killed([ended(), killed()].into_iter()) && are_killed([killed()].into_iter()));
        for others in
            [vec![], vec![ended()], vec![killed(), none()], vec![none()], vec![(String::new(), false)]]
        {
            assert!(!are_killed(others.clone().into_iter()), "{others:?}");
        }
        let own = std::process::id().cast_signed();
        assert_eq!([own, i32::MAX].map(Killed::find), [None; 2]);
    }
}
