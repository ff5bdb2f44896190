//! The heap of a program with many threads.

/// Lets all threads share so many arenas of the heap. To be called before there are others. A C library without arenas ignores it.
///
/// glibc makes up to eight for each processor, and what is freed in one stays with it: where threads take turns at large
/// answers, each arena keeps the memory of one.
#[cfg_attr(not(target_env = "gnu"), expect(unused_variables, reason = "other C libraries have no arenas"))]
pub fn share(arenas: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: two integers. Where it fails there are as many as before.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, arenas);
    }
}
