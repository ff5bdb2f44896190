//! Starting a program, from a process that may have threads, in a cgroup of the program's own from its first moment.
//!
//! No library for starting programs supports cgroups. A process that is moved into one afterwards has been elsewhere
//! before, and the move waits for every fork on the machine, about 10 ms.

use std::ffi::{CString, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use wharf_types::lock::lock;

use crate::clone::{Child, clone_to_execute, end_with_parent};
use crate::error::{Error, Named, Result};
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

/// Has a program that is to be started with a command find a descriptor under this number.
///
/// The descriptor stays open with the command; in this process it has another number, and is closed on execution.
pub fn hand_on(command: &mut Command, descriptor: OwnedFd, number: RawFd) {
    let place = move || {
        let own = descriptor.as_raw_fd();
        let done = if own == number {
            // SAFETY: three integers. It has the number already, and loses the mark that it is closed on execution.
            unsafe { libc::fcntl(own, libc::F_SETFD, 0) }
        } else {
            // SAFETY: two integers; in the child, what had the number belongs to nobody.
            unsafe { libc::dup2(own, number) }
        };
        if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    #[expect(clippy::disallowed_methods, reason = "between fork and exec there is one system call")]
    // SAFETY: the closure makes that call, and allocates nothing.
    unsafe {
        command.pre_exec(place)
    };
}

/// Has the kernel kill a program that is to be started with a command as soon as the thread that starts it ends, at the
/// latest with this process. What the program itself has started goes on.
pub fn end_with_thread(command: &mut Command) {
    let parent = std::process::id();
    let ask = move || match end_with_parent(parent) {
        Ok(true) => Ok(()),
        Ok(false) => Err(std::io::Error::from(Errno::ESRCH)),
        Err(error) => Err(std::io::Error::from(error.errno)),
    };
    #[expect(clippy::disallowed_methods, reason = "between fork and exec there are two system calls")]
    // SAFETY: the closure makes these calls. It allocates only the text of an error, and the first one cannot fail.
    unsafe {
        command.pre_exec(ask)
    };
}

/// A program that is started again and again, with an empty environment.
///
/// A new process gets a copy of every descriptor of its parent, and closes the copies when it executes a program. With
/// thousands of them, that takes longer than everything else. So a child here shares its parent's descriptors at first,
/// and then copies only the lowest ones, up to the highest of this value. It is therefore to be made before there are
/// many.
#[derive(Debug)]
pub struct Launcher {
    program: OwnedFd,
    /// Where a child finds its streams; in between, they refer to the program.
    streams: Mutex<[OwnedFd; 3]>,
}

impl Launcher {
    /// Prepares to start the program in a file.
    ///
    /// # Errors
    /// The kernel's error; EINVAL if this process itself lacks one of the standard streams.
    pub fn new(program: OwnedFd) -> Result<Self> {
        let place = || program.try_clone().named("dup", || "for the streams of a program".into());
        let streams = [place()?, place()?, place()?];
        if streams.iter().any(|stream| stream.as_raw_fd() <= 2) {
            return Err(Error::new("dup2", format!("{streams:?}"), Errno::EINVAL));
        }
        Ok(Self { program, streams: Mutex::new(streams) })
    }

    /// Starts it with these standard streams, in a cgroup (v2) or in that of this process, with default signals and no
    /// other descriptors. The first argument is its name. The caller must wait for the child.
    ///
    /// # Errors
    /// The kernel's error, for example for a program that it cannot execute.
    pub fn start(
        &self,
        arguments: &[CString],
        streams: [BorrowedFd<'_>; 3],
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<OwnedFd> {
        let pointers: Vec<*const c_char> =
            arguments.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        let mut places = lock(&self.streams);
        let numbers = places.each_ref().map(AsRawFd::as_raw_fd);
        let mut refused = None;
        let mut body = |child: &Child| {
            refused = Some(become_program(child, self.program.as_raw_fd(), &pointers, numbers));
        };
        let flags = CLONE_CLEAR_SIGHAND | u64::from(libc::CLONE_FILES.cast_unsigned());
        let placed = place(&mut places, streams);
        let started = placed.and_then(|()| clone_to_execute(flags, cgroup, &mut body));
        // The other ends learn of the program's end only if nobody else has its streams open.
        let freed = place(&mut places, [self.program.as_fd(); 3]);
        let pidfd = started?;
        let Some(errno) = refused else { return freed.map(|()| pidfd) };
        await_end(pidfd.as_fd())?;
        wait(pidfd.as_fd(), Reap::Remove)?;
        Err(Error::new("execveat", format!("{arguments:?}"), errno))
    }
}

fn place(places: &mut [OwnedFd; 3], streams: [BorrowedFd<'_>; 3]) -> Result<()> {
    places.iter_mut().zip(streams).try_for_each(|(place, stream)| {
        nix::unistd::dup3(stream, place, OFlag::O_CLOEXEC).named("dup3", || "the streams of a program".into())
    })
}

/// Runs in the child; returns why the program could not be executed.
fn become_program(child: &Child, program: RawFd, arguments: &[*const c_char], streams: [RawFd; 3]) -> Errno {
    if let Err(error) = descriptors::copy_up_to(child, streams.into_iter().fold(program, RawFd::max)) {
        return error.errno;
    }
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

    use super::*;
    use crate::process::Ended;

    fn launch(path: &str, arguments: &[&str], cgroup: Option<&File>) -> (Result<OwnedFd>, String) {
        let program = File::open(path).unwrap();
        let null = File::open("/dev/null").unwrap();
        let (output, written) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let streams = [null.as_fd(), written.as_fd(), null.as_fd()];
        let arguments: Vec<_> = arguments.iter().map(|text| CString::new(*text).unwrap()).collect();
        let launcher = Launcher::new(program.into()).unwrap();
        let started = launcher.start(&arguments, streams, cgroup.map(|cgroup| cgroup.as_fd()));
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
    fn a_program_ends_with_the_thread_that_started_it_if_it_is_to() {
        use std::os::unix::process::ExitStatusExt as _;
        let start = || {
            #[expect(clippy::disallowed_methods, reason = "what is tested is the start of programs")]
            let mut command = Command::new("/bin/sleep");
            end_with_thread(command.arg("60"));
            command.spawn().unwrap()
        };
        let mut child = std::thread::spawn(start).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
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
    fn a_program_that_is_started_twice_has_the_streams_of_each_start() {
        let launcher = Launcher::new(File::open("/bin/echo").unwrap().into()).unwrap();
        for word in [c"first", c"second"] {
            let null = File::open("/dev/null").unwrap();
            let (output, written) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
            let streams = [null.as_fd(), written.as_fd(), null.as_fd()];
            let process = launcher.start(&[c"echo".into(), word.into()], streams, None).unwrap();
            drop(written);
            let mut text = String::new();
            File::from(output).read_to_string(&mut text).unwrap();
            assert_eq!(text.trim_end().as_bytes(), word.to_bytes());
            end(&process);
        }
    }
}
