//! A wharfd: started, stopped, killed, observed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::place::{self, Built};
use crate::world::until;

/// The sources of all crates.
static CODE: LazyLock<String> = LazyLock::new(|| {
    let mut code = String::new();
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => directories.push(path),
                Some(kind) if kind == "rs" => code += &fs::read_to_string(path).unwrap(),
                _ => {}
            }
        }
    }
    code
});

/// A wharfd and its directory.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    dir: PathBuf,
    built: Built,
}

impl Daemon {
    /// Writes the configuration and starts the first daemon, which is not ready when this returns.
    pub(crate) fn start(dir: &Path) -> Self {
        let built = Built::of(dir);
        let shown = dir.display();
        let config = format!(
            "root = \"{shown}/root\"\nstate = \"{shown}/state\"\nsocket = \"{shown}/wharf.sock\"\nsupervisor = \"{}\"\n\
             [log]\nlevel = \"debug,h2=warn,hyper_util=warn,tower=warn\"\n\
             [registry]\ncerts_dir = \"{shown}/certs.d\"\n\
             [cdi]\nspec_dirs = [\"{shown}/cdi\", \"{shown}/cdi-of-drivers\"]\n[hooks]\ndirs = [\"{shown}/hooks.d\"]\n\
             [nri]\nsocket = \"{shown}/nri.sock\"\nplugin_dir = \"{shown}/nri\"\nplugin_config_dir = \"{shown}/nri.d\"\n\
             [network]\nbuiltin = \"on\"\ncni_conf_dir = \"{shown}/net.d\"\ncni_bin_dirs = [\"{shown}/plugins\", \"/usr/lib/cni\"]\n",
            built.supervisor.display()
        );
        fs::write(dir.join("config.toml"), config).unwrap();
        let child = spawn(dir, &built);
        Self { child, dir: dir.to_owned(), built }
    }

    /// Starts the next daemon after one has exited.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(&self.dir, &self.built);
    }

    /// The same with these variables in its environment.
    pub(crate) fn start_with(&mut self, variables: &[(&str, &str)]) {
        let mut command = place::command(&self.built.wharfd);
        command.envs(variables.iter().copied());
        self.child = start(&self.dir, command);
    }

    /// The same with strace and these options; its output is the file `calls` in the test's directory.
    pub(crate) fn start_traced(&mut self, options: &[&str]) {
        let mut strace = place::command(Path::new("strace"));
        // The tracer is a grandchild, so that the child is the daemon itself.
        strace.args(["--daemonize", "--follow-forks", "--detach-on=execve", "--output"]);
        strace.arg(self.dir.join("calls")).args(options).arg(&self.built.wharfd);
        self.child = start(&self.dir, strace);
    }

    /// Asks it to exit, and waits until it has.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        self.ask_to_exit();
        until("wharfd ends after SIGTERM", async || self.child.try_wait().unwrap()).await
    }

    pub(crate) fn ask_to_exit(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Kills it, and returns when it is gone.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    /// Stops it, as a debugger or a full machine might.
    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Continues a stopped daemon.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Waits until it is gone, which explains why a call failed.
    pub(crate) async fn was_killed(&mut self, failed: &tonic::Status) {
        let gone = async || self.child.try_wait().unwrap();
        until(&format!("wharfd is gone, since {failed}"), gone).await;
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("wharf.sock")
    }

    /// Whether any process is its child, by the fourth field of proc_pid_stat(5).
    pub(crate) fn has_children(&self) -> bool {
        let parent = |stat: String| stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok();
        let stats = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("stat"));
        stats.filter_map(|stat| parent(fs::read_to_string(stat).ok()?)).any(|pid: u32| pid == self.pid())
    }

    /// The program that it executes for each pod, which is a copy of its own.
    pub(crate) fn supervisors_program(&self) -> PathBuf {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().flatten();
        let leads = |path: &PathBuf| fs::read_link(path).is_ok_and(|to| to.ends_with("wharf-shim"));
        descriptors.map(|entry| entry.path()).find(leads).expect("the daemon holds it")
    }

    /// Its descriptors, without numbers that vary.
    pub(crate) fn descriptors(&self) -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        let mut all: Vec<String> = links
            .map(|link| {
                link.to_string_lossy()
                    .split(|c: char| c == ':' || c.is_ascii_digit())
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        all.sort();
        all
    }

    /// Whether a thread waits for a file system or a disk: the state in the third field of proc_pid_stat(5).
    pub(crate) fn has_stuck_thread(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().flatten();
        let mut stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        stats.any(|stat| stat.rsplit_once(") ").is_some_and(|(_name, rest)| rest.starts_with('D')))
    }

    /// How many threads it has.
    pub(crate) fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count()
    }

    /// Whether a line of its log has these words. They must stand in the code: else a check that they are not in the
    /// log would pass forever once they are worded anew.
    pub(crate) fn has_logged(&self, words: &str) -> bool {
        assert!(CODE.contains(words), "no crate logs {words:?}");
        self.log().contains(words)
    }

    /// Whether its log has a value, which is from elsewhere.
    pub(crate) fn has_logged_value(&self, value: &str) -> bool {
        self.log().contains(value)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    /// After a failed test the rig kills what is left, but the log would be lost.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of wharfd's log:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

fn spawn(dir: &Path, built: &Built) -> Child {
    start(dir, place::command(&built.wharfd))
}

fn start(dir: &Path, mut command: Command) -> Child {
    let log = fs::File::options().create(true).append(true).open(dir.join("daemon.log")).unwrap();
    command.arg("--config").arg(dir.join("config.toml"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(log));
    command.spawn().unwrap()
}

/// The process in this rig whose command line contains these words.
pub(crate) fn process_with(words: &str) -> Option<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(words)
    })
}

pub(crate) fn is_alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
