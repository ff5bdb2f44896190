//! The policy of the runtime's own profile, as data: which calls a container may make with which capabilities.
//!
//! The data is moby's policy (repository moby/profiles, `seccomp/default.json`, as of its commit cd3bed8 of
//! 2026-06-30), which is what the kubelet's `RuntimeDefault` means in practice: names for every container, blocks by
//! capability, and a few calls by argument. The names and blocks of architectures for which wharf has no numbers
//! (riscv64, s390x, ppc64le) are left out. One thing is stricter: see the families of `socket` in the profile made from
//! this.
//!
//! `socketcall` of i386 still reaches those families, even from 64-bit programs, and its arguments are in memory, where
//! no filter can look. It stays allowed: a glibc for i386 that supports kernels before 4.3, as Debian's does, and Go
//! for 386 have no other way to a socket.

/// Calls that every container may make.
pub(super) const ALWAYS: &[&str] = &[
    // Extended attributes.
    "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat \
     llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat",
    // Sockets.
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
     recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair",
    // Message queues, semaphores and shared memory of System V and POSIX.
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
     mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop \
     semtimedop_time64 shmat shmctl shmdt shmget",
    // Time and timers.
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
     clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time \
     timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
     timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times",
    // Waiting for events.
    "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old \
     eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch _newselect \
     pause poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4",
    // Asynchronous input and output.
    "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit",
    // Signals.
    "kill pidfd_send_signal restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo \
     rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack \
     sigprocmask sigreturn tgkill tkill",
    // Users and groups.
    "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid \
     getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid \
     setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid \
     setreuid32 setuid setuid32",
    // Memory.
    "brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap \
     mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
     process_mrelease remap_file_pages",
    // Scheduling and limits.
    "getcpu getpriority getrlimit getrusage ioprio_get ioprio_set prlimit64 sched_get_priority_max \
     sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
     sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
     sched_setscheduler sched_yield setpriority setrlimit sysinfo ugetrlimit",
    // Threads and futexes.
    "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list get_thread_area \
     gettid rseq set_robust_list set_thread_area set_tid_address",
    // Processes.
    "execve execveat exit exit_group fork getpgid getpgrp getpid getppid getrandom getsid landlock_add_rule \
     landlock_create_ruleset landlock_restrict_self pidfd_open prctl seccomp setpgid setsid umask uname \
     uretprobe vfork wait4 waitid waitpid",
    // Files and directories.
    "access cachestat chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 \
     faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 \
     fchownat fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate \
     ftruncate64 futimesat getcwd getdents getdents64 ioctl lchown lchown32 link linkat listmount _llseek \
     lseek lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe \
     pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename \
     renameat renameat2 rmdir sendfile sendfile64 splice stat stat64 statfs statfs64 statmount statx symlink \
     symlinkat sync sync_file_range syncfs tee truncate truncate64 unlink unlinkat utime utimensat \
     utimensat_time64 utimes vmsplice write writev",
];

/// Calls that need a capability (its name comes first), whatever their arguments.
pub(super) const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    // Without fanotify_init, unlike moby's: a listener gets descriptors of whatever anybody on the host opens on a file
    // system that the container can mount as well, such as that of the cgroups, and they lead to the host's root.
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Calls that exist, or matter, only on some native architectures (these come first, with moby's names).
pub(super) const BY_ARCHITECTURE: &[(&[&str], &str)] = &[
    (
        &["arm", "arm64"],
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    ),
    (&["amd64", "x32"], "arch_prctl"),
    (&["amd64", "x32", "x86"], "modify_ldt"),
];

/// Calls that access other processes. From Linux 4.8 on, ptrace can no longer bypass a filter, so they are safe there.
pub(super) const FROM_KERNEL_4_8: &str = "process_vm_readv process_vm_writev ptrace";

/// The flags of clone that create a namespace: mount, cgroup, uts, ipc, user, pid and net.
pub(super) const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// The families below this one are all allowed for `socket`.
pub(super) const AF_ALG: u64 = 38;

/// The one allowed family between the two denied ones.
pub(super) const AF_NFC: u64 = 39;

/// AF_VSOCK (40) reaches the virtual machines of the host, or the host from within one, past every network namespace.
/// After it, all families are allowed again: 41 to 63, of which Linux has those below 46. These are masks and values,
/// because the runtime spec cannot express both a lower and an upper bound of one argument.
pub(super) const AFTER_AF_VSOCK: [(u64, u64); 4] = [(!0, 41), (!1, 42), (!3, 44), (!15, 48)];

/// The allowed values for `personality`: Linux and 32-bit Linux, each also with UNAME26, and the query.
pub(super) const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
