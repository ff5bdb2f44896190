//! Why the kernel will not execute a file, as far as the file itself shows it. The kernel gives a number that may mean
//! the file or its interpreter, and the process that gets it can look at nothing any more. So this looks before, and
//! decides nothing: what it finds is told if the exec fails.
//!
//! What is told is read outside the container. So the process looks when it has become the program's user, and nothing
//! is said of what that user may not read.

use std::ffi::CString;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::resource::Resource;
use nix::sys::stat::{SFlag, stat};
use wharf_types::program::{FOREIGN, INTERPRETER};

use crate::confine::Shed;
use crate::program::{Part, Runner};

/// How much of a file is looked at. The kernel looks at 256 bytes, and then for the interpreter of a binary.
const HEAD_BYTES: usize = 4096;
/// How many interpreters the kernel follows.
const INTERPRETERS_LIMIT: usize = 5;
/// The architectures, by their numbers in ELF, with the names that images have for them.
const MACHINES: [(u16, &str); 9] = [
    (3, "386"),
    (8, "mips"),
    (21, "ppc64le"),
    (22, "s390x"),
    (40, "arm"),
    (62, "amd64"),
    (183, "arm64"),
    (243, "riscv64"),
    (258, "loong64"),
];
/// This machine's, and the one of which it may execute programs as well.
const OWN: (u16, u16) = if cfg!(target_arch = "aarch64") { (183, 40) } else { (62, 3) };

/// What the kernel takes a file for.
#[derive(Debug, PartialEq, Eq)]
enum Format<'a> {
    Binary { machine: u16, interpreter: Option<&'a [u8]> },
    Script { interpreter: &'a [u8] },
    Other,
}

impl<'a> Format<'a> {
    /// By the beginning of the file.
    fn of(head: &'a [u8]) -> Self {
        if let Some(line) = head.strip_prefix(b"#!") {
            let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii_start();
            let interpreter = line.split(|byte| b" \t\0".contains(byte)).next().unwrap_or_default();
            return Self::Script { interpreter };
        }
        match (head.starts_with(b"\x7fELF"), number::<2>(head, 18)) {
            (true, Some(machine)) => {
                let machine = u16::try_from(machine).unwrap_or_default();
                let is_big_endian = head.get(5) == Some(&2);
                let machine = if is_big_endian { machine.swap_bytes() } else { machine };
                Self::Binary { machine, interpreter: interpreter_of_binary(head) }
            }
            _ => Self::Other,
        }
    }
}

/// The interpreter of a little-endian ELF file: the segment of type 3, `PT_INTERP`.
fn interpreter_of_binary(head: &[u8]) -> Option<&[u8]> {
    const PT_INTERP: usize = 3;
    let is_64 = head.get(4) == Some(&2);
    let (table, entry, count) = if is_64 {
        (number::<8>(head, 32)?, number::<2>(head, 54)?, number::<2>(head, 56)?)
    } else {
        (number::<4>(head, 28)?, number::<2>(head, 42)?, number::<2>(head, 44)?)
    };
    let starts = (0..count).map_while(|index| table.checked_add(index * entry));
    let start = starts
        .take_while(|&start| start < head.len())
        .find(|&start| number::<4>(head, start) == Some(PT_INTERP))?;
    let (from, length) = match is_64 {
        true => (number::<8>(head, start + 8)?, number::<8>(head, start + 32)?),
        false => (number::<4>(head, start + 4)?, number::<4>(head, start + 16)?),
    };
    head.get(from..from.checked_add(length)?)?.split(|&byte| byte == 0).next()
}

fn number<const BYTES: usize>(head: &[u8], at: usize) -> Option<usize> {
    let bytes = head.get(at..at.checked_add(BYTES)?)?;
    bytes.iter().rev().try_fold(0_usize, |number, &byte| Some(number.checked_mul(256)? + usize::from(byte)))
}

/// Reads the beginning of a file.
type Read<'a> = &'a dyn Fn(&[u8]) -> nix::Result<Vec<u8>>;

/// Why the first of these paths that there is cannot be executed, if the file or its interpreter shows it.
pub(crate) fn obstacle(
    _shed: &Shed<'_>,
    Runner { process, part, .. }: Runner<'_>,
    candidates: &[CString],
) -> Option<String> {
    const MEMORY: [u32; 3] =
        [Resource::RLIMIT_AS as u32, Resource::RLIMIT_DATA as u32, Resource::RLIMIT_STACK as u32];
    // Commands are many, and each call that one takes is noticed. A limit on memory, which is the program's, may leave
    // this process none.
    if part == Part::Command || process.limits.iter().any(|limit| MEMORY.contains(&limit.resource)) {
        return None;
    }
    of_first(&head, candidates)
}

/// From root and working directory, as for the exec, but through no link of procfs, which leads to what is open here.
fn head(path: &[u8]) -> nix::Result<Vec<u8>> {
    // Before it is opened: that may be an order to a device, and whoever waits at a FIFO would go on. What takes its
    // place meanwhile is opened with no more rights than the program has.
    let mode = stat(path)?.st_mode;
    // The kernel executes nothing else, and no file that nobody may execute.
    if mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() || mode & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    // Not EACCES: the kernel may execute a file that cannot be read.
    let file = openat2(AT_FDCWD, path, how).map_err(|_errno| Errno::EPERM)?;
    let mut head = vec![0; HEAD_BYTES];
    let length = nix::unistd::read(&file, &mut head)?;
    head.truncate(length);
    Ok(head)
}

fn of_first(read: Read<'_>, candidates: &[CString]) -> Option<String> {
    // As the kernel is asked for one after the other.
    let passed_over = |errno| matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES);
    let mut heads = candidates.iter().map(|path| read(path.to_bytes()));
    let head = heads.find(|head| !head.as_ref().is_err_and(|&errno| passed_over(errno)))?;
    of_file(read, &head.ok()?, INTERPRETERS_LIMIT)
}

