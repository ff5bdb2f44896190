//! The heap of a program with many threads.

/// Makes all threads share this number of heap arenas. Call it before there are other threads. A C library without
/// arenas ignores it.
///
/// glibc makes up to eight arenas for each processor, and freed memory stays with its arena: where threads take turns
/// at large responses, each arena keeps the memory of one response.
#[cfg_attr(not(target_env = "gnu"), expect(unused_variables, reason = "other C libraries have no arenas"))]
pub fn share(arenas: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: the arguments are two integers. If the call fails, the number of arenas stays as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, arenas);
    }
}
