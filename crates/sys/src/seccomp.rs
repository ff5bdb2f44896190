//! Seccomp filters: loading those that others compiled, and the smallest one there is.

use nix::errno::Errno;

use crate::error::{Error, Result};

/// A system call of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call(libc::c_long);

impl Call {
    /// close(2).
    pub const CLOSE: Self = Self(libc::SYS_close);
    /// exit_group(2).
    pub const EXIT_GROUP: Self = Self(libc::SYS_exit_group);
    /// rt_sigtimedwait(2), by which a C library waits for a signal.
    pub const RT_SIGTIMEDWAIT: Self = Self(libc::SYS_rt_sigtimedwait);
    /// wait4(2).
    pub const WAIT4: Self = Self(libc::SYS_wait4);
    /// write(2).
    pub const WRITE: Self = Self(libc::SYS_write);
}

/// The kernel's name for this architecture's calls, `AUDIT_ARCH_*`.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
/// The kernel's name for this architecture's calls, `AUDIT_ARCH_*`.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Refuses every call but these from now on, with EPERM; those of other architectures too. Needs no_new_privs.
///
/// # Errors
/// The kernel's.
pub fn allow_only(calls: &[Call]) -> Result<()> {
    load(&only(calls), 0)
}

fn only(calls: &[Call]) -> Vec<u8> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let refuse = (RETURN, 0, REFUSE);
    let allow = (RETURN, 0, libc::SECCOMP_RET_ALLOW);
    // Of `seccomp_data` the architecture is at 4, the number at 0.
    let mut program = vec![(LOAD, 0, 4), (JUMP_IF_EQUAL, 1, ARCHITECTURE), refuse, (LOAD, 0, 0)];
    for Call(number) in calls {
        let number = u32::try_from(*number).unwrap_or(u32::MAX);
        // Equal: on to the next instruction; else over it.
        program.extend([(JUMP_IF_EQUAL, 0, number), allow]);
    }
    program.push(refuse);
    program.into_iter().flat_map(|(code, equal, value)| instruction(code, equal, value)).collect()
}

/// One instruction; a jump goes on after `equal` others, or after one less or more if it is not equal.
fn instruction(code: u32, equal: u8, value: u32) -> [u8; 8] {
    let [low, high, ..] = code.to_le_bytes();
    let code = u16::from_le_bytes([low, high]).to_ne_bytes();
    let value = value.to_ne_bytes();
    [code[0], code[1], equal, 1 - equal, value[0], value[1], value[2], value[3]]
}

/// Loads a seccomp filter: instructions of 8 bytes each, as the kernel's `sock_filter`. Without no_new_privs the
/// process needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// EINVAL for a program the kernel refuses, EACCES without the right.
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

    /// What the filter answers, as the kernel would find out.
    fn answer(program: &[u8], architecture: u32, number: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let i = &program[at * 8..at * 8 + 8];
            let value = u32::from_ne_bytes([i[4], i[5], i[6], i[7]]);
            at += 1;
            match u32::from(u16::from_ne_bytes([i[0], i[1]])) {
                0x20 => loaded = if value == 4 { architecture } else { number },
                0x15 => at += usize::from(if loaded == value { i[2] } else { i[3] }),
                _ => return value,
            }
        }
    }

    #[test]
    fn all_but_what_is_listed_is_refused() {
        let program = only(&[Call::WAIT4, Call::WRITE]);
        let number = |call: Call| u32::try_from(call.0).unwrap();
        let refused = libc::SECCOMP_RET_ERRNO | 1;
        for allowed in [Call::WAIT4, Call::WRITE] {
            assert_eq!(answer(&program, ARCHITECTURE, number(allowed)), libc::SECCOMP_RET_ALLOW);
            // The same number means another call to another architecture.
            assert_eq!(answer(&program, 0x4000_0003, number(allowed)), refused);
        }
        for other in [number(Call::CLOSE), number(Call::WRITE) | 0x4000_0000, u32::MAX] {
            assert_eq!(answer(&program, ARCHITECTURE, other), refused);
        }
    }
}
