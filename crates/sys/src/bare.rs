//! Processes without the memory of their parent.
//!
//! A child is a copy, and a child of the supervisor has in its memory what the supervisor knows about every container
//! of its pod: environments, arguments, output. Where others see the child, a process with `CAP_SYS_PTRACE` can stop it
//! and read all that, until it executes its program. So a child that is created among others gets a memory of its own:
//! the code of this program, and one mapping with a [`Script`] and a stack. The heap, data and stack of its parent are
//! never copied for it, and neither is what a C library needs: it can do nothing but follow the script.

use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::clone::Child;
use crate::error::{Error, Result};
use crate::mapping::Mapping;
use crate::raw::{self, Start};
use crate::script::{Argument, Script, word};

/// Room for the frames of one function, and for what the kernel puts there.
const STACK_BYTES: usize = 16 << 10;
const PAGE_BYTES: usize = 4096;
/// The exit code of a process whose script failed.
const FAILED: usize = 128;

/// A call that is ready to be made.
#[repr(C)]
struct Call {
    number: libc::c_long,
    arguments: [usize; 6],
    words: *mut u8,
    words_bytes: usize,
    is_candidate: usize,
}

/// The head of a script that is ready to be followed; the calls come after it.
#[repr(C)]
struct Head {
    line: usize,
    count: usize,
}

/// A script in its own memory, with a stack for a process that has nothing else.
#[derive(Debug)]
pub struct Prepared(Mapping);

impl Script {
    /// Lays the script out in its own mapping, where all its addresses are known.
    ///
    /// # Errors
    /// ENOMEM, which may be due to the process's own limit on memory.
    pub fn prepare(&self) -> Result<Prepared> {
        let calls = STACK_BYTES + size_of::<Head>();
        let data = calls + self.calls.len() * size_of::<Call>();
        let prepared = Prepared(Mapping::new((data + self.data.len()).next_multiple_of(PAGE_BYTES))?);
        let address = |offset: usize| prepared.0.base().wrapping_add(data + offset).expose_provenance();
        let number = |number: i64| usize::try_from(number).unwrap_or(usize::MAX);
        let mut words = vec![number(self.line.into()), self.calls.len()];
        for draft in &self.calls {
            words.push(number(draft.call.number()));
            words.extend(draft.arguments.map(|argument| match argument {
                Argument::Number(number) => number,
                Argument::Data(place) => address(place.0),
            }));
            words.extend([address(draft.words.0), draft.words_bytes, usize::from(draft.is_candidate)]);
        }
        let mut content: Vec<u8> = words.into_iter().flat_map(usize::to_ne_bytes).collect();
        let head_bytes = content.len();
        content.extend_from_slice(&self.data);
        for (at, of) in &self.addresses {
            let at = head_bytes + at.0;
            content[at..at + 8].copy_from_slice(&address(of.0).to_ne_bytes());
        }
        // SAFETY: the mapping is as long as the stack and the content together, and nobody else knows of it yet.
        unsafe { prepared.head().cast::<u8>().copy_from_nonoverlapping(content.as_ptr(), content.len()) };
        Ok(prepared)
    }
}

impl Prepared {
    /// After the stack, which grows downwards.
    fn head(&self) -> *mut Head {
        self.0.base().wrapping_add(STACK_BYTES).cast()
    }

    /// Follows the script in this process, which ends with it.
    pub fn follow(self, _child: &Child) -> ! {
        // SAFETY: the head and all that it leads to were laid out for this, and live as long as the process.
        unsafe { follow(self.head()) }
    }

    /// Withholds all memory except the script and the program's code from the children that this process makes from
    /// here on. It makes none by other means: they could not run. Allocates nothing.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn keep_memory(self, _child: &Child) -> Result<Bare> {
        let entry = (follow as unsafe extern "C" fn(*mut Head) -> !) as usize;
        if !code().any(|range| range.contains(&entry)) {
            return Err(Error::new(
                "madvise",
                "the address of the program's code is not known",
                Errno::ENOEXEC,
            ));
        }
        forget_rseq();
        advise(0..END, libc::MADV_DONTFORK)?;
        code().chain([self.0.range()]).try_for_each(|range| advise(range, libc::MADV_DOFORK))?;
        Ok(Bare(self))
    }
}

