//! Enclosed cgroups: what their processes can change, and that everything else is as in any other.

use std::path::PathBuf;

use super::{Fresh, PATIENCE, Shell, read};
use crate::detect::Kind;
use crate::{Access, Controller, DeviceRule, DeviceType, Extent, Limits, Removed, default_devices};
use wharf_types::{ErrorKind, Failure as _};

const MIB: i64 = 1 << 20;

fn memory(limit: i64) -> Limits {
    Limits { memory_limit_bytes: Some(limit), memory_swap_limit_bytes: Some(limit), ..Limits::default() }
}

fn cpu(quota: i64, period: u64) -> Limits {
    Limits { cpu_quota_us: Some(quota), cpu_period_us: Some(period), ..Limits::default() }
}

impl Fresh {
    fn enclosed(name: &str, limits: &Limits) -> Self {
        let mut fresh = Self::new(name);
        fresh.0 = fresh.0.clone().enclosed();
        fresh.0.apply(limits).unwrap();
        fresh
    }

    /// A file's content above and inside, by its names on v1 and v2.
    fn both(&self, controller: Controller, v1: &str, v2: &str) -> [String; 2] {
        [&self.0, &self.0.inside().unwrap()].map(|cgroup| {
            let (kind, directory) = cgroup.home(controller).unwrap();
            read(&directory.join(if kind == Kind::V1 { v1 } else { v2 }))
        })
    }

    fn memory_limits(&self) -> [String; 2] {
        self.both(Controller::Memory, "memory.limit_in_bytes", "memory.max")
    }

    fn quotas(&self) -> [String; 2] {
        self.both(Controller::Cpu, "cpu.cfs_quota_us", "cpu.max")
    }

    fn cpus(&self) -> [String; 2] {
        self.both(Controller::Cpuset, "cpuset.cpus", "cpuset.cpus")
    }

    fn kind(&self, controller: Controller) -> Kind {
        self.0.home(controller).unwrap().0
    }
}

fn twice(text: &str) -> [String; 2] {
    [text.to_owned(), text.to_owned()]
}

#[test]
fn a_process_lifts_what_it_sees_and_not_what_holds() {
    let fresh = Fresh::enclosed("lift", &memory(64 * MIB));
    let limit = (64 * MIB).to_string();
    assert_eq!(fresh.memory_limits(), twice(&limit));
    let (kind, file, none) = match fresh.kind(Controller::Memory) {
        Kind::V1 => ("cgroup -o memory", "memory.limit_in_bytes", "-1"),
        Kind::Unified => ("cgroup2", "memory.max", "max"),
    };
    // v1's limit on memory alone is never above that on memory and swap.
    let both = "[ ! -e /mnt/memory.memsw.limit_in_bytes ] || echo -1 >/mnt/memory.memsw.limit_in_bytes";
    // On v2, `nsdelegate` keeps it from the files at the root of its cgroup namespace: it begins another one below.
    let lift = format!(
        "mount -t {kind} none /mnt && cat /mnt/{file} && ls -d /mnt/container; mkdir /mnt/below && \
         echo $$ >/mnt/below/cgroup.procs && unshare -C sh -c \"({both}) && echo {none} >/mnt/{file} && echo lifted\""
    );
    let script = format!("unshare -U -r -C -m sh -c '{lift}' 2>&1; read forever");
    let mut shell = Shell::enter(&fresh.0.entry(), &script);
    assert_eq!(shell.line(), limit);
    assert!(shell.line().contains("No such file"), "it sees only what is inside");
    assert_eq!(shell.line(), "lifted");
    let [above, inside] = fresh.memory_limits();
    assert_eq!(above, limit);
    assert_ne!(inside, limit);
}

