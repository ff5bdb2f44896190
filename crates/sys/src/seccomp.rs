//! Seccomp filters: loading compiled ones, and the smallest one possible.
//!
//! What a profile allows is decided in the planner, which knows the names of calls and compiles them; here a filter is
//! bytes. [`Call`] has only those calls by name for which wharf looks into a filter or makes one: the steps between a
//! filter and its program, those of the pod's reaper, and those that a test has the kernel refuse. A filter holds for
//! the thread that loads it and what that starts, and cannot be taken off.

use nix::errno::Errno;

use crate::error::{Error, Result};

/// A system call of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call(libc::c_long);

impl Call {
    /// capset(2).
    pub const CAPSET: Self = Self(libc::SYS_capset);
    /// epoll_ctl(2).
    pub const EPOLL_CTL: Self = Self(libc::SYS_epoll_ctl);
    /// execve(2).
    pub const EXECVE: Self = Self(libc::SYS_execve);
    /// fsconfig(2).
    pub const FSCONFIG: Self = Self(libc::SYS_fsconfig);
    /// fsmount(2).
    pub const FSMOUNT: Self = Self(libc::SYS_fsmount);
    /// fsopen(2).
    pub const FSOPEN: Self = Self(libc::SYS_fsopen);
    /// getdents64(2), which lists a directory.
    pub const GETDENTS64: Self = Self(libc::SYS_getdents64);
    /// ioctl(2).
    pub const IOCTL: Self = Self(libc::SYS_ioctl);
    /// socket(2).
    pub const SOCKET: Self = Self(libc::SYS_socket);
    /// seccomp(2).
    pub const SECCOMP: Self = Self(libc::SYS_seccomp);
    /// clone(2).
    pub const CLONE: Self = Self(libc::SYS_clone);
    /// clone3(2).
    pub const CLONE3: Self = Self(libc::SYS_clone3);
    /// close(2).
    pub const CLOSE: Self = Self(libc::SYS_close);
    /// close_range(2).
    pub const CLOSE_RANGE: Self = Self(libc::SYS_close_range);
    /// exit_group(2).
    pub const EXIT_GROUP: Self = Self(libc::SYS_exit_group);
    /// pidfd_open(2).
    pub const PIDFD_OPEN: Self = Self(libc::SYS_pidfd_open);
    /// pidfd_send_signal(2).
    pub const PIDFD_SEND_SIGNAL: Self = Self(libc::SYS_pidfd_send_signal);
    /// prctl(2).
    pub const PRCTL: Self = Self(libc::SYS_prctl);
    /// rmdir(2), or the call that stands for it.
    #[cfg(target_arch = "x86_64")]
    pub const RMDIR: Self = Self(libc::SYS_rmdir);
    /// rmdir(2), or the call that stands for it.
    #[cfg(not(target_arch = "x86_64"))]
    pub const RMDIR: Self = Self(libc::SYS_unlinkat);
    /// rt_sigtimedwait(2), with which a C library waits for a signal.
    pub const RT_SIGTIMEDWAIT: Self = Self(libc::SYS_rt_sigtimedwait);
    /// sendmsg(2).
    pub const SENDMSG: Self = Self(libc::SYS_sendmsg);
    /// setsid(2).
    pub const SETSID: Self = Self(libc::SYS_setsid);
    /// wait4(2).
    pub const WAIT4: Self = Self(libc::SYS_wait4);
    /// write(2).
    pub const WRITE: Self = Self(libc::SYS_write);

    /// Its number.
    pub(crate) fn number(self) -> libc::c_long {
        self.0
    }

    /// Whether a filter allows the call with these arguments; an empty filter allows everything.
    #[must_use]
    pub fn passes(self, program: &[u8], arguments: &[u64; 6]) -> bool {
        let number = u32::try_from(self.0).unwrap_or(u32::MAX);
        let answer = answer(program, ARCHITECTURE, number, arguments);
        program.is_empty() || matches!(answer, Some(libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG))
    }
}

