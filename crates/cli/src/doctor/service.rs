//! Checks of the running wharfd, and of its directories, limits and supervisors.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use wharf_cri_api::admin::InfoResponse;
use wharf_cri_api::v1::StatusRequest;

use super::disk::{disk, layers, of_logs};
use super::mend::{CommandLine, Remedy};
use super::source::names;
use super::unreachable::{self, Halt, halt};
use super::{Check, DaemonInfo, bounded, driver, process, upkeep};
use crate::daemon::Daemon;
use crate::listener::{is_named, is_ours};
use crate::units::short;
use crate::{info, regular};

/// Where to look further.
pub(super) const LOG: &str = "see its log: journalctl -u wharfd";

/// All checks of wharfd. If it cannot be reached, only the first and those of supervisors are made. `state` is its
/// state directory, as far as it is known.
pub(super) async fn checks(answer: DaemonInfo, state: &Path) -> Vec<Check> {
    let pods = state.join("pods");
    let (mut daemon, info) = match answer {
        Ok(answer) => answer,
        Err(error) => {
            // In this order, because wharfd is started only once its supervisor can be, and waits for those that run.
            let mut checks = vec![beside_this_program(), stopped(&pods)];
            checks.extend(unreachable::checks(&error, state));
            return checks;
        }
    };
    let root = PathBuf::from(&info.root);
    let [version, open_files, tasks] = process::checks(&info, daemon.pid);
    let program = bounded::check(SUPERVISOR, Path::new(&info.supervisor), supervisor);
    let mut checks = vec![version, program, limits(info.bounding_capabilities)];
    checks.extend(directories(&root, state));
    checks.extend([
        open_files,
        tasks,
        Check::ok("network", info::network(&info)),
        handlers(&info),
        additions(&info),
        registries(&info),
        plugins(&info),
        driver::check(&mut daemon).await,
        bounded::check("supervisors", &pods, supervisors),
        stopped(&pods),
        orphans(&mut daemon, &pods).await,
        upkeep::links(&mut daemon, &info).await,
    ]);
    checks.extend(conditions(&mut daemon).await);
    checks
}

/// The checks of the file systems that wharfd writes to.
fn directories(root: &Path, state: &Path) -> [Check; 6] {
    [
        bounded::check("layers", root, layers),
        bounded::check("disk", root, |root| {
            let advice = "remove images (wharf rmi) or containers (wharf rm), or set `root` to a larger disk";
            disk("disk", root, advice)
        }),
        bounded::check("state", state, |state| {
            disk("state", state, "remove pods (wharf rm), or other files on that file system")
        }),
        bounded::check(bounded::LOGS, Path::new("/var/log"), |_logs| {
            disk(bounded::LOGS, of_logs(), "remove pods (wharf rm), or other files on that file system")
        }),
        quarantine(&[root, state]),
        bounded::check("trash", root, upkeep::trash),
    ]
}

/// The supervisor at its default place.
fn beside_this_program() -> Check {
    match std::env::current_exe() {
        Ok(program) => bounded::check(SUPERVISOR, &program.with_file_name(SHIM), supervisor),
        Err(error) => Check::unknown(SUPERVISOR, Path::new("/proc/self/exe"), &error),
    }
}

const SUPERVISOR: &str = "supervisor";
/// The name of its program.
const SHIM: &str = "wharf-shim";

fn supervisor(path: &Path) -> Check {
    let found = path.display().to_string();
    match std::fs::metadata(path) {
        Ok(file) if file.permissions().mode() & 0o111 != 0 => Check::ok(SUPERVISOR, found),
        Ok(file) if file.is_file() && path.ends_with(SHIM) => {
            Check::fail(SUPERVISOR, &*found, "it is not executable")
                .mended_by(vec![CommandLine::new("chmod a+x").and(&*found)])
        }
        Ok(_) => {
            let advice = "it is not executable: set `supervisor` in /etc/wharf/config.toml to wharf-shim";
            Check::fail(SUPERVISOR, found, advice)
        }
        Err(error) => {
            let advice = "install wharf-shim beside wharfd, or set `supervisor` in /etc/wharf/config.toml";
            Check::fail(SUPERVISOR, format!("{found}: {error}"), advice)
        }
    }
}