/// The first address after everything that can be mapped.
const END: usize = isize::MAX.cast_unsigned() & !(PAGE_BYTES - 1);

/// The read-only mappings of this program's file, which are therefore as in the file.
fn code() -> impl Iterator<Item = Range<usize>> {
    // SAFETY: a number that the kernel gives every process, and so is the next.
    let headers = unsafe { libc::getauxval(libc::AT_PHDR) };
    // SAFETY: as above.
    let count = unsafe { libc::getauxval(libc::AT_PHNUM) };
    let first = std::ptr::with_exposed_provenance::<libc::Elf64_Phdr>(usize::try_from(headers).unwrap_or(0));
    // SAFETY: that is where the program's headers are mapped, and how many there are.
    let headers = unsafe { std::slice::from_raw_parts(first, usize::try_from(count).unwrap_or(0)) };
    let number = |value: u64| usize::try_from(value).unwrap_or(0);
    // The headers follow the head of the file, with which its first mapping begins.
    let begin = first.addr().wrapping_sub(size_of::<libc::Elf64_Ehdr>());
    let is_first = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_offset == 0;
    let first = headers.iter().find(is_first);
    let moved = begin.wrapping_sub(first.map_or(0, |first| number(first.p_vaddr)));
    let is_code =
        |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    let pages = move |header: &libc::Elf64_Phdr| {
        let start = moved.wrapping_add(number(header.p_vaddr));
        let end = start + number(header.p_memsz);
        start & !(PAGE_BYTES - 1)..end.next_multiple_of(PAGE_BYTES)
    };
    headers.iter().filter(is_code).map(pages)
}

/// Sets whether children get a copy of this memory.
fn advise(range: Range<usize>, advice: libc::c_int) -> Result<()> {
    let start = std::ptr::without_provenance_mut(range.start);
    // SAFETY: the memory stays this process's. A child without it runs nothing that needs it.
    let result = unsafe { libc::madvise(start, range.end - range.start, advice) };
    match Errno::result(result) {
        // Not all of it is mapped; the advice has been applied to what is.
        Ok(_) | Err(Errno::ENOMEM) => Ok(()),
        Err(errno) => Err(Error::new("madvise", format!("{advice}, {range:x?}"), errno)),
    }
}

