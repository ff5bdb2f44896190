//! System calls made with the bare instruction. A C library stores errno in memory of the thread, and a process that
//! has left its memory behind ([`crate::bare`]) has none.

use std::ffi::c_int;

/// Makes a system call; a result from -4095 to -1 is a negated errno.
///
/// # Safety
/// That of the call with its arguments.
#[inline(always)]
pub(crate) unsafe fn call(number: libc::c_long, arguments: &[usize; 6]) -> isize {
    let [first, second, third, fourth, fifth, sixth] = *arguments;
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's convention: syscall(2). Flags and these two registers are all that it changes.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") first, in("rsi") second, in("rdx") third,
            in("r10") fourth, in("r8") fifth, in("r9") sixth,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel's convention: syscall(2). The result is all that it changes.
    unsafe {
        std::arch::asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") first => result,
            in("x1") second, in("x2") third, in("x3") fourth, in("x4") fifth, in("x5") sixth,
            options(nostack),
        );
    }
    result
}

/// A child's start, by address: the top of its stack, the function that it runs, and the argument.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start<T> {
    pub(crate) stack: *mut u8,
    pub(crate) run: unsafe extern "C" fn(*mut T) -> !,
    pub(crate) argument: *mut T,
}

/// Makes a clone(2) with a copy of this process's memory, in which the child starts on another stack. Returns only in
/// the parent.
///
/// # Safety
/// The flags share no memory with the child. Its copy has the stack, which nobody else uses and which is aligned to 16
/// bytes, the code of `run`, and the argument that `run` requires.
pub(crate) unsafe fn clone<T>(flags: usize, pidfd: &mut c_int, start: Start<T>) -> isize {
    let (stack, pidfd) = (start.stack.expose_provenance(), (&raw mut *pidfd).expose_provenance());
    // SAFETY: the caller's promise.
    unsafe { have_child(libc::SYS_clone, [flags, stack, pidfd], start.run, start.argument) }
}

/// Makes a clone3(2) in which the child starts on the stack in the arguments. Returns only in the parent.
///
/// # Safety
/// Nobody else uses the stack as long as the child does. The child may run `run` with the argument, in the parent's
/// memory if the arguments share it.
pub(crate) unsafe fn clone3<T>(
    arguments: &mut libc::clone_args,
    run: unsafe extern "C" fn(*mut T) -> !,
    argument: *mut T,
) -> isize {
    let (place, bytes) = ((&raw mut *arguments).expose_provenance(), size_of::<libc::clone_args>());
    // SAFETY: the caller's promise.
    unsafe { have_child(libc::SYS_clone3, [place, bytes, 0], run, argument) }
}

/// Makes a system call that returns twice, on a stack of its own in the child, which runs `run`. The arguments after
/// the third are 0.
///
/// # Safety
/// That of the call with its arguments, and of `run` with its own.
#[inline(always)]
unsafe fn have_child<T>(
    number: libc::c_long,
    [first, second, third]: [usize; 3],
    run: unsafe extern "C" fn(*mut T) -> !,
    argument: *mut T,
) -> isize {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the child keeps all registers but three, so it finds what to run and with what; a frame pointer of 0 ends
    // its call chain. The parent goes on after the label.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") number => result,
            in("rdi") first, in("rsi") second, in("rdx") third,
            in("r10") 0, in("r8") 0,
            in("r12") run, in("r13") argument,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the child keeps all registers but one, so it finds what to run and with what; a frame pointer of 0 ends
    // its call chain. The parent goes on after the label.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x21",
            "blr x20",
            "brk #1",
            "2:",
            in("x8") number,
            inlateout("x0") first => result,
            in("x1") second, in("x2") third, in("x3") 0, in("x4") 0,
            in("x20") run, in("x21") argument,
        );
    }
    result
}

/// Ends this process with a signal that cannot be blocked, because the kernel forces it.
pub(crate) fn trap() -> ! {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: an instruction that is none.
    unsafe {
        std::arch::asm!("ud2", options(noreturn, nomem, nostack))
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a breakpoint, which nobody waits for.
    unsafe {
        std::arch::asm!("brk #1", options(noreturn, nomem, nostack))
    }
}