#[test]
fn processes_are_inside_and_reached_from_above() {
    let fresh = Fresh::enclosed("reached", &Limits { pids_limit: Some(20), ..Limits::default() });
    assert_eq!(fresh.both(Controller::Pids, "pids.max", "pids.max"), twice("20"));
    let entry = fresh.0.entry();
    let directories = entry.directory.iter().cloned();
    let directories = directories.chain(entry.tasks.iter().map(|tasks| tasks.parent().unwrap().to_owned()));
    assert!(directories.into_iter().all(|directory: PathBuf| directory.ends_with("container")));
    let mut shell = Shell::idle(&entry);
    assert_eq!(fresh.0.pids().unwrap(), [shell.pid()]);
    assert!(fresh.0.is_populated().unwrap());
    assert_eq!(fresh.0.stats(Extent::Tasks).pids.current, Some(1));
    fresh.0.freeze(PATIENCE).unwrap();
    fresh.0.thaw(PATIENCE).unwrap();
    // By v1's freezer, in which a container may freeze itself, and what it has made below.
    let inside = fresh.0.inside().unwrap();
    if let Some((Kind::V1, directory)) = inside.home(Controller::Freezer) {
        let below = directory.join("below");
        std::fs::create_dir(&below).unwrap();
        std::fs::write(below.join("cgroup.procs"), shell.pid().to_string()).unwrap();
        for frozen in [&below, &directory] {
            std::fs::write(frozen.join("freezer.state"), "FROZEN").unwrap();
        }
    }
    fresh.0.kill(PATIENCE).unwrap();
    assert_eq!(shell.end(), Some(9));
    fresh.0.await_empty(PATIENCE).unwrap();
    fresh.0.remove(PATIENCE).unwrap();
    assert!(!fresh.0.kill_directory().exists());
}

#[test]
fn limits_go_up_and_down_in_both() {
    let fresh = Fresh::enclosed("updown", &Limits { cpuset_cpus: Some("0".into()), ..cpu(50_000, 100_000) });
    for limit in [128 * MIB, 32 * MIB, 96 * MIB] {
        fresh.0.update(&memory(limit)).unwrap();
        assert_eq!(fresh.memory_limits(), twice(&limit.to_string()));
    }
    let v1 = fresh.kind(Controller::Cpu) == Kind::V1;
    let period = |quota: &str, period: &str| if v1 { quota.to_owned() } else { format!("{quota} {period}") };
    for (quota, length) in [(80_000, 100_000), (20_000, 100_000), (160_000, 200_000), (10_000, 50_000)] {
        fresh.0.update(&cpu(quota, length)).unwrap();
        assert_eq!(fresh.quotas(), twice(&period(&quota.to_string(), &length.to_string())));
    }
    fresh.0.update(&cpu(40_000, 0)).unwrap();
    assert_eq!(fresh.quotas(), twice(&period("40000", "50000")));
    fresh.0.update(&cpu(0, 100_000)).unwrap();
    assert_eq!(fresh.quotas(), twice(&period("40000", "100000")));
    fresh.0.update(&cpu(-1, 0)).unwrap();
    assert_eq!(fresh.quotas(), twice(&period(if v1 { "-1" } else { "max" }, "100000")));
    // Every machine of the tests has two; they are exchanged, and neither has the other.
    for cpus in ["1", "0-1", "0"] {
        fresh.0.update(&Limits { cpuset_cpus: Some(cpus.into()), ..Limits::default() }).unwrap();
        assert_eq!(fresh.cpus(), twice(cpus));
    }
}

/// What a container has changed inside is in the way of no change.
#[test]
fn a_change_overrides_what_the_container_has_changed() {
    let fresh = Fresh::enclosed("meddle", &cpu(50_000, 100_000));
    let inside = fresh.0.inside().unwrap();
    inside.update(&cpu(5_000, 10_000)).unwrap();
    fresh.0.update(&cpu(30_000, 0)).unwrap();
    let v1 = fresh.kind(Controller::Cpu) == Kind::V1;
    assert_eq!(fresh.quotas(), twice(if v1 { "30000" } else { "30000 100000" }));
    inside.update(&memory(-1)).unwrap();
    fresh.0.update(&memory(64 * MIB)).unwrap();
    assert_eq!(fresh.memory_limits(), twice(&(64 * MIB).to_string()));
}

/// Makes a cgroup below the one of the processes, and one below that, with values of its own.
fn meddle(fresh: &Fresh, controller: Controller, values: &[(&str, &str)]) -> [PathBuf; 2] {
    let (_, directory) = fresh.0.inside().unwrap().home(controller).unwrap();
    let own = [directory.join("x"), directory.join("x/y")];
    for directory in &own {
        std::fs::create_dir(directory).unwrap();
        values.iter().for_each(|(file, value)| std::fs::write(directory.join(file), value).unwrap());
    }
    own
}