fn limits(bounding: u64) -> Check {
    const WHAT: &str = "CAP_SYS_RESOURCE";
    if bounding & wharf_types::capability::SYS_RESOURCE != 0 {
        return Check::ok(WHAT, "yes");
    }
    let advice = "containers cannot get a lower oom_score_adj or higher limits: give wharfd this capability";
    Check::warn(WHAT, "wharfd lacks it", advice)
}

/// Records that wharfd could not read when it started, and keeps in the quarantine.
fn quarantine(directories: &[&Path]) -> Check {
    const WHAT: &str = "quarantine";
    let mut full = Vec::new();
    for directory in directories {
        match bounded::attempt(WHAT, directory, quarantined) {
            Ok(Ok(places)) => full.extend(places),
            Ok(Err(error)) => return Check::unknown(WHAT, directory, &error),
            Err(unread) => return unread,
        }
    }
    if full.is_empty() {
        return Check::ok(WHAT, "empty");
    }
    let advice =
        "wharfd could not read these records, and its log says why: remove them when you no longer need them";
    Check::warn(WHAT, full.join(", "), advice).left_as(Remedy::Removal)
}

/// The places below a directory where there are such records.
fn quarantined(directory: &Path) -> std::io::Result<Vec<String>> {
    let mut full = Vec::new();
    for place in [directory.join("quarantine"), directory.join("network/quarantine")] {
        if !names(&place)?.is_empty() {
            full.push(place.display().to_string());
        }
    }
    Ok(full)
}

/// Files of devices and hooks that wharfd cannot use.
fn additions(info: &InfoResponse) -> Check {
    const WHAT: &str = "devices, hooks";
    if info.file_problems.is_empty() {
        return Check::ok(WHAT, "all files can be used");
    }
    let advice = "fix or remove the files: containers that need one of them cannot be created";
    Check::warn(WHAT, info.file_problems.join("; "), advice)
}

/// Files with the settings of registries that wharfd cannot use.
fn registries(info: &InfoResponse) -> Check {
    const WHAT: &str = "registries";
    if info.registry_problems.is_empty() {
        return Check::ok(WHAT, "all files can be used");
    }
    let advice = "correct the files, or their paths: pulls that need one of them fail (see wharf registry explain IMAGE)";
    Check::warn(WHAT, info.registry_problems.join("; "), advice)
}

/// Handlers whose runtimes cannot be used.
fn handlers(info: &InfoResponse) -> Check {
    const WHAT: &str = "handlers";
    if info.handler_problems.is_empty() {
        return Check::ok(WHAT, "all can be used");
    }
    let advice = "install the runtime, or change its section in /etc/wharf/config.toml, and restart wharfd";
    Check::warn(WHAT, info.handler_problems.join("; "), advice)
}

/// NRI plugins that cannot connect, or without which no container is created.
fn plugins(info: &InfoResponse) -> Check {
    const WHAT: &str = "NRI plugins";
    if info.nri_problems.is_empty() {
        return Check::ok(WHAT, info::plugins(info));
    }
    let advice = "start the plugin, or change [nri] in /etc/wharf/config.toml and restart wharfd";
    Check::warn(WHAT, info.nri_problems.join("; "), advice)
}

/// What supervisors logged: each has a log in its pod's directory, which is empty unless something went wrong.
fn supervisors(pods: &Path) -> Check {
    const WHAT: &str = "supervisors";
    /// The longest part of a line that is shown, in characters.
    const SHOWN_CHARS: usize = 120;
    /// More than a supervisor writes.
    const LOG_LIMIT_BYTES: u64 = 16 << 20;
    let last_line = |pod: &String| {
        let log = regular::read(&pods.join(pod).join("shim.log"), LOG_LIMIT_BYTES).ok()?;
        let log = String::from_utf8_lossy(&log);
        let line: String = log.lines().last()?.chars().take(SHOWN_CHARS).collect();
        Some(format!("{}: {line}", short(pod)))
    };
    let told: Vec<String> = match names(pods) {
        Ok(pods) => pods.iter().filter_map(last_line).collect(),
        Err(error) => return Check::unknown(WHAT, pods, &error),
    };
    match told.as_slice() {
        [] => Check::ok(WHAT, "no errors logged"),
        [first, others @ ..] => {
            let found = match others.len() {
                0 => first.clone(),
                more => format!("{first} (and {more} more)"),
            };
            Check::warn(WHAT, found, "wharf inspect POD shows the last lines, as info.supervisorLog")
        }
    }
}

