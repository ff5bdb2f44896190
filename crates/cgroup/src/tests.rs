//! Tests on the running kernel, each in a cgroup of its own, which is removed with it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{Cgroup, CgroupPath, Cgroups, Entry};

mod enclosed;
mod filters;
mod life;
mod limits;
mod pure_v1;
mod statistics;

const PATIENCE: Duration = Duration::from_secs(10);

/// A cgroup that is removed with the test, however the test ends.
struct Fresh(Cgroup);

impl Fresh {
    fn new(name: &str) -> Self {
        let path = CgroupPath::new(&format!("/wharf-test-{}-{name}", std::process::id())).unwrap();
        Self(Cgroups::detect().unwrap().create(&path).unwrap())
    }

    /// With the name of a container.
    fn container() -> Self {
        let path = CgroupPath::new(&format!("/{:064x}", std::process::id())).unwrap();
        Self(Cgroups::detect().unwrap().create(&path).unwrap())
    }

    fn at(&self, controller: crate::Controller, file: &str) -> PathBuf {
        self.0.home(controller).unwrap().1.join(file)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        self.0.kill(PATIENCE).unwrap();
        self.0.remove(PATIENCE).unwrap();
    }
}

/// A shell inside a cgroup; killed and reaped when dropped.
struct Shell {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Shell {
    /// Starts a shell that enters the cgroup, prints `in`, and then runs the script.
    fn enter(entry: &Entry, script: &str) -> Self {
        let unified = entry.directory.iter().map(|directory| directory.join("cgroup.procs"));
        let files: Vec<PathBuf> = entry.tasks.iter().cloned().chain(unified).collect();
        #[expect(clippy::disallowed_methods, reason = "the test needs a process to put into a cgroup")]
        let mut command = Command::new("/bin/sh");
        let mut child = command
            .arg("-c")
            .arg(format!("for f in \"$@\"; do echo 0 > \"$f\" || exit 99; done; echo in; {script}"))
            .arg("sh")
            .args(files)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut shell = Self { child, output };
        assert_eq!(shell.line(), "in");
        shell
    }

    /// A shell that does nothing until its input ends.
    fn idle(entry: &Entry) -> Self {
        Self::enter(entry, "read forever")
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Waits for the shell to exit, and returns the signal that killed it, if one did.
    fn end(&mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        drop(self.child.stdin.take());
        let mut rest = Vec::new();
        self.output.read_to_end(&mut rest).unwrap();
        self.child.wait().unwrap().signal()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Both fail only if the process has already been reaped.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}