#[test]
fn what_a_container_has_made_inside_is_in_the_way_of_no_change() {
    let before = Limits { cpuset_cpus: Some("0".into()), ..cpu(100_000, 100_000) };
    let fresh = Fresh::enclosed("below", &before);
    if fresh.kind(Controller::Cpu) == Kind::V1 {
        let own = meddle(&fresh, Controller::Cpu, &[("cpu.cfs_quota_us", "100000")]);
        fresh.0.update(&cpu(20_000, 0)).unwrap();
        assert_eq!(fresh.quotas(), twice("20000"));
        assert!(own.iter().all(|directory| read(&directory.join("cpu.cfs_quota_us")) == "-1"));
    }
    if fresh.kind(Controller::Cpuset) == Kind::V1 {
        let own = meddle(&fresh, Controller::Cpuset, &[("cpuset.cpus", "0"), ("cpuset.mems", "0")]);
        let cpus = |cpus: &str| Limits { cpuset_cpus: Some(cpus.into()), ..Limits::default() };
        let all = |cpus| {
            assert_eq!(fresh.cpus(), twice(cpus));
            assert!(own.iter().all(|directory| read(&directory.join("cpuset.cpus")) == cpus));
        };
        for moved in ["1", "0-1", "0"] {
            fresh.0.update(&cpus(moved)).unwrap();
            assert_eq!(fresh.cpus(), twice(moved));
        }
        all("0");
        fresh.0.update(&Limits { pids_limit: Some(i64::MAX), ..cpus("1") }).unwrap_err();
        all("0");
    }
    let inside = fresh.0.inside().unwrap();
    let (kind, directory) = inside.home(Controller::Cpu).unwrap();
    let burst = if kind == Kind::V1 { "cpu.cfs_burst_us" } else { "cpu.max.burst" };
    std::fs::write(directory.join(burst), "15000").unwrap();
    fresh.0.update(&cpu(10_000, 0)).unwrap();
    std::fs::write(directory.join("cpu.idle"), "1").unwrap();
    fresh.0.update(&Limits { cpu_shares: Some(2048), ..Limits::default() }).unwrap();
    let shares = fresh.both(Controller::Cpu, "cpu.shares", "cpu.weight");
    assert_eq!(shares[0], shares[1]);
}

#[test]
fn the_cgroups_that_a_container_makes_are_bounded_from_above() {
    let fresh = Fresh::enclosed("bounded", &memory(64 * MIB));
    let (above, mut inside) = (fresh.0.unified().unwrap(), fresh.0.inside().unwrap().unified().unwrap());
    assert_eq!(read(&above.join("cgroup.max.descendants")), "4097");
    let nested = (0..100).take_while(|_| {
        inside.push("x");
        std::fs::create_dir(&inside).is_ok()
    });
    assert_eq!(nested.count(), 14);
    let lower = [("cgroup.max.descendants".to_owned(), "3".to_owned())].into();
    let asked = Fresh::enclosed("asked", &Limits { unified: lower, ..Limits::default() });
    assert_eq!(read(&asked.0.unified().unwrap().join("cgroup.max.descendants")), "4", "one is the inner one");
}

#[test]
fn what_takes_long_is_removed_in_parts() {
    let fresh = Fresh::enclosed("parts", &memory(64 * MIB));
    let directory = fresh.0.inside().unwrap().kill_directory();
    (0..500).for_each(|number| std::fs::create_dir(directory.join(number.to_string())).unwrap());
    let mut parts = 0;
    loop {
        match fresh.0.remove_some(std::time::Duration::from_millis(1)) {
            Ok(Removed::All) => break,
            Ok(Removed::Some) => parts += 1,
            // The machine was busy with something else.
            Err(error) => assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error:?}"),
        }
    }
    assert!(parts > 1 && !fresh.0.kill_directory().exists());
}

