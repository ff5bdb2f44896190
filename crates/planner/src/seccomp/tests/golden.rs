//! Facts about the runtime's own profile, written by hand.

use super::{Call, machine, target};
use crate::capabilities;
use crate::seccomp::syscalls::Abi;
use crate::seccomp::{Action, Arch, Instruction, Profile, Target, compile, default_profile};

const ALLOW: Action = Action::Allow;
const EPERM: Action = Action::Errno(1);
const ENOSYS: Action = Action::Errno(38);

/// The bounding set of a container without special requests.
const USUAL: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

fn default_for(target: &Target) -> Vec<Instruction> {
    let program = compile(&Profile::runtime_default(), target).unwrap().instructions;
    machine::verify(&program);
    program
}

fn check(capabilities: &[&str], facts: &[(Abi, &str, &[u64], Action)]) {
    let program = default_for(&target(capabilities));
    for (abi, name, arguments, expected) in facts {
        let run = machine::run(&program, &Call::named(*abi, name, arguments));
        assert_eq!(run.value, expected.code(), "{abi:?} {name} {arguments:x?} with {capabilities:?}");
    }
}

#[test]
fn an_ordinary_container() {
    use Abi::{X32, X86, X86_64};
    check(
        &USUAL,
        &[
            (X86_64, "read", &[], ALLOW),
            (X86_64, "execve", &[], ALLOW),
            (X86_64, "chmod", &[], ALLOW),
            (X86_64, "openat2", &[], ALLOW),
            (X86_64, "mknod", &[], ALLOW),
            (X86_64, "chroot", &[], ALLOW),
            (X86_64, "ptrace", &[], ALLOW),
            (X86_64, "process_vm_readv", &[], ALLOW),
            (X86_64, "arch_prctl", &[], ALLOW),
            (X86_64, "modify_ldt", &[], ALLOW),
            (X86_64, "seccomp", &[], ALLOW),
            (X86_64, "landlock_create_ruleset", &[], ALLOW),
            (X86_64, "mseal", &[], ALLOW),
            (X86_64, "getxattrat", &[], ALLOW),
            (X86_64, "uretprobe", &[], ALLOW),
            (X86_64, "mount", &[], EPERM),
            (X86_64, "umount2", &[], EPERM),
            (X86_64, "move_mount", &[], EPERM),
            (X86_64, "open_tree", &[], EPERM),
            (X86_64, "open_tree_attr", &[], ENOSYS),
            (X86_64, "file_getattr", &[], ENOSYS),
            (X86, "file_setattr", &[], ENOSYS),
            (X32, "file_setattr", &[], ENOSYS),
            (X86_64, "unshare", &[], EPERM),
            (X86_64, "setns", &[], EPERM),
            (X86_64, "pivot_root", &[], EPERM),
            (X86_64, "keyctl", &[], EPERM),
            (X86_64, "add_key", &[], EPERM),
            (X86_64, "request_key", &[], EPERM),
            (X86_64, "bpf", &[], EPERM),
            (X86_64, "perf_event_open", &[], EPERM),
            (X86_64, "userfaultfd", &[], EPERM),
            (X86_64, "io_uring_setup", &[], EPERM),
            (X86_64, "kexec_load", &[], EPERM),
            (X86_64, "init_module", &[], EPERM),
            (X86_64, "open_by_handle_at", &[], EPERM),
            (X86_64, "settimeofday", &[], EPERM),
            (X86_64, "swapon", &[], EPERM),
            (X86_64, "syslog", &[], EPERM),
            (X86_64, "iopl", &[], EPERM),
            (X86_64, "reboot", &[], EPERM),
            (X86_64, "mbind", &[], EPERM),
            (X86_64, "vhangup", &[], EPERM),
            (X86_64, "acct", &[], EPERM),
            (X86_64, "pidfd_getfd", &[], EPERM),
            (X86_64, "clone3", &[], ENOSYS),
            (X86, "clone3", &[], ENOSYS),
            (X86, "read", &[], ALLOW),
            (X86, "mmap2", &[], ALLOW),
            (X86, "socketcall", &[], ALLOW),
            (X86, "umount", &[], EPERM),
            (X86, "stime", &[], EPERM),
            (X86, "vm86", &[], EPERM),
            (X32, "read", &[], ALLOW),
            (X32, "execve", &[], ALLOW),
            (X32, "mount", &[], EPERM),
        ],
    );
}