/// What a filter returns, computed as the kernel would; `None` if it has an instruction that wharf's filters do not
/// have.
fn answer(program: &[u8], architecture: u32, number: u32, arguments: &[u64; 6]) -> Option<u32> {
    const LOAD: u16 = 0x20;
    const AND: u16 = 0x54;
    const JUMP: u16 = 0x05;
    const RETURN: u16 = 0x06;
    const EQUAL: u16 = 0x15;
    const GREATER: u16 = 0x25;
    const GREATER_OR_EQUAL: u16 = 0x35;
    let mut loaded: u32 = 0;
    let mut rest = program;
    loop {
        let (&[c0, c1, yes, no, k0, k1, k2, k3], after) = rest.split_first_chunk()?;
        let value = u32::from_ne_bytes([k0, k1, k2, k3]);
        let skipped = |test: bool| u32::from(if test { yes } else { no });
        let skip = match u16::from_ne_bytes([c0, c1]) {
            LOAD => {
                // At the offsets of the fields of `seccomp_data`.
                loaded = match value {
                    0 => number,
                    4 => architecture,
                    16.. => half_of(arguments, value - 16)?,
                    _ => 0,
                };
                0
            }
            AND => {
                loaded &= value;
                0
            }
            JUMP => value,
            EQUAL => skipped(loaded == value),
            GREATER => skipped(loaded > value),
            GREATER_OR_EQUAL => skipped(loaded >= value),
            RETURN => return Some(value),
            _ => return None,
        };
        rest = after.get(8 * usize::try_from(skip).ok()?..)?;
    }
}

/// Four bytes of the arguments, which are adjacent.
fn half_of(arguments: &[u64; 6], offset: u32) -> Option<u32> {
    let offset = usize::try_from(offset).ok()?;
    let argument = arguments.get(offset / 8)?.to_ne_bytes();
    Some(u32::from_ne_bytes(*argument.get(offset % 8..)?.first_chunk()?))
}

/// The kernel's name for this architecture's calls, `AUDIT_ARCH_*`.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
/// The kernel's name for this architecture's calls, `AUDIT_ARCH_*`.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// From now on refuses every call except these with EPERM, on other architectures, too. Needs no_new_privs.
///
/// # Errors
/// The kernel's error.
pub fn allow_only(calls: &[Call]) -> Result<()> {
    load(&only(calls), 0)
}

