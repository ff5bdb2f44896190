//! Checks of wharfd's process: its program, and what the kernel lets it have.

use std::path::{Path, PathBuf};

use wharf_cri_api::admin::InfoResponse;

use super::mend::{CommandLine, Remedy};
use super::{Check, source};

/// What to do once a program has been replaced.
const RESTART: &str = "restart wharfd after an upgrade: containers keep running";
/// Where the cgroups are that limit tasks: those of v1, of v2, and of v2 beside v1.
const HIERARCHIES: [&str; 3] = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

const TASKS: &str = "tasks";

/// The unit in `deploy/`.
pub(super) const UNIT: &str = "wharfd.service";

/// All of these checks. `pid` is that of the process that listens, if it is known.
pub(super) fn checks(info: &InfoResponse, pid: Option<i32>) -> [Check; 3] {
    let process = PathBuf::from(format!("/proc/{}", info.pid));
    [
        version(info, &std::fs::read_link(process.join("exe")).unwrap_or_default()),
        // In another PID namespace the number that wharfd knows is another process's.
        open_files(
            &source::text(&process.join("limits")).unwrap_or_default(),
            pid.filter(|pid| u32::try_from(*pid) == Ok(info.pid)),
        ),
        source::check(TASKS, process.join("cgroup"), |shown| tasks(shown, &HIERARCHIES.map(Path::new))),
    ]
}

/// `program` is where wharfd's process has its program, as the kernel shows it.
fn version(info: &InfoResponse, program: &Path) -> Check {
    const WHAT: &str = "wharfd";
    let own = env!("CARGO_PKG_VERSION");
    let pid = info.pid;
    if info.version != own {
        return Check::warn(WHAT, format!("{}, but wharf is {own}", info.version), RESTART)
            .left_as(Remedy::Restart);
    }
    // Releases are told apart by their versions, but builds are not.
    if let Some(path) = program.to_string_lossy().strip_suffix(" (deleted)") {
        let found = format!("pid {pid} runs a program that is no longer at {path}");
        return Check::warn(WHAT, found, RESTART).left_as(Remedy::Restart);
    }
    Check::ok(WHAT, format!("{own}, pid {pid}"))
}

/// Read from `/proc/<pid>/limits`, since the daemon raises its soft limit itself; empty if that cannot be read.
/// Containers keep the limit that wharfd was started with.
fn open_files(limits: &str, pid: Option<i32>) -> Check {
    const WHAT: &str = "open files";
    /// Two for each of 2,500 containers, and as many for sessions, pulls and calls.
    const ENOUGH: u64 = 10_000;
    /// That of the unit, and the kernel's own bound unless it is set.
    const USUAL: u64 = 1 << 20;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    match soft.map(|soft| (soft, soft.parse::<u64>())) {
        None => Check::warn(WHAT, "unknown", "use sudo to see wharfd's limits"),
        Some((soft, Ok(limit))) if limit < ENOUGH => {
            let advice = "too few for many containers, which need two each: set LimitNOFILE in wharfd.service, or ulimit -Hn before \
                          starting wharfd";
            let found = format!("wharfd may open {soft}");
            match pid {
                Some(pid) => Check::warn(WHAT, found, format!("{advice}, and raise that of this one"))
                    .mended_by(vec![raise(pid, USUAL)]),
                None => Check::warn(WHAT, found, advice),
            }
        }
        Some((soft, _)) => Check::ok(WHAT, format!("wharfd may open {soft}")),
    }
}

/// Raises a process's limit on open files.
fn raise(pid: i32, limit: u64) -> CommandLine {
    CommandLine::new(&format!("prlimit --nofile={limit}:{limit} --pid {pid}"))
}

/// Whether there is room for more tasks where wharfd is: a pull, a load or an exec takes some. `shown` is the process's
/// file of its cgroups.
fn tasks(shown: &str, hierarchies: &[&Path]) -> Check {
    const WHAT: &str = TASKS;
    /// As many threads as wharfd may start at once for a few calls.
    const ENOUGH: u64 = 32;
    let Some((left, cgroup, found)) = places(shown, hierarchies).into_iter().filter_map(room).min() else {
        return Check::ok(WHAT, "no cgroup limits wharfd's tasks");
    };
    if left >= ENOUGH {
        return Check::ok(WHAT, found);
    }
    let advice = format!(
        "pulls, commands and new pods fail because no process can be started: raise TasksMax of the service, or pids.max in {}",
        cgroup.display()
    );
    let full = Check::warn(WHAT, found, advice);
    if !cgroup.ends_with(UNIT) {
        return full;
    }
    let raise = format!("systemctl set-property --runtime {UNIT} TasksMax=infinity");
    full.mended_by(vec![CommandLine::new(&raise)])
}

/// The cgroups that limit the tasks of a process: its own and all above it.
fn places(shown: &str, hierarchies: &[&Path]) -> Vec<PathBuf> {
    // NUMBER:CONTROLLERS:PATH, where v2 has no controllers.
    let path_of = |controller: &str| {
        let mut fields = shown.lines().map(|line| line.splitn(3, ':').skip(1));
        let found = fields.find_map(|mut fields| {
            Some((fields.next()?, fields.next()?))
                .filter(|(all, _)| all.split(',').any(|one| one == controller))
        });
        found.map(|(_, path)| path.trim_start_matches('/').to_owned())
    };
    let (of_v1, of_v2) = (path_of("pids"), path_of(""));
    let [v1, others @ ..] = hierarchies else { return Vec::new() };
    let v1 = of_v1.iter().map(|path| (*v1, path));
    let v2 = of_v2.iter().flat_map(|path| others.iter().map(move |other| (*other, path)));
    let from_own = |(root, path): (&Path, &String)| {
        let own = root.join(path);
        own.ancestors().take_while(|above| above.starts_with(root)).map(Path::to_owned).collect::<Vec<_>>()
    };
    v1.chain(v2).flat_map(from_own).collect()
}