fn of_file(read: Read<'_>, head: &[u8], interpreters_limit: usize) -> Option<String> {
    let interpreter = match Format::of(head) {
        Format::Other => return Some("it is neither a binary nor a script that begins with #!".to_owned()),
        Format::Binary { machine, .. } if machine != OWN.0 && machine != OWN.1 => {
            return Some(of_other(machine));
        }
        Format::Binary { machine, interpreter: None } => {
            return (machine != OWN.0).then(|| of_other(machine));
        }
        Format::Script { interpreter } | Format::Binary { interpreter: Some(interpreter), .. } => interpreter,
    };
    let name = String::from_utf8_lossy(interpreter);
    match read(interpreter) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => {
            Some(format!("{INTERPRETER}, {name:?}, is not in the container"))
        }
        Ok(head) if interpreters_limit > 0 => {
            let why = of_file(read, &head, interpreters_limit - 1)?;
            Some(format!("{INTERPRETER}, {name:?}, cannot be executed: {why}"))
        }
        _ => None,
    }
}

fn of_other(machine: u16) -> String {
    format!("{FOREIGN} {}, and this machine is {}", name_of(machine), name_of(OWN.0))
}

fn name_of(machine: u16) -> String {
    let name = MACHINES.iter().find(|(number, _)| *number == machine).map(|(_, name)| (*name).to_owned());
    name.unwrap_or_else(|| format!("machine {machine} of ELF"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    /// A 64-bit ELF file for a machine, with an interpreter unless that is empty.
    fn binary(machine: u16, interpreter: &str) -> Vec<u8> {
        const HEADER_BYTES: u8 = 64;
        const ENTRY_BYTES: u8 = 56;
        let mut file = [b"\x7fELF\x02\x01".as_slice(), &[0; 4000]].concat();
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        (file[32], file[54], file[56]) = (HEADER_BYTES, ENTRY_BYTES, 2);
        let (second, path) = (usize::from(HEADER_BYTES + ENTRY_BYTES), 200);
        file[usize::from(HEADER_BYTES)] = 1;
        file[second] = if interpreter.is_empty() { 4 } else { 3 };
        let length = u8::try_from(interpreter.len()).unwrap() + 1;
        (file[second + 8], file[second + 32]) = (200, length);
        file[path..path + interpreter.len()].copy_from_slice(interpreter.as_bytes());
        file
    }

    /// What is told of `/x` beside these files.
    fn told(content: &[u8], others: &[(&str, &[u8])]) -> Option<String> {
        let files = || others.iter().copied().chain([("/x", content)]);
        let read = |path: &[u8]| {
            let found = files().find(|(name, _)| name.as_bytes() == path);
            found.map(|(_, content)| content.to_vec()).ok_or(Errno::ENOENT)
        };
        of_first(&read, &[c"/bin/x".to_owned(), c"/x".to_owned()])
    }

    #[test]
    fn what_keeps_a_file_from_being_executed_is_told() {
        let own = name_of(OWN.0);
        let (native, foreign) = (binary(OWN.0, ""), binary(22, ""));
        let mut big_endian = binary(22_u16.swap_bytes(), "");
        big_endian[5] = 2;
        let dynamic = binary(OWN.0, "/lib/ld.so");
        let of_other = Some(format!("it is a program for s390x, and this machine is {own}"));
        let missing = |name: &str| Some(format!("{INTERPRETER}, {name:?}, is not in the container"));
        let not_one = Some("it is neither a binary nor a script that begins with #!".to_owned());
        for (content, others, expected) in [
            (native.as_slice(), &[] as &[(&str, &[u8])], None),
            (&foreign, &[], of_other.clone()),
            (&big_endian, &[], of_other.clone()),
            (&dynamic, &[], missing("/lib/ld.so")),
            (&dynamic, &[("/lib/ld.so", &native)], None),
            (b"#!/bin/sh -e\nx", &[], missing("/bin/sh")),
            (b"#! /bin/sh\r\n", &[("/bin/sh", &native)], missing("/bin/sh\r")),
            (b"#!/bin/sh", &[("/bin/sh", &native)], None),
            (
                b"#!/bin/sh",
                &[("/bin/sh", &foreign)],
                of_other.map(|why| format!("{INTERPRETER}, \"/bin/sh\", cannot be executed: {why}")),
            ),
            (b"#!/x", &[], None),
            (b"echo hello\n", &[], not_one.clone()),
            (b"", &[], not_one),
        ] {
            let shown = String::from_utf8_lossy(&content[..content.len().min(20)]);
            assert_eq!(told(content, others), expected, "{shown:?}");
        }
        assert_eq!(of_first(&|_| Err(Errno::ENOENT), &[c"/x".to_owned()]), None, "it is not there at all");
        let first_is = |errno| {
            let read = |path: &[u8]| if path == b"/bin/x" { Err(errno) } else { Ok(b"text".to_vec()) };
            of_first(&read, &[c"/bin/x".to_owned(), c"/x".to_owned()])
        };
        assert!(first_is(Errno::EACCES).is_some(), "the next one is tried");
        assert_eq!(first_is(Errno::EPERM), None, "the next one is not what is executed");
    }

    /// Somebody waits until the FIFO is opened for reading, and goes on as soon as it is.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the directory is the test's own")]
    fn only_a_regular_file_is_opened_and_through_no_link_of_procfs() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("program");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let path = fifo.clone();
        let writer = std::thread::spawn(move || std::fs::OpenOptions::new().write(true).open(path).map(drop));
        let mut tries = 0..1000;
        while tries.next().is_some() && !writer.is_finished() {
            assert_eq!(head(fifo.as_os_str().as_bytes()), Err(Errno::EACCES));
            std::thread::yield_now();
        }
        assert!(!writer.is_finished(), "the FIFO was opened");
        drop(std::fs::File::open(&fifo).unwrap());
        writer.join().unwrap().unwrap();
        let own = std::env::current_exe().unwrap();
        assert!(head(own.as_os_str().as_bytes()).unwrap().starts_with(b"\x7fELF"));
        assert_eq!(head(b"/proc/self/exe"), Err(Errno::EPERM));
    }

    #[test]
    fn a_head_that_is_cut_or_lies_is_read_no_further() {
        let whole = binary(OWN.0, "/lib/ld.so");
        for length in 0..whole.len() {
            let interpreter = interpreter_of_binary(&whole[..length]);
            assert_eq!(interpreter.is_some(), length > 200 + "/lib/ld.so".len(), "{length}");
        }
        for at in 0..200 {
            let mut changed = whole.clone();
            changed[at..at + 8].fill(0xff);
            let _any = Format::of(&changed);
        }
    }
}