/// From now on one call of this thread fails with this error. For tests of what becomes of it.
///
/// # Errors
/// The kernel's error.
pub fn refuse(Call(number): Call, errno: Errno) -> Result<()> {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    let refuse = (RETURN, 0, libc::SECCOMP_RET_ERRNO | (errno as i32).cast_unsigned());
    let program = [(LOAD, 0, 0), (JUMP_IF_EQUAL, 0, number), refuse, (RETURN, 0, libc::SECCOMP_RET_ALLOW)];
    let program = program.into_iter().flat_map(|(code, equal, value)| instruction(code, equal, value));
    load(&program.collect::<Vec<u8>>(), 0)
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

fn only(calls: &[Call]) -> Vec<u8> {
    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let refuse = (RETURN, 0, REFUSE);
    let allow = (RETURN, 0, libc::SECCOMP_RET_ALLOW);
    // In `seccomp_data`, the architecture is at offset 4 and the number at 0.
    let mut program = vec![(LOAD, 0, 4), (JUMP_IF_EQUAL, 1, ARCHITECTURE), refuse, (LOAD, 0, 0)];
    for Call(number) in calls {
        let number = u32::try_from(*number).unwrap_or(u32::MAX);
        // If equal, go to the next instruction, else skip it.
        program.extend([(JUMP_IF_EQUAL, 0, number), allow]);
    }
    program.push(refuse);
    program.into_iter().flat_map(|(code, equal, value)| instruction(code, equal, value)).collect()
}

/// One instruction. A jump skips `equal` instructions if the comparison holds, and `1 - equal` if it does not.
fn instruction(code: u32, equal: u8, value: u32) -> [u8; 8] {
    let [low, high, ..] = code.to_le_bytes();
    let code = u16::from_le_bytes([low, high]).to_ne_bytes();
    let value = value.to_ne_bytes();
    [code[0], code[1], equal, 1 - equal, value[0], value[1], value[2], value[3]]
}

/// Loads a seccomp filter: instructions of 8 bytes each, like the kernel's `sock_filter`. Without no_new_privs the
/// process needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// EINVAL for a program that the kernel refuses, EACCES without the right.
pub fn load(program: &[u8], flags: u32) -> Result<()> {
    let count = u16::try_from(program.len() / 8);
    let (Ok(len), 0) = (count, program.len() % 8) else {
        return Err(Error::new("seccomp", format!("{} bytes", program.len()), Errno::EINVAL));
    };
    let mut filter: Vec<libc::sock_filter> = Vec::with_capacity(usize::from(len));
    for i in program.chunks_exact(8) {
        let code = u16::from_ne_bytes([i[0], i[1]]);
        filter.push(libc::sock_filter {
            code,
            jt: i[2],
            jf: i[3],
            k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
        });
    }
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points to `len` instructions that live through the call; the kernel copies them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("seccomp", format!("{len} instructions"), errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bare::SIBLING;

    fn first(argument: u64) -> [u64; 6] {
        [argument, 0, 0, 0, 0, 0]
    }

    #[test]
    fn what_a_filter_lets_through_is_found_out() {
        let (load, and, equal, end) = (0x20_u16, 0x54, 0x15, 0x06);
        let write = |code: u16, yes: u8, no: u8, value: u32| {
            [&code.to_ne_bytes()[..], &[yes, no], &value.to_ne_bytes()].concat()
        };
        let number = u32::try_from(libc::SYS_clone).unwrap();
        // clone, unless its first argument has a bit of 0x7e020000.
        let program = [
            write(load, 0, 0, 0),
            write(equal, 0, 4, number),
            write(load, 0, 0, 16),
            write(and, 0, 0, 0x7e02_0000),
            write(equal, 0, 1, 0),
            write(end, 0, 0, libc::SECCOMP_RET_ALLOW),
            write(end, 0, 0, libc::SECCOMP_RET_ERRNO),
        ]
        .concat();
        assert!(Call::CLONE.passes(&program, &first(SIBLING.into())));
        assert!(!Call::CLONE.passes(&program, &first(0x2000_0000)));
        assert!(!Call::SETSID.passes(&program, &first(0)));
        assert!(Call::SETSID.passes(&[], &first(0)), "no filter");
        assert!(!Call::SETSID.passes(&write(0x45, 0, 0, 1), &first(0)), "another's instruction");
        assert!(!Call::SETSID.passes(&write(load, 0, 0, 0), &first(0)), "no end");
    }

    #[test]
    fn all_but_what_is_listed_is_refused() {
        let program = only(&[Call::WAIT4, Call::WRITE]);
        let number = |call: Call| u32::try_from(call.0).unwrap();
        let refused = libc::SECCOMP_RET_ERRNO | 1;
        for allowed in [Call::WAIT4, Call::WRITE] {
            assert_eq!(
                answer(&program, ARCHITECTURE, number(allowed), &first(0)),
                Some(libc::SECCOMP_RET_ALLOW)
            );
            // On another architecture the same number means another call.
            assert_eq!(answer(&program, 0x4000_0003, number(allowed), &first(0)), Some(refused));
        }
        for other in [number(Call::CLOSE), number(Call::WRITE) | 0x4000_0000, u32::MAX] {
            assert_eq!(answer(&program, ARCHITECTURE, other, &first(0)), Some(refused));
        }
    }
}