/// How many more tasks there may be in a cgroup, with its path and the numbers for people; nothing if it has no limit.
fn room(cgroup: PathBuf) -> Option<(u64, PathBuf, String)> {
    let number = |file: &str| std::fs::read_to_string(cgroup.join(file)).ok()?.trim().parse::<u64>().ok();
    let (now, most) = (number("pids.current")?, number("pids.max")?);
    let found = format!("{now} of {most} in {}", cgroup.display());
    Some((most.saturating_sub(now), cgroup, found))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_wharfd_that_was_not_restarted_is_reported() {
        let info =
            |version: &str| InfoResponse { version: version.into(), pid: 7, ..InfoResponse::default() };
        let same = info(env!("CARGO_PKG_VERSION"));
        let told = |info, program: &str| version(info, Path::new(program));
        for program in ["/usr/bin/wharfd", ""] {
            assert_eq!(told(&same, program).verdict, Verdict::Ok, "{program}");
        }
        let other = info("0.0.1");
        assert_eq!(told(&other, "/usr/bin/wharfd").verdict, Verdict::Warn);
        let replaced = told(&same, "/usr/bin/wharfd (deleted)");
        assert!(
            replaced.verdict == Verdict::Warn && replaced.found.ends_with("at /usr/bin/wharfd"),
            "{replaced:?}"
        );
        assert!(replaced.advice.starts_with("restart wharfd"), "{replaced:?}");
    }

    #[test]
    fn a_low_limit_of_open_files_is_reported() {
        let told = |soft: &str, pid| {
            let limits = format!("Limit  Soft\nMax open files            {soft}    1048576    files\n");
            open_files(&limits, pid)
        };
        let verdict = |soft: &str| told(soft, Some(7)).verdict;
        assert_eq!(
            [verdict("9999"), verdict("10000"), verdict("unlimited")],
            [Verdict::Warn, Verdict::Ok, Verdict::Ok]
        );
        assert_eq!(open_files("", Some(7)).verdict, Verdict::Warn);
        assert_eq!(told("9999", None).remedy, Remedy::Judgement, "whose number is not known");
    }

    #[test]
    fn a_low_limit_of_open_files_is_raised() {
        #[expect(clippy::disallowed_methods, reason = "a process with a limit of its own")]
        let mut process = std::process::Command::new("sh")
            .args(["-c", "ulimit -Sn 100; echo; exec sleep 1000"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut begun = [0];
        std::io::Read::read_exact(process.stdout.as_mut().unwrap(), &mut begun).unwrap();
        let pid = i32::try_from(process.id()).unwrap();
        let limits = || std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let few = open_files(&limits(), Some(pid));
        // Not every machine lets its root exceed the hard limit.
        let hard = limits().lines().find_map(|line| {
            line.strip_prefix("Max open files")?.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        let hard = hard.unwrap();
        let raised = raise(pid, hard).execute(std::time::Duration::from_secs(60));
        let found = open_files(&limits(), Some(pid)).found;
        process.kill().unwrap();
        process.wait().unwrap();
        let usual = CommandLine::new(&format!("prlimit --nofile=1048576:1048576 --pid {pid}"));
        assert_eq!((&*few.found, few.remedy), ("wharfd may open 100", Remedy::Commands(vec![usual])));
        assert_eq!((raised, found), (Ok(String::new()), format!("wharfd may open {hard}")));
    }

    #[test]
    fn a_cgroup_without_room_for_tasks_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let [v1, v2] = ["pids", "unified"].map(|name| dir.path().join(name));
        let set = |cgroup: PathBuf, now: u64, most: &str| {
            std::fs::create_dir_all(&cgroup).unwrap();
            std::fs::write(cgroup.join("pids.current"), now.to_string()).unwrap();
            std::fs::write(cgroup.join("pids.max"), most).unwrap();
        };
        let roots = [v1.as_path(), v2.as_path()];
        let told = |shown: &str| tasks(shown, &roots);
        let (of_v1, of_v2) = ("4:memory:/x\n3:cpu,pids:/a/b\n0::/\n", "0::/a/b\n");
        assert_eq!(told("").verdict, Verdict::Ok);
        assert_eq!(told(of_v1).found, "no cgroup limits wharfd's tasks");
        for (root, shown) in [(&v1, of_v1), (&v2, of_v2)] {
            set(root.join("a/b"), 10, "max");
            assert_eq!(told(shown).found, "no cgroup limits wharfd's tasks");
            set(root.join("a/b"), 10, "100\n");
            assert_eq!(
                (told(shown).verdict, told(shown).found.starts_with("10 of 100 in ")),
                (Verdict::Ok, true)
            );
            set(root.join("a"), 99, "100");
            let above = told(shown);
            let words = format!("99 of 100 in {}", root.join("a").display());
            assert!(above.verdict == Verdict::Warn && above.found == words, "{above:?}");
            assert_eq!(above.remedy, Remedy::Judgement, "it is not wharf's");
        }
        set(v2.join("a").join(UNIT), 100, "100");
        set(v2.join("a"), 1, "max");
        let raise = "systemctl set-property --runtime wharfd.service TasksMax=infinity";
        let of_unit = told("0::/a/wharfd.service\n");
        assert_eq!(of_unit.remedy, Remedy::Commands(vec![CommandLine::new(raise)]), "{of_unit:?}");
    }
}