#[test]
fn a_refused_change_is_undone_in_both() {
    let before = Limits { cpuset_cpus: Some("0".into()), pids_limit: Some(10), ..cpu(50_000, 100_000) };
    let fresh = Fresh::enclosed("undone", &before);
    fresh.0.update(&memory(64 * MIB)).unwrap();
    let quotas = fresh.quotas();
    for bad in [
        Limits { cpuset_cpus: Some("4095".into()), ..cpu(80_000, 100_000) },
        Limits { cpuset_cpus: Some("1".into()), pids_limit: Some(i64::MAX), ..memory(128 * MIB) },
        Limits { cpuset_cpus: Some("1".into()), pids_limit: Some(i64::MAX), ..cpu(10_000, 100_000) },
    ] {
        let error = fresh.0.update(&bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");
        assert_eq!(fresh.cpus(), twice("0"));
        assert_eq!(fresh.quotas(), quotas);
        assert_eq!(fresh.memory_limits(), twice(&(64 * MIB).to_string()));
        assert_eq!(fresh.both(Controller::Pids, "pids.max", "pids.max"), twice("10"));
    }
}

#[test]
fn an_oom_kill_counts_whichever_limit_was_the_reason() {
    let limit = Limits { memory_limit_bytes: Some(16 * MIB), ..Limits::default() };
    let fresh = Fresh::enclosed("oom", &limit);
    assert_eq!(fresh.0.oom_kills().unwrap(), Some(0));
    for (lifted, kills) in [(false, 1), (true, 2)] {
        if lifted {
            fresh.0.inside().unwrap().update(&memory(-1)).unwrap();
        }
        // tail keeps its only line in memory.
        let mut shell = Shell::enter(&fresh.0.entry(), "exec tail -n 1 /dev/zero");
        assert_eq!(shell.end(), Some(9));
        assert_eq!(fresh.0.oom_kills().unwrap(), Some(kills));
        let stats = fresh.0.stats(Extent::Everything).memory;
        assert_eq!(stats.oom_kills, Some(kills));
        assert!(stats.limit_hits.unwrap() >= kills, "{stats:?}");
    }
}

#[test]
fn throttling_counts_whichever_quota_was_the_reason() {
    for name in ["throttled-above", "throttled-inside"] {
        let fresh = Fresh::enclosed(name, &cpu(2_000, 10_000));
        if name == "throttled-above" {
            fresh.0.inside().unwrap().update(&cpu(-1, 0)).unwrap();
        }
        let _shell = Shell::enter(&fresh.0.entry(), "while :; do :; done");
        let deadline = std::time::Instant::now() + PATIENCE;
        let throttled = || fresh.0.stats(Extent::Everything).cpu;
        // Not the time: on a busy machine the shell would not have run meanwhile, and Linux 6.18 does not count that.
        while throttled().throttled_periods == Some(0) {
            assert!(std::time::Instant::now() < deadline, "{:?}", throttled());
            std::thread::yield_now();
        }
        let cpu = throttled();
        assert!(cpu.throttled_ns.is_some() && cpu.periods >= cpu.throttled_periods, "{cpu:?}");
    }
}

#[test]
fn device_rules_are_changed_in_both() {
    let zero = vec![DeviceRule::allow(DeviceType::Char, Some(1), Some(5), Access::ALL)];
    let devices = |rules: &Vec<DeviceRule>| Limits { devices: Some(rules.clone()), ..Limits::default() };
    let fresh = Fresh::enclosed("devices", &devices(&zero));
    let can_write = |device: &str| {
        let script = format!("if (: > {device}) 2>&-; then echo yes; else echo no; fi");
        Shell::enter(&fresh.0.entry(), &script).line() == "yes"
    };
    assert!(can_write("/dev/zero") && !can_write("/dev/null"));
    fresh.0.update(&devices(&default_devices())).unwrap();
    assert!(can_write("/dev/zero") && can_write("/dev/null"));
    let refused = Limits { pids_limit: Some(i64::MAX), ..devices(&zero) };
    assert!(fresh.0.update(&refused).is_err());
    assert!(can_write("/dev/null"));
    fresh.0.update(&devices(&zero)).unwrap();
    assert!(can_write("/dev/zero") && !can_write("/dev/null"));
}
