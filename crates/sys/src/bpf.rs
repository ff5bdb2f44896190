//! Device programs of cgroup v2: loading them, and attaching them to a cgroup.
//!
//! The caller writes the program and decides what it allows; this module only passes instructions to the kernel.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::error::{Error, Result};

const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_DETACH: u32 = 9;
const PROG_GET_FD_BY_ID: u32 = 13;
const PROG_QUERY: u32 = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// The kernel runs at most this many programs of one type per cgroup.
const ATTACHED_MAX: u32 = 64;

/// One eBPF instruction, in the kernel's layout.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// The operation.
    pub code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub registers: u8,
    /// Jump distance in instructions, or an offset into memory.
    pub offset: i16,
    /// The constant operand.
    pub immediate: i32,
}

/// A device program in the kernel. It disappears with its descriptor unless it is attached.
#[derive(Debug)]
pub struct DeviceProgram(OwnedFd);

#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

#[repr(C)]
struct QueryAttributes {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

#[repr(C)]
struct IdAttributes {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

fn raw(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().cast_unsigned()
}

/// Calls bpf(2) with the attributes of one command; `T` must be the leading part of that command's attributes.
fn bpf<T>(command: u32, attributes: &mut T, about: impl FnOnce() -> String) -> Result<i32> {
    // SAFETY: `attributes` is a live, exclusively borrowed value of the size passed; the kernel takes what lies beyond
    // as zero. Pointers inside it are kept valid by the callers of this private function for the time of the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    let value = Errno::result(result).map_err(|errno| Error::new("bpf", about(), errno))?;
    i32::try_from(value).map_err(|_wide| Error::new("bpf", format!("result {value}"), Errno::EOVERFLOW))
}

/// Takes a descriptor that bpf(2) has just returned; the kernel makes it close-on-exec.
fn own(descriptor: i32) -> OwnedFd {
    // SAFETY: only called on what PROG_LOAD and PROG_GET_FD_BY_ID returned, once, before anybody else can know it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

impl DeviceProgram {
    /// Loads a program of type BPF_PROG_TYPE_CGROUP_DEVICE, visible to tools under the name `wharf_devices`.
    ///
    /// # Errors
    /// EINVAL or EACCES if the verifier refuses it, EPERM without CAP_BPF, E2BIG if it is too long.
    pub fn load(instructions: &[Instruction]) -> Result<Self> {
        let about = || format!("PROG_LOAD, {} instructions", instructions.len());
        let count =
            u32::try_from(instructions.len()).map_err(|_wide| Error::new("bpf", about(), Errno::E2BIG))?;
        let mut name = [0; 16];
        name[..13].copy_from_slice(b"wharf_devices");
        let license = c"Apache-2.0";
        let mut attributes = LoadAttributes {
            program_type: TYPE_CGROUP_DEVICE,
            instruction_count: count,
            instructions: instructions.as_ptr().addr() as u64,
            license: license.as_ptr().addr() as u64,
            log_level: 0,
            log_size: 0,
            log_buffer: 0,
            kernel_version: 0,
            flags: 0,
            name,
        };
        let descriptor = bpf(PROG_LOAD, &mut attributes, about)?;
        Ok(Self(own(descriptor)))
    }

    /// Opens a loaded program by an id from [`attached`].
    ///
    /// # Errors
    /// ENOENT if it has disappeared since.
    pub fn open(id: u32) -> Result<Self> {
        let mut attributes = IdAttributes { id, next_id: 0, open_flags: 0 };
        let descriptor = bpf(PROG_GET_FD_BY_ID, &mut attributes, || format!("PROG_GET_FD_BY_ID, {id}"))?;
        Ok(Self(own(descriptor)))
    }

    /// Attaches the program to a cgroup (a descriptor of its directory), in addition to the programs of ancestors: all
    /// of them must allow an access. With `replaced`, it takes the place of that program in one step.
    ///
    /// # Errors
    /// EPERM if an ancestor forbids several programs, ENOENT if `replaced` is not attached.
    pub fn attach(&self, cgroup: BorrowedFd<'_>, replaced: Option<&Self>) -> Result<()> {
        let flags = if replaced.is_some() { ALLOW_MULTI | REPLACE } else { ALLOW_MULTI };
        let mut attributes = AttachAttributes {
            target: raw(cgroup),
            program: raw(self.0.as_fd()),
            kind: ATTACH_CGROUP_DEVICE,
            flags,
            replaced: replaced.map_or(0, |program| raw(program.0.as_fd())),
        };
        bpf(PROG_ATTACH, &mut attributes, || format!("PROG_ATTACH, cgroup {}", cgroup.as_raw_fd())).map(drop)
    }

    /// Detaches the program from a cgroup.
    ///
    /// # Errors
    /// ENOENT if it is not attached to it.
    pub fn detach(&self, cgroup: BorrowedFd<'_>) -> Result<()> {
        let mut attributes = AttachAttributes {
            target: raw(cgroup),
            program: raw(self.0.as_fd()),
            kind: ATTACH_CGROUP_DEVICE,
            flags: 0,
            replaced: 0,
        };
        bpf(PROG_DETACH, &mut attributes, || format!("PROG_DETACH, cgroup {}", cgroup.as_raw_fd())).map(drop)
    }
}

/// The ids of the device programs attached to a cgroup itself, without those of its ancestors, in the order in which
/// they run.
///
/// # Errors
/// EINVAL if the kernel has no cgroup programs, EBADF if the descriptor is not a cgroup v2 directory.
pub fn attached(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut ids = [0_u32; ATTACHED_MAX as usize];
    let mut attributes = QueryAttributes {
        target: raw(cgroup),
        kind: ATTACH_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr().addr() as u64,
        count: ATTACHED_MAX,
        padding: 0,
    };
    bpf(PROG_QUERY, &mut attributes, || format!("PROG_QUERY, cgroup {}", cgroup.as_raw_fd()))?;
    Ok(ids.iter().copied().take(attributes.count as usize).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET_R0: u8 = 0xb7;
    const EXIT: u8 = 0x95;

    fn answer(allowed: i32) -> [Instruction; 2] {
        [
            Instruction { code: SET_R0, registers: 0, offset: 0, immediate: allowed },
            Instruction { code: EXIT, registers: 0, offset: 0, immediate: 0 },
        ]
    }

    #[test]
    fn the_verifier_takes_a_whole_program_and_refuses_a_torn_one() {
        DeviceProgram::load(&answer(1)).unwrap();
        assert!(DeviceProgram::load(&answer(1)[..1]).is_err());
        assert!(DeviceProgram::load(&[]).is_err());
    }

    #[test]
    fn what_is_no_cgroup_has_no_programs() {
        let file = std::fs::File::open("/proc/self").unwrap();
        let program = DeviceProgram::load(&answer(1)).unwrap();
        assert!(attached(file.as_fd()).is_err());
        assert!(program.attach(file.as_fd(), None).is_err());
        assert!(program.detach(file.as_fd()).is_err());
    }

    #[test]
    fn an_unknown_number_is_not_found() {
        assert_eq!(DeviceProgram::open(u32::MAX).unwrap_err().errno, Errno::ENOENT);
    }
}