/// Directories and supervisors of pods that wharfd does not know.
async fn orphans(daemon: &mut Daemon, pods: &Path) -> Check {
    // In this order, because a pod that is being created has its directory before it is listed.
    let directories = match bounded::attempt(ORPHANS, pods, names) {
        Ok(Ok(directories)) => directories,
        Ok(Err(error)) => return Check::unknown(ORPHANS, pods, &error),
        Err(unread) => return unread,
    };
    let supervised = match supervised_in_time(ORPHANS, pods) {
        Ok(supervised) => supervised,
        Err(unread) => return unread,
    };
    let listing = match daemon.listing().await {
        Ok(listing) => listing,
        Err(error) => return Check::fail(ORPHANS, error.to_string(), LOG),
    };
    let is_known = |id: &String| listing.pods.iter().any(|pod| pod.id == *id);
    let of_others = |id: &&String| !is_known(id) && !directories.contains(id);
    let supervisors: Vec<String> =
        supervised.iter().map(|supervisor| &supervisor.pod).filter(of_others).cloned().collect();
    let directories = directories.into_iter().filter(|id| !is_known(id)).collect();
    unknown(pods, directories, &supervisors)
}

const ORPHANS: &str = "orphans";

/// What is said about pods that wharfd does not know: those with directories, and those with supervisors alone.
fn unknown(pods: &Path, directories: Vec<String>, supervisors: &[String]) -> Check {
    let left = |pods: &Path, id: &String| {
        let how = recorded(&pods.join(id).join("record"));
        format!(
            "the directory of {}{}",
            short(id),
            how.map(|how| format!(", recorded as {how}")).unwrap_or_default()
        )
    };
    let of_directories = move |pods: &Path| directories.iter().map(|id| left(pods, id)).collect();
    let mut found: Vec<String> = match bounded::attempt(ORPHANS, pods, of_directories) {
        Ok(found) => found,
        Err(unread) => return unread,
    };
    found.extend(supervisors.iter().map(|id| format!("the supervisor of {}", short(id))));
    if found.is_empty() {
        return Check::ok(ORPHANS, "none");
    }
    let advice = "restart wharfd: it removes them, except what a newer release recorded, which only that release can read; if \
                  they stay, its log says why";
    Check::warn(ORPHANS, found.join(", "), advice).left_as(Remedy::Restart)
}

/// The kind and version of a record, from its header line.
fn recorded(record: &Path) -> Option<String> {
    /// More than a header has.
    const HEADER_LIMIT_BYTES: u64 = 4096;
    let content = regular::read(record, HEADER_LIMIT_BYTES).ok()?;
    let header = String::from_utf8_lossy(content.split(|&byte| byte == b'\n').next()?).into_owned();
    let mut words = header.strip_prefix("wharf ")?.split(' ');
    Some(format!("{} {}", words.next()?, words.next()?))
}

/// Supervisors that have been stopped: their containers go on, but nothing can be done with them.
fn stopped(pods: &Path) -> Check {
    supervised_in_time(STOPPED, pods).map_or_else(|unread| unread, stopped_of)
}

const STOPPED: &str = "stopped supervisors";

fn stopped_of(supervised: Vec<Supervisor>) -> Check {
    let mut stopped = supervised;
    stopped.retain(|supervisor| supervisor.halt.is_some());
    if stopped.is_empty() {
        return Check::ok(STOPPED, "none");
    }
    let found: Vec<String> =
        stopped.iter().map(|one| format!("pid {} of {}", one.pid, short(&one.pod))).collect();
    let traced: Vec<String> = stopped.iter().filter_map(|one| one.halt.as_ref()?.traced(&one.pid)).collect();
    stopped.retain(|one| one.halt == Some(Halt::Stopped));
    let mut advice =
        "wharfd cannot manage their pods, and waits for them when it starts, until they continue".to_owned();
    traced.iter().for_each(|traced| advice = format!("{advice}; {traced}"));
    let told = Check::warn(STOPPED, found.join(", "), advice);
    if stopped.is_empty() {
        return told;
    }
    let go_on = stopped.iter().fold(CommandLine::new("kill -CONT"), |line, one| line.and(&*one.pid));
    told.mended_by(vec![go_on])
}