/// Unregisters rseq(2): glibc has the kernel write into the thread's memory whenever the thread is scheduled, and a
/// child inherits that. A child without that memory would be killed.
#[cfg(target_env = "gnu")]
fn forget_rseq() {
    const UNREGISTER: usize = 1;
    const SIGNATURE: usize = if cfg!(target_arch = "x86_64") { 0x5305_3053 } else { 0xd428_bc00 };
    const BYTES: usize = 32;
    unsafe extern "C" {
        static __rseq_offset: isize;
    }
    let thread: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the thread's control block begins with its own address.
    unsafe {
        std::arch::asm!("mov {}, fs:0", out(reg) thread, options(nostack, readonly));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the register holds the address of the thread's control block.
    unsafe {
        std::arch::asm!("mrs {}, tpidr_el0", out(reg) thread, options(nostack, nomem));
    }
    // SAFETY: glibc writes it once, before the program begins.
    let area = thread.wrapping_add_signed(unsafe { __rseq_offset });
    // SAFETY: the kernel stops writing there. It fails where it never did.
    unsafe { raw::call(libc::SYS_rseq, &[area, BYTES, UNREGISTER, SIGNATURE, 0, 0]) };
}

/// Other C libraries do not register rseq.
#[cfg(not(target_env = "gnu"))]
fn forget_rseq() {}

/// A process that passes none of its memory to its children.
#[derive(Debug)]
pub struct Bare(Prepared);

/// The flags of [`Bare::clone_sibling`].
pub const SIBLING: u32 = (libc::CLONE_PARENT | libc::CLONE_PIDFD).cast_unsigned();
const CHILD: u32 = (libc::SIGCHLD | libc::CLONE_PIDFD).cast_unsigned();

impl Bare {
    /// Clones a process that follows the script, into the PID namespace for this one's children, as a child of this
    /// one's own parent. It uses the old clone(2), because a filter can read its flags: most filters allow it and not
    /// clone3.
    ///
    /// # Errors
    /// The kernel's error; ENOMEM if the namespace's first process is gone.
    pub fn clone_sibling(&self) -> Result<Sibling> {
        let (number, pidfd) = self.clone(SIBLING)?;
        Ok(Sibling { number, pidfd })
    }

    /// Like [`Self::clone_sibling`], but as a child of this process.
    ///
    /// # Errors
    /// The kernel's error; ENOMEM if the namespace's first process is gone.
    pub fn clone_child(&self) -> Result<OwnedFd> {
        self.clone(CHILD).map(|(_number, pidfd)| pidfd)
    }

    fn clone(&self, flags: u32) -> Result<(i32, OwnedFd)> {
        let mut pidfd = -1;
        let script = self.0.head();
        let start = Start { stack: script.cast(), run: follow, argument: script };
        // SAFETY: no memory is shared. The child has the mapping with the stack, which ends at the head and is aligned
        // as a mapping is, and the code of `follow`.
        let result = unsafe { raw::clone(word(flags), &mut pidfd, start) };
        if result < 0 {
            let errno = Errno::from_raw(i32::try_from(-result).unwrap_or(libc::EIO));
            return Err(Error::new("clone", format!("flags {flags:#x}"), errno));
        }
        // SAFETY: the kernel stored a new descriptor there, which nobody else knows.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok((i32::try_from(result).unwrap_or_default(), pidfd))
    }
}

/// A process that has the same parent as the one that cloned it.
#[derive(Debug)]
pub struct Sibling {
    /// Its number in the PID namespace of both of these: nobody else has it until the parent has reaped it.
    pub number: i32,
    /// For the one that cloned it.
    pub pidfd: OwnedFd,
}

/// Makes the calls of a script, and ends the process. It has no memory but the script, the stack and the code: it may
/// touch no variable of the program and call nothing of a library.
///
/// # Safety
/// The head is one that [`Script::prepare`] laid out.
unsafe extern "C" fn follow(head: *mut Head) -> ! {
    // SAFETY: laid out by `prepare`.
    let &Head { line, count } = unsafe { &*head };
    let calls: *const Call = head.wrapping_add(1).cast();
    let mut refused = 0;
    let mut index = 0;
    while index < count {
        // SAFETY: as many calls lie there.
        let call = unsafe { &*calls.wrapping_add(index) };
        // SAFETY: what the arguments point to lies in the same mapping, and a call that fails changes nothing.
        let result = unsafe { raw::call(call.number, &call.arguments) };
        index = index.wrapping_add(1);
        if result >= 0 {
            continue;
        }
        refused = match -result {
            errno if call.is_candidate == 0 => fail(line, call, errno),
            ACCESS_DENIED => ACCESS_DENIED,
            NO_ENTRY | NO_DIRECTORY if refused == 0 => NO_ENTRY,
            NO_ENTRY | NO_DIRECTORY => refused,
            errno => fail(line, call, errno),
        };
    }
    if refused == 0 {
        end(0)
    }
    // SAFETY: there was a candidate, so there is a last call.
    fail(line, unsafe { &*calls.wrapping_add(count.wrapping_sub(1)) }, refused)
}

const NO_ENTRY: isize = libc::ENOENT as isize;
const NO_DIRECTORY: isize = libc::ENOTDIR as isize;
const ACCESS_DENIED: isize = libc::EACCES as isize;

/// Writes the message for a failed call, and ends the process.
fn fail(line: usize, &Call { words, words_bytes, .. }: &Call, errno: isize) -> ! {
    // SAFETY: behind the words there is room for the number, which is aligned there.
    unsafe { *words.wrapping_add(words_bytes).cast::<isize>() = errno };
    let message = [line, words.addr(), words_bytes.wrapping_add(size_of::<isize>()), 0, 0, 0];
    // SAFETY: the message lies there. Nobody can be told if it fails.
    unsafe { raw::call(libc::SYS_write, &message) };
    end(FAILED)
}

/// Ends the process, whatever a filter does.
fn end(code: usize) -> ! {
    let arguments = [code, 0, 0, 0, 0, 0];
    // SAFETY: it takes a number, and does not return unless a filter refuses it; and so does the next.
    unsafe { raw::call(libc::SYS_exit_group, &arguments) };
    // SAFETY: as above.
    unsafe { raw::call(libc::SYS_exit, &arguments) };
    raw::trap()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::clone::{Clone, clone3};
    use crate::process::{Ended, Reap, await_end, exit_now, wait};
    use crate::script::Program;

    fn texts(texts: &[&str]) -> Vec<std::ffi::CString> {
        texts.iter().map(|text| std::ffi::CString::new(*text).unwrap()).collect()
    }

    fn program(candidates: &[&str], arguments: &[&str]) -> Program {
        let (candidates, arguments) = (texts(candidates), texts(arguments));
        Program { candidates, arguments, environment: texts(&["KEY=value"]) }
    }

    fn end(process: &OwnedFd) -> Option<Ended> {
        await_end(process.as_fd()).unwrap();
        wait(process.as_fd(), Reap::Remove).unwrap()
    }

    /// Follows a script in a bare process, and returns how it ended and what it wrote to the line.
    fn followed(write: impl FnOnce(&mut Script, &OwnedFd)) -> (Ended, Vec<u8>) {
        let (read, line) = nix::unistd::pipe().unwrap();
        let mut script = Script::new(line.as_fd());
        script.on_failure(b"words");
        write(&mut script, &line);
        let prepared = script.prepare().unwrap();
        let ended = match clone3(0, None).unwrap() {
            Clone::Child(child) => {
                let ended =
                    prepared.keep_memory(&child).and_then(|bare| bare.clone_child()).and_then(|process| {
                        await_end(process.as_fd())?;
                        wait(process.as_fd(), Reap::Remove)
                    });
                exit_now(match ended {
                    Ok(Some(Ended::Code(code))) => code.into(),
                    Ok(Some(Ended::Signal(number))) => 200 + i32::from(number),
                    _ => 199,
                })
            }
            Clone::Parent { pidfd, .. } => end(&pidfd).unwrap(),
        };
        drop(line);
        let mut written = Vec::new();
        File::from(read).read_to_end(&mut written).unwrap();
        (ended, written)
    }

    #[test]
    fn a_bare_process_executes_its_program_with_all_it_was_given() {
        let (ended, written) = followed(|script, line| {
            script.lead_session();
            // Not ">&N": some shells know no descriptors above 9.
            let to = format!("/proc/$$/fd/{}", line.as_raw_fd());
            let output = format!("echo $0 $1 $KEY >{to}; test $$ = $(cut -d' ' -f6 /proc/$$/stat)");
            script.execute(&program(&["/no/such", "/bin/sh/x", "/bin/sh"], &["sh", "-c", &output, "a", "b"]));
        });
        assert_eq!((ended, written.as_slice()), (Ended::Code(0), &b"a b value\n"[..]));
    }

    #[test]
    fn what_fails_is_reported_with_its_words_and_number() {
        let report = |errno: Errno| [b"words", &(errno as isize).to_ne_bytes()[..]].concat();
        let failed =
            |candidates: &[&str]| followed(|script, _line| script.execute(&program(candidates, &["x"])));
        let denied = "/etc/passwd";
        for (candidates, errno) in [
            (&["/no/such", "/bin/sh/x"][..], Errno::ENOENT),
            (&["/no/such", denied, "/no/such"], Errno::EACCES),
            (&["/proc/self/exe/", "/bin/true"], Errno::ENOENT),
        ] {
            let (ended, written) = failed(candidates);
            if candidates.contains(&"/bin/true") {
                assert_eq!((ended, written.as_slice()), (Ended::Code(0), &b""[..]), "{candidates:?}");
            } else {
                assert_eq!((ended, written), (Ended::Code(128), report(errno)), "{candidates:?}");
            }
        }
        // A call that is not a candidate is the last one: standard input is a pipe, or nothing.
        let (ended, written) = followed(|script, _line| {
            script.control_terminal();
            script.execute(&program(&["/bin/true"], &["true"]));
        });
        assert_eq!((ended, written.len()), (Ended::Code(128), 13));
    }

    #[test]
    fn a_filter_that_refuses_the_end_does_not_stop_it() {
        // Every call is refused.
        let refuse = [6_u16.to_ne_bytes().as_slice(), &[0, 0], &0x0005_0001_u32.to_ne_bytes()].concat();
        let (ended, written) = followed(|script, _line| {
            script.load_filter(&refuse, 0);
            script.execute(&program(&["/bin/true"], &["true"]));
        });
        assert_eq!(written, b"", "it cannot even be told");
        let trap = if cfg!(target_arch = "x86_64") { 4 } else { 5 };
        assert_eq!(ended, Ended::Code(200 + trap));
    }

    #[test]
    fn nothing_of_the_parents_memory_is_there() {
        let secret = format!("what nobody may see: {}", std::process::id());
        let (_read, line) = nix::unistd::pipe().unwrap();
        let mut script = Script::new(line.as_fd());
        script.execute(&program(&["/no/such"], &["x"]));
        let (numbers, number) = nix::unistd::pipe().unwrap();
        let prepared = script.prepare().unwrap();
        let parent = match clone3(0, None).unwrap() {
            Clone::Child(child) => {
                let waits = prepared.keep_memory(&child).map(|bare| clone_waiting(&bare));
                let told = nix::unistd::write(&number, &waits.unwrap_or(-1).to_ne_bytes());
                exit_now(i32::from(told != Ok(size_of::<isize>())))
            }
            Clone::Parent { pidfd, .. } => pidfd,
        };
        assert_eq!(end(&parent), Some(Ended::Code(0)));
        let mut told = [0; size_of::<isize>()];
        File::from(numbers).read_exact(&mut told).unwrap();
        let pid = i32::try_from(isize::from_ne_bytes(told)).unwrap();
        let process = crate::process::open_pidfd(pid).unwrap();
        let seen = memory_of(pid);
        crate::process::kill(process.as_fd()).unwrap();
        assert_eq!(end(&process), Some(Ended::Signal(wharf_types::signal::SIGKILL)));
        let has = |bytes: &[u8]| seen.concat().windows(bytes.len()).any(|window| window == bytes);
        assert!(has(b"/no/such") && !has(secret.as_bytes()));
        assert!(memory_of(std::process::id().cast_signed()).concat().len() > seen.concat().len());
    }

    /// Clones a sibling that waits, and returns its pid.
    fn clone_waiting(bare: &Bare) -> isize {
        let mut pidfd = -1;
        let start = Start { stack: bare.0.head().cast(), run: wait_for_ever, argument: bare.0.head() };
        // SAFETY: as in `Bare::clone`.
        unsafe { raw::clone(word(SIBLING), &mut pidfd, start) }
    }

    unsafe extern "C" fn wait_for_ever(_head: *mut Head) -> ! {
        // SAFETY: nothing is to be waited for, without an end.
        unsafe { raw::call(libc::SYS_ppoll, &[0; 6]) };
        raw::trap()
    }

    /// The readable memory of a process, one mapping at a time.
    fn memory_of(pid: i32) -> Vec<Vec<u8>> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let read = |line: &str| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            let count = memory.read_at(&mut bytes, start).ok()?;
            bytes.truncate(count);
            Some(bytes)
        };
        maps.lines().filter_map(read).collect()
    }
}