#[test]
fn arguments_of_an_ordinary_container() {
    use Abi::{X86, X86_64};
    check(
        &USUAL,
        &[
            (X86_64, "socket", &[2], ALLOW),
            (X86_64, "socket", &[16], ALLOW),
            (X86_64, "socket", &[37], ALLOW),
            (X86_64, "socket", &[38], EPERM),
            (X86_64, "socket", &[39], ALLOW),
            (X86_64, "socket", &[40], EPERM),
            (X86_64, "socket", &[41], ALLOW),
            (X86_64, "socket", &[0x1_0000_0026], EPERM),
            (X86_64, "socket", &[0x1_0000_0028], EPERM),
            (X86, "socket", &[38], EPERM),
            (X86, "socket", &[1], ALLOW),
            (X86_64, "personality", &[0], ALLOW),
            (X86_64, "personality", &[8], ALLOW),
            (X86_64, "personality", &[0x2_0000], ALLOW),
            (X86_64, "personality", &[0x2_0008], ALLOW),
            (X86_64, "personality", &[0xffff_ffff], ALLOW),
            (X86_64, "personality", &[0x4_0000], EPERM),
            (X86_64, "clone", &[0x0120_0011], ALLOW),
            (X86_64, "clone", &[0x003d_0f00], ALLOW),
            (X86_64, "clone", &[0x1000_0011], EPERM),
            (X86_64, "clone", &[0x0002_0011], EPERM),
            (X86, "clone", &[0x4000_0011], EPERM),
        ],
    );
}

#[test]
fn capabilities_open_their_calls() {
    use Abi::{X86, X86_64};
    check(
        &["CAP_SYS_ADMIN"],
        &[
            (X86_64, "mount", &[], ALLOW),
            (X86_64, "unshare", &[], ALLOW),
            (X86_64, "clone3", &[], ALLOW),
            (X86_64, "clone", &[0x1000_0011], ALLOW),
            (X86_64, "bpf", &[], ALLOW),
            (X86_64, "syslog", &[], ALLOW),
            (X86, "umount", &[], ALLOW),
            (X86_64, "socket", &[40], EPERM),
            (X86_64, "chroot", &[], EPERM),
            (X86_64, "keyctl", &[], EPERM),
            (X86_64, "fanotify_init", &[], EPERM),
            (X86_64, "reboot", &[], EPERM),
            (X86_64, "init_module", &[], EPERM),
        ],
    );
    for (capability, name) in [
        ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
        ("CAP_SYS_BOOT", "reboot"),
        ("CAP_SYS_CHROOT", "chroot"),
        ("CAP_SYS_MODULE", "finit_module"),
        ("CAP_SYS_PACCT", "acct"),
        ("CAP_SYS_PTRACE", "kcmp"),
        ("CAP_SYS_RAWIO", "ioperm"),
        ("CAP_SYS_TIME", "clock_settime"),
        ("CAP_SYS_TTY_CONFIG", "vhangup"),
        ("CAP_SYS_NICE", "set_mempolicy"),
        ("CAP_SYSLOG", "syslog"),
        ("CAP_BPF", "bpf"),
        ("CAP_PERFMON", "perf_event_open"),
    ] {
        check(&[], &[(X86_64, name, &[], EPERM)]);
        check(&[capability], &[(X86_64, name, &[], ALLOW), (X86_64, "mount", &[], EPERM)]);
    }
}