/// A supervisor that is running.
struct Supervisor {
    pid: String,
    pod: String,
    /// What keeps it from going on, if anything does.
    halt: Option<Halt>,
}

/// The same for a check. The command line of a process whose memory is on a disk that does not respond is not read in
/// time.
fn supervised_in_time(what: &'static str, pods: &Path) -> Result<Vec<Supervisor>, Check> {
    const PROCESSES: &str = "/proc";
    let pods = pods.to_owned();
    let found = bounded::attempt(what, Path::new(PROCESSES), move |_processes| supervised(&pods))?;
    found.map_err(|error| Check::unknown(what, Path::new(PROCESSES), &error))
}

/// The supervisors of pods with directories here; other ones on this machine are another wharfd's.
fn supervised(pods: &Path) -> std::io::Result<Vec<Supervisor>> {
    if !nix::unistd::geteuid().is_root() {
        // Whose mounts a process sees, which shows whether it is a supervisor.
        return Err(nix::errno::Errno::EPERM.into());
    }
    let supervisor = |pid: String| {
        let pod = pod_of(&command_line(&Path::new("/proc").join(&pid))?, pods)?;
        let halt = halt(&unreachable::status(&pid));
        Some(Supervisor { pid, pod, halt })
    };
    Ok(names(Path::new("/proc"))?.into_iter().filter_map(supervisor).collect())
}

/// The command line of a process that may be a supervisor. It is in its memory: for that of a container's process,
/// whatever it calls itself, the kernel waits as long as the process likes.
fn command_line(process: &Path) -> Option<Vec<u8>> {
    let may_be_one = is_named(process, "wharf-shim") && is_ours(process);
    may_be_one.then(|| std::fs::read(process.join("cmdline")).ok()).flatten()
}

/// The pod of a process with this command line, if that is a supervisor of a pod with a directory here: its first
/// argument.
fn pod_of(line: &[u8], pods: &Path) -> Option<String> {
    let mut words = line.split(|&byte| byte == 0);
    let directory = words.next().filter(|name| *name == b"wharf-shim").and_then(|_| words.next())?;
    let below = Path::new(std::str::from_utf8(directory).ok()?).strip_prefix(pods).ok()?;
    below.to_str().map(str::to_owned)
}

/// The conditions that wharfd reports about itself.
async fn conditions(daemon: &mut Daemon) -> Vec<Check> {
    let answer = match daemon.runtime.status(StatusRequest { verbose: false }).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return vec![Check::fail("runtime", status.message(), LOG)],
    };
    let conditions = answer.status.map(|status| status.conditions).unwrap_or_default();
    conditions.into_iter().map(condition).collect()
}

