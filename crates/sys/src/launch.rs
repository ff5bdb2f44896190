//! Starting a program, from a process that may have threads, in a cgroup of the program's own from its first moment.
//!
//! No library for starting programs supports cgroups. A process that is moved into one afterwards has been elsewhere
//! before, and the move waits for every fork on the machine, about 10 ms.

use std::ffi::{CString, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::clone::{Child, clone_to_execute};
use crate::error::{Error, Result};
use crate::process::{Reap, await_end, wait};
use crate::{descriptors, open_files, signals};

/// The kernel's `CLONE_CLEAR_SIGHAND`: the parent's signal handlers become default actions.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// Makes a C string from a text.
///
/// # Errors
/// EINVAL if the text contains NUL.
pub fn c_string(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text)
        .map_err(|error| Error::new("execve", format!("NUL at {}", error.nul_position()), Errno::EINVAL))
}

/// A program to start, with an empty environment.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The program's file.
    pub program: BorrowedFd<'a>,
    /// Its arguments; the first is its name.
    pub arguments: Vec<CString>,
    /// Its standard input, output and error; here they must all be above 2.
    pub streams: [BorrowedFd<'a>; 3],
    /// The directory of its cgroup (v2); without it, the cgroup of this process.
    pub cgroup: Option<BorrowedFd<'a>>,
}

impl Launch<'_> {
    /// Starts it, with default signals and no descriptors except the streams. The caller must wait for the child.
    ///
    /// # Errors
    /// The kernel's error, for example for a program that it cannot execute.
    pub fn start(&self) -> Result<OwnedFd> {
        let streams = self.streams.map(|stream| stream.as_raw_fd());
        if streams.iter().any(|stream| *stream <= 2) {
            return Err(Error::new("dup2", format!("{streams:?}"), Errno::EINVAL));
        }
        let arguments: Vec<*const c_char> =
            self.arguments.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        let mut refused = None;
        let mut body = |child: &Child| {
            refused = Some(become_program(child, self.program.as_raw_fd(), &arguments, streams));
        };
        let pidfd = clone_to_execute(CLONE_CLEAR_SIGHAND, self.cgroup, &mut body)?;
        let Some(errno) = refused else { return Ok(pidfd) };
        await_end(pidfd.as_fd())?;
        wait(pidfd.as_fd(), Reap::Remove)?;
        Err(Error::new("execveat", format!("{:?}", self.arguments), errno))
    }
}

/// Runs in the child; returns why the program could not be executed.
fn become_program(child: &Child, program: RawFd, arguments: &[*const c_char], streams: [RawFd; 3]) -> Errno {
    for (number, stream) in (0..).zip(streams) {
        // SAFETY: two integers; the streams are above 2, so none is replaced before it is used.
        if unsafe { libc::dup2(stream, number) } < 0 {
            return Errno::last();
        }
    }
    let ready = signals::reset(child)
        .and_then(|()| descriptors::close_on_exec_from(3))
        .and_then(|()| open_files::hand_on());
    if let Err(error) = ready {
        return error.errno;
    }
    let environment = [std::ptr::null::<c_char>()];
    // SAFETY: the path and every argument are C strings, both lists end with null, and all live through the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::last()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use nix::fcntl::OFlag;

    use super::*;
    use crate::process::Ended;

    fn launch(path: &str, arguments: &[&str], cgroup: Option<&File>) -> (Result<OwnedFd>, String) {
        let program = File::open(path).unwrap();
        let null = File::open("/dev/null").unwrap();
        let (output, written) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let streams = [null.as_fd(), written.as_fd(), null.as_fd()];
        let arguments = arguments.iter().map(|text| CString::new(*text).unwrap()).collect();
        let cgroup = cgroup.map(|cgroup| cgroup.as_fd());
        let started = Launch { program: program.as_fd(), arguments, streams, cgroup }.start();
        drop(written);
        let mut text = String::new();
        File::from(output).read_to_string(&mut text).unwrap();
        (started, text)
    }

    fn end(process: &OwnedFd) -> Option<Ended> {
        await_end(process.as_fd()).unwrap();
        wait(process.as_fd(), Reap::Remove).unwrap()
    }

    #[test]
    fn a_program_gets_its_arguments_streams_and_nothing_else() {
        let script =
            "echo $0 $1 $(ls /proc/self/fd | wc -l); env; grep -E 'Sig(Ign|Blk)' /proc/self/status; exit 7";
        let (started, text) = launch("/bin/dash", &["sh", "-c", script, "name", "argument"], None);
        assert_eq!(end(&started.unwrap()), Some(Ended::Code(7)));
        // The three streams, the directory that ls reads, and what the shell itself sets.
        let blocked = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";
        let pwd = std::env::current_dir().unwrap();
        assert_eq!(text, format!("name argument 4\nPWD={}\n{blocked}", pwd.display()));
    }

    #[test]
    fn it_begins_in_its_cgroup() {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2 is mounted");
        let mount = line.split(' ').nth(4).unwrap();
        let cgroup = std::path::Path::new(mount).join(format!("wharf-launch-{}", std::process::id()));
        std::fs::create_dir(&cgroup).unwrap();
        let (started, text) =
            launch("/bin/cat", &["cat", "/proc/self/cgroup"], Some(&File::open(&cgroup).unwrap()));
        let ended = end(&started.unwrap());
        std::fs::remove_dir(&cgroup).unwrap();
        assert_eq!(ended, Some(Ended::Code(0)));
        let name = cgroup.file_name().unwrap().to_str().unwrap();
        assert!(text.lines().any(|line| line.starts_with("0::") && line.ends_with(name)), "{text}");
    }

    #[test]
    fn what_cannot_be_executed_is_an_error() {
        let (started, text) = launch("/etc/passwd", &["passwd"], None);
        let error = started.unwrap_err();
        assert_eq!((error.call, error.errno, text.as_str()), ("execveat", Errno::EACCES, ""));
        let (started, _) = launch("/bin/true", &["true"], Some(&File::open("/tmp").unwrap()));
        assert_eq!(started.unwrap_err().call, "clone3");
    }

    #[test]
    fn streams_that_would_replace_each_other_are_refused() {
        let null = File::open("/dev/null").unwrap();
        // SAFETY: this process has a standard input, which stays open.
        let input = unsafe { BorrowedFd::borrow_raw(0) };
        let streams = [null.as_fd(), input, null.as_fd()];
        let launch = Launch { program: null.as_fd(), arguments: Vec::new(), streams, cgroup: None };
        assert_eq!(launch.start().unwrap_err().errno, Errno::EINVAL);
    }
}