#[test]
fn numbers_without_a_name() {
    let program = default_for(&target(&USUAL));
    for (audit, number, expected) in [
        (Abi::X86_64.audit(), 9999, ENOSYS),
        (Abi::X86_64.audit(), 400, ENOSYS),
        (Abi::X86_64.audit(), 470, ENOSYS),
        // x32 calls without its bit: older kernels would run them.
        (Abi::X86_64.audit(), 520, ENOSYS),
        (Abi::X86_64.audit(), 0x4000_0000 | 59, ENOSYS),
        (Abi::X86_64.audit(), u32::MAX, ENOSYS),
        (Abi::X86.audit(), 9999, ENOSYS),
        (Abi::Aarch64.audit(), 63, Action::KillProcess),
        (0, 0, Action::KillProcess),
    ] {
        let call = Call { audit, number, arguments: [0; 6] };
        assert_eq!(machine::run(&program, &call).value, expected.code(), "{call:x?}");
    }
}

#[test]
fn another_machine_and_an_old_kernel() {
    let arm = default_for(&Target { arch: Arch::Aarch64, ..target(&USUAL) });
    for (abi, name, expected) in [
        (Abi::Aarch64, "openat", ALLOW),
        (Abi::Aarch64, "mount", EPERM),
        (Abi::Aarch64, "clone3", ENOSYS),
        (Abi::Arm, "set_tls", ALLOW),
        (Abi::Arm, "arm_sync_file_range", ALLOW),
        (Abi::X86_64, "read", Action::KillProcess),
    ] {
        assert_eq!(machine::run(&arm, &Call::named(abi, name, &[])).value, expected.code(), "{abi:?} {name}");
    }
    let old = compile(&Profile::runtime_default(), &Target { kernel: (4, 7), ..target(&USUAL) }).unwrap();
    let ptrace = Call::named(Abi::X86_64, "ptrace", &[]);
    assert_eq!((machine::run(&old.instructions, &ptrace).value, old.flags), (EPERM.code(), 0));
}

#[test]
fn the_filter_is_short_and_shallow() {
    let program = compile(&Profile::runtime_default(), &target(&USUAL)).unwrap();
    let instructions = &program.instructions;
    assert!(instructions.len() < 700, "{} instructions", instructions.len());
    assert_eq!(program.to_bytes().len(), instructions.len() * 8);
    assert_eq!(&program.to_bytes()[..8], &[0x20, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(program.flags, 4);
    for (name, number) in Abi::X86_64.table().entries() {
        let run = machine::run(instructions, &Call::named(Abi::X86_64, name, &[]));
        let by_argument = ["socket", "personality", "clone"].contains(&name);
        assert!(by_argument || run.steps <= 16, "{name} ({number}) takes {} steps", run.steps);
        assert_eq!(run.looked_at_arguments, by_argument, "{name}");
    }
}

#[test]
fn the_tables_have_no_misspellings() {
    let abis = [Abi::X86_64, Abi::X86, Abi::X32, Abi::Aarch64, Abi::Arm];
    let groups =
        default_profile::BY_CAPABILITY.iter().chain([&("CAP_KILL", default_profile::FROM_KERNEL_4_8)]);
    let mut names: Vec<&str> =
        default_profile::ALWAYS.iter().flat_map(|group| group.split_whitespace()).collect();
    assert_eq!(names.len(), 360);
    for (capability, group) in groups {
        // A rule whose capability has no mask would apply to everyone.
        assert!(capabilities::mask(capability).is_some(), "{capability}");
        names.extend(group.split_whitespace());
    }
    for name in names {
        assert!(abis.iter().any(|abi| abi.table().number(name).is_some()), "{name}");
    }
    for (abi, name, number) in [
        (Abi::X86_64, "file_setattr", 469),
        (Abi::X86, "file_setattr", 469),
        (Abi::X32, "pwritev2", 0x4000_0223),
        (Abi::Aarch64, "file_setattr", 469),
        (Abi::Arm, "get_tls", 0xf_0006),
        (Abi::X86, "rseq", 386),
        (Abi::Aarch64, "kexec_file_load", 294),
    ] {
        assert_eq!(abi.table().number(name), Some(number), "{abi:?} {name}");
    }
    assert_eq!(abis.map(|abi| abi.table().known().len()), [383, 459, 372, 325, 428]);
}