/// A condition that is met may still carry a remark.
fn condition(told: wharf_cri_api::v1::RuntimeCondition) -> Check {
    let name = if told.r#type == "NetworkReady" { "pods' network" } else { "runtime" };
    match (told.status, told.message.as_str()) {
        (true, "") => Check::ok(name, "ready"),
        (true, remark) => Check::warn(name, "ready, with a warning", remark),
        (false, problem) => Check::fail(name, "not ready", problem),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;

    use super::super::Verdict;
    use super::super::bounded::tests::of_silent;
    use super::*;
    use crate::error::Error;

    #[test]
    fn records_in_quarantine_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(quarantine(&[dir.path()]).verdict, Verdict::Ok);
        std::fs::create_dir_all(dir.path().join("network/quarantine")).unwrap();
        assert_eq!(quarantine(&[dir.path()]).verdict, Verdict::Ok);
        std::fs::write(dir.path().join("network/quarantine/x"), "").unwrap();
        let told = quarantine(&[dir.path()]);
        assert!(told.verdict == Verdict::Warn && told.found.ends_with("network/quarantine"), "{told:?}");
    }

    #[test]
    fn what_supervisors_have_logged_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        for (pod, log) in [("0123456789abcdef", ""), ("fedcba9876543210", "before\nthe disk is full\n")] {
            std::fs::create_dir(dir.path().join(pod)).unwrap();
            assert_eq!(supervisors(dir.path()).verdict, Verdict::Ok, "an empty one, or none");
            std::fs::write(dir.path().join(pod).join("shim.log"), log).unwrap();
        }
        let told = supervisors(dir.path());
        assert!(told.verdict == Verdict::Warn && told.found.ends_with(": the disk is full"), "{told:?}");
    }

    #[test]
    fn a_record_says_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("record");
        assert_eq!(recorded(&record), None);
        for (content, kind) in
            [("wharf pod 99 3 00000000\nabc", Some("pod 99")), ("noise", None), ("wharf pod", None)]
        {
            std::fs::write(&record, content).unwrap();
            assert_eq!(recorded(&record).as_deref(), kind, "{content}");
        }
    }

    #[test]
    fn pods_that_do_not_respond_are_not_waited_for() {
        of_silent(|pods| unknown(pods, vec!["0123456789abcdef".to_owned()], &[]));
        of_silent(|path| bounded::check(SUPERVISOR, path, supervisor));
        of_silent(|state| quarantine(&[Path::new("/no/such"), state]));
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("0123456789abcdef")).unwrap();
        let told = unknown(dir.path(), names(dir.path()).unwrap(), &["fedcba9876543210".to_owned()]);
        let words = "the directory of 0123456789abc, the supervisor of fedcba9876543";
        assert_eq!((told.verdict, told.found.as_str()), (Verdict::Warn, words));
    }

    #[test]
    fn a_supervisor_is_known_by_its_directory() {
        let pod = |line| pod_of(line, Path::new("/run/wharf/pods"));
        assert_eq!(pod(b"wharf-shim\0/run/wharf/pods/0123\0").as_deref(), Some("0123"));
        assert_eq!(pod(b"wharf-shim\0"), None);
        assert_eq!(pod(b"bash\0/run/wharf/pods/0123\0"), None);
        assert_eq!(pod(b"wharf-shim\0/run/another/pods/0123\0"), None);
    }

    /// Files in place of those of procfs; opening a FIFO waits as long as what it stands for keeps the kernel waiting.
    #[test]
    fn the_memory_of_a_containers_process_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("ns")).unwrap();
        std::os::unix::fs::symlink("mnt:[1]", dir.path().join("ns/mnt")).unwrap();
        std::fs::write(dir.path().join("comm"), "wharf-shim\n").unwrap();
        nix::unistd::mkfifo(&dir.path().join("cmdline"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let process = dir.path().to_owned();
        std::thread::spawn(move || tell.send(command_line(&process)));
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(5)), Ok(None));
    }

    #[test]
    fn only_stopped_supervisors_are_named() {
        let of = |pid: &str, status: &str| Supervisor {
            pid: pid.to_owned(),
            pod: "pod".to_owned(),
            halt: halt(status),
        };
        let run = || vec![of("7", "State:\tS (sleeping)\n"), of("9", "Name:\tT\nState:\tR (running)\n")];
        assert_eq!(stopped_of(run()).verdict, Verdict::Ok);
        let mut all = run();
        all.push(of("10", "Name:\tS\nState:\tT (stopped)\n"));
        let told = stopped_of(all);
        assert!(told.verdict == Verdict::Warn && told.advice.ends_with("kill -CONT 10"), "{told:?}");
        assert_eq!(told.remedy, Remedy::Commands(vec![CommandLine::new("kill -CONT 10")]));
        let traced = || of("11", "State:\tt (tracing stop)\nTracerPid:\t12\n");
        let alone = stopped_of(vec![traced()]);
        assert_eq!((alone.verdict, &alone.remedy), (Verdict::Warn, &Remedy::Judgement));
        assert!(alone.advice.contains("process 12"), "{alone:?}");
        let both = stopped_of(vec![of("10", "State:\tT (stopped)\n"), traced()]);
        assert_eq!(both.remedy, Remedy::Commands(vec![CommandLine::new("kill -CONT 10")]));
        assert!(both.found.contains("pid 11") && both.advice.contains("process 12"), "{both:?}");
    }

    #[tokio::test]
    async fn stopped_supervisors_are_named_without_a_wharfd_too() {
        let state = tempfile::tempdir().unwrap();
        let [program, pod] = ["wharf-shim", "pods/0123"].map(|name| state.path().join(name));
        std::fs::create_dir(state.path().join("pods")).unwrap();
        std::fs::copy("/bin/sh", &program).unwrap();
        std::fs::write(&pod, "kill -STOP $$\n").unwrap();
        #[expect(clippy::disallowed_methods, reason = "a process that looks like a supervisor")]
        let mut stopped = std::process::Command::new(&program).arg0("wharf-shim").arg(&pod).spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(stopped.id()).unwrap());
        let how = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WUNTRACED));
        let not_running = Error::NotRunning { socket: state.path().join("wharf.sock") };
        let told = checks(Err(not_running), state.path()).await;
        stopped.kill().unwrap();
        stopped.wait().unwrap();
        assert!(matches!(how, Ok(nix::sys::wait::WaitStatus::Stopped(..))), "{how:?}");
        let [_program, told, wharfd] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((told.what, wharfd.what), (STOPPED, "wharfd"), "they continue before it starts");
        let go_on = CommandLine::new(&format!("kill -CONT {pid}"));
        assert_eq!((told.verdict, &told.remedy), (Verdict::Warn, &Remedy::Commands(vec![go_on])));
    }

    #[test]
    fn what_cannot_be_looked_at_is_unknown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for told in [supervisors(file.path()), quarantine(&[file.path()])] {
            assert!(told.verdict == Verdict::Warn && told.found.starts_with("unknown: "), "{told:?}");
        }
    }

    #[test]
    fn remarks_of_a_network_that_is_ready_are_reported() {
        let told = |status, message: &str| {
            let (r#type, message) = ("NetworkReady".to_owned(), message.to_owned());
            condition(wharf_cri_api::v1::RuntimeCondition { r#type, status, message, ..Default::default() })
        };
        assert_eq!(told(true, "").verdict, Verdict::Ok);
        let remark = told(true, "3 pods are left");
        assert_eq!((remark.verdict, remark.advice.as_str()), (Verdict::Warn, "3 pods are left"));
        assert_eq!(told(false, "no configuration").verdict, Verdict::Fail);
    }

    #[test]
    fn nri_plugins_that_are_missing_are_reported() {
        let mut info = InfoResponse { nri_plugins: vec!["10-a".to_owned()], ..InfoResponse::default() };
        assert_eq!((plugins(&info).verdict, plugins(&info).found.as_str()), (Verdict::Ok, "off"));
        info.has_nri = true;
        assert_eq!(plugins(&info).found, "10-a");
        info.nri_socket = "/s".to_owned();
        assert_eq!(plugins(&info).found, "10-a; they connect to /s");
        info.nri_problems = vec!["the required plugin b is not connected".to_owned()];
        assert_eq!(plugins(&info).verdict, Verdict::Warn);
    }

    #[test]
    fn the_supervisor_must_be_a_program() {
        assert_eq!(supervisor(Path::new("/bin/sh")).verdict, Verdict::Ok);
        assert_eq!(supervisor(Path::new("/etc/passwd")).verdict, Verdict::Fail);
        assert_eq!(supervisor(Path::new("/no/such")).verdict, Verdict::Fail);
        assert_eq!(supervisor(Path::new("/etc/passwd")).remedy, Remedy::Judgement, "it is not wharf's");
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("of wharf/wharf-shim");
        std::fs::create_dir(program.parent().unwrap()).unwrap();
        std::fs::write(&program, "").unwrap();
        let told = supervisor(&program);
        let Remedy::Commands(commands) = told.remedy else { panic!("{told:?}") };
        commands[0].execute(std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(supervisor(&program).verdict, Verdict::Ok);
    }

    #[test]
    fn wharfd_needs_its_capability_over_limits() {
        assert_eq!((limits(0).verdict, limits(1 << 24).verdict), (Verdict::Warn, Verdict::Ok));
    }
}
