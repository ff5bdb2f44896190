//! How this process is served beside others: processors, disks, and the kernel's manners towards it. All of it is
//! inherited by the processes that it makes, and survives an exec.

use nix::errno::Errno;

use crate::error::{Error, Result};

/// A policy for processors, by the kernel's number, with what goes with it: sched(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduling {
    /// `SCHED_OTHER`, `SCHED_FIFO`, `SCHED_RR`, `SCHED_BATCH` or `SCHED_IDLE`.
    pub policy: u32,
    /// The nice value, from -20 to 19, of a policy that has one.
    pub nice: i32,
    /// The priority, from 1 to 99, of a real-time policy; 0 of any other.
    pub priority: u32,
}

/// `struct sched_attr` in its first version.
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const ATTRIBUTES_BYTES: u32 = 48;

/// Sets the policy of this thread.
///
/// # Errors
/// EPERM for a real-time policy or a lower nice value without `CAP_SYS_NICE`, EINVAL for what is out of range.
pub fn set(scheduling: Scheduling) -> Result<()> {
    let Scheduling { policy, nice, priority } = scheduling;
    let attributes = Attributes {
        size: ATTRIBUTES_BYTES,
        policy,
        flags: 0,
        nice,
        priority,
        runtime: 0,
        deadline: 0,
        period: 0,
    };
    // SAFETY: `attributes` lives through the call and says its size, and pid 0 is this thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    Errno::result(result).map(drop).map_err(|errno| {
        Error::new("sched_setattr", format!("policy {policy}, nice {nice}, priority {priority}"), errno)
    })
}

/// Sets the class (1 real-time, 2 best effort, 3 idle) and the level (0 to 7) with which this thread's reads and writes
/// are served.
///
/// # Errors
/// EPERM for the real-time class without `CAP_SYS_NICE` or `CAP_SYS_ADMIN`, EINVAL for what is out of range.
pub fn set_io_priority(class: u32, level: u32) -> Result<()> {
    const WHO_PROCESS: i32 = 1;
    const CLASS_SHIFT: u32 = 13;
    // SAFETY: the call has no pointers, and pid 0 is this thread.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, class << CLASS_SHIFT | level) };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("ioprio_set", format!("class {class}, level {level}"), errno))
}

/// Sets the execution domain of this process: personality(2).
///
/// # Errors
/// The kernel's error.
pub fn set_personality(domain: u32) -> Result<()> {
    // SAFETY: the call has no pointers.
    let result = unsafe { libc::syscall(libc::SYS_personality, libc::c_ulong::from(domain)) };
    Errno::result(result).map(drop).map_err(|errno| Error::new("personality", domain.to_string(), errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The policy, the priority and the nice value of a thread of its own once it has done this: proc_pid_stat(5).
    fn after(act: impl FnOnce() + Send) -> [String; 3] {
        let read = || {
            act();
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
            [41, 18, 19].map(|number| fields[number - 3].to_owned())
        };
        std::thread::scope(|scope| scope.spawn(read).join()).unwrap()
    }

    #[test]
    fn a_policy_is_set_with_what_belongs_to_it() {
        let of = |policy: i32, nice| Scheduling { policy: policy.cast_unsigned(), nice, priority: 0 };
        let (idle, batch) = (of(libc::SCHED_IDLE, 0), of(libc::SCHED_BATCH, 7));
        // The nice value has no meaning for it, and stays what the test was started with.
        let [_, _, own] = after(|| ());
        assert_eq!(after(|| set(idle).unwrap()), ["5", "20", &own]);
        assert_eq!(after(|| set(batch).unwrap()), ["3", "27", "7"]);
        assert_eq!(set(of(99, 0)).unwrap_err().errno, Errno::EINVAL);
    }

    #[test]
    fn reads_and_writes_have_a_class() {
        // SAFETY: the call has no pointers, and pid 0 is this thread.
        let held = || unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                set_io_priority(2, 6).unwrap();
                assert_eq!(held(), 2 << 13 | 6);
                set_io_priority(3, 0).unwrap();
                assert_eq!(held(), 3 << 13);
                assert_eq!(set_io_priority(7, 0).unwrap_err().errno, Errno::EINVAL);
            });
        });
    }
}
