//! Checks of wharfd's process: its program, and what the kernel lets it have.

use std::path::{Path, PathBuf};

use wharf_cri_api::admin::InfoResponse;

use super::Check;

/// What to do once a program has been replaced.
const RESTART: &str = "restart wharfd after an upgrade: containers keep running";
/// Where the cgroups are that limit tasks: those of v1, of v2, and of v2 beside v1.
const HIERARCHIES: [&str; 3] = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// All of these checks.
pub(super) fn checks(info: &InfoResponse) -> [Check; 3] {
    let process = PathBuf::from(format!("/proc/{}", info.pid));
    let read = |name: &str| std::fs::read(process.join(name)).unwrap_or_default();
    let cgroup = String::from_utf8_lossy(&read("cgroup")).into_owned();
    [
        version(info, &std::fs::read_link(process.join("exe")).unwrap_or_default()),
        open_files(&String::from_utf8_lossy(&read("limits"))),
        tasks(&cgroup, &HIERARCHIES.map(Path::new)),
    ]
}

/// `program` is where wharfd's process has its program, as the kernel shows it.
fn version(info: &InfoResponse, program: &Path) -> Check {
    const WHAT: &str = "wharfd";
    let own = env!("CARGO_PKG_VERSION");
    let pid = info.pid;
    if info.version != own {
        return Check::warn(WHAT, format!("{}, but wharf is {own}", info.version), RESTART);
    }
    // Releases are told apart by their versions, but builds are not.
    if let Some(path) = program.to_str().and_then(|shown| shown.strip_suffix(" (deleted)")) {
        let found = format!("pid {pid} runs a program that is no longer at {path}");
        return Check::warn(WHAT, found, RESTART);
    }
    Check::ok(WHAT, format!("{own}, pid {pid}"))
}

/// Read from `/proc/<pid>/limits`, since the daemon raises its soft limit itself.
fn open_files(limits: &str) -> Check {
    const WHAT: &str = "open files";
    /// Two for each of 2,500 containers, and as many for sessions, pulls and calls.
    const ENOUGH: u64 = 10_000;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    match soft.map(|soft| (soft, soft.parse::<u64>())) {
        None => Check::warn(WHAT, "unknown", "use sudo to see wharfd's limits"),
        Some((soft, Ok(limit))) if limit < ENOUGH => {
            let advice = "too few for many containers, which need two each: set LimitNOFILE in wharfd.service, or ulimit -Hn before starting wharfd";
            Check::warn(WHAT, format!("wharfd may open {soft}"), advice)
        }
        Some((soft, _)) => Check::ok(WHAT, format!("wharfd may open {soft}")),
    }
}

/// Whether there is room for more tasks where wharfd is: a pull, a load or an exec takes some. `shown` is the process's
/// file of its cgroups.
fn tasks(shown: &str, hierarchies: &[&Path]) -> Check {
    const WHAT: &str = "tasks";
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
    Check::warn(WHAT, found, advice)
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
        let verdict = |soft: &str| {
            open_files(&format!("Limit  Soft\nMax open files            {soft}    1048576    files\n"))
                .verdict
        };
        assert_eq!(
            [verdict("9999"), verdict("10000"), verdict("unlimited")],
            [Verdict::Warn, Verdict::Ok, Verdict::Ok]
        );
        assert_eq!(open_files("").verdict, Verdict::Warn);
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
        }
    }
}
