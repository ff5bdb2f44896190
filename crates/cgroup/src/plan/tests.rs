//! Golden plans for limits.

use super::*;
use crate::limits::{BlockDevice, HugepageLimit, Rate};

/// Plans for a node with all controllers in one version, and shows `file=value`: pairs are joined by `|`, writes that
/// may be skipped end with `?`.
fn show(kind: Kind, limits: &Limits, cpu_max: Option<&str>) -> Result<String, Error> {
    let home = |_| Some(kind);
    let steps = plan(
        limits,
        Present {
            home: &home,
            cpu_max,
            memory: None,
            unified: kind == Kind::Unified,
            scheduler: Scheduler::Another,
        },
    )?;
    let write = |write: Write| {
        let skip = if write.missing == Missing::Skip { "?" } else { "" };
        format!("{}{skip}={}", write.file, write.value)
    };
    let step = |step| match step {
        Step::One(only) => write(only),
        Step::Pair(first, second) => format!("{}|{}", write(first), write(second)),
    };
    Ok(steps.into_iter().map(step).collect::<Vec<_>>().join(" "))
}

fn cpu(shares: u64, period: u64, quota: i64) -> Limits {
    Limits {
        cpu_shares: Some(shares),
        cpu_period_us: Some(period),
        cpu_quota_us: Some(quota),
        ..Limits::default()
    }
}

fn memory(limit: i64, both: i64) -> Limits {
    Limits { memory_limit_bytes: Some(limit), memory_swap_limit_bytes: Some(both), ..Limits::default() }
}

#[test]
fn what_a_new_cgroup_has_is_not_written() {
    for (limits, v1, v2) in [
        (cpu(1024, 100_000, -1), "", ""),
        (cpu(1024, 100_000, 50_000), "cpu.cfs_quota_us=50000", "cpu.max=50000 100000"),
        (cpu(2, 200_000, -1), "cpu.shares=2 cpu.cfs_period_us=200000", "cpu.weight=1 cpu.max=max 200000"),
    ] {
        let limits = beyond_defaults(&limits);
        assert_eq!(show(Kind::V1, &limits, None).unwrap(), v1);
        assert_eq!(show(Kind::Unified, &limits, Some("max 100000\n")).unwrap(), v2);
    }
}

fn files(files: &[(&str, &str)]) -> Limits {
    let unified = files.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect();
    Limits { unified, ..Limits::default() }
}

#[test]
fn golden_plans() {
    let whole = Limits {
        cpuset_cpus: Some("0-1".into()),
        cpuset_mems: Some("0".into()),
        pids_limit: Some(100),
        hugepages: vec![HugepageLimit { page_size: "2MB".into(), limit_bytes: 0 }],
        ..memory(1000, 1000)
    };
    for (limits, v1, v2) in [
        (Limits::default(), "", ""),
        (cpu(0, 0, 0), "", ""),
        (
            cpu(1024, 100_000, 50_000),
            "cpu.shares=1024 cpu.cfs_period_us=100000|cpu.cfs_quota_us=50000",
            "cpu.weight=100 cpu.max=50000 100000",
        ),
        (cpu(2, 0, -1), "cpu.shares=2 cpu.cfs_quota_us=-1", "cpu.weight=1 cpu.max=max 100000"),
        (memory(0, 0), "", ""),
        (memory(1000, 0), "memory.limit_in_bytes=1000", "memory.max=1000"),
        (
            memory(1000, 1500),
            "memory.limit_in_bytes=1000|memory.memsw.limit_in_bytes?=1500",
            "memory.swap.max?=500 memory.max=1000",
        ),
        (
            memory(1000, -1),
            "memory.limit_in_bytes=1000|memory.memsw.limit_in_bytes?=-1",
            "memory.swap.max?=max memory.max=1000",
        ),
        (
            memory(-1, 0),
            "memory.limit_in_bytes=-1|memory.memsw.limit_in_bytes?=-1",
            "memory.swap.max?=max memory.max=max",
        ),
        (Limits { pids_limit: Some(-1), ..Limits::default() }, "pids.max=max", "pids.max=max"),
        (
            whole,
            "cpuset.cpus=0-1 cpuset.mems=0 memory.limit_in_bytes=1000|memory.memsw.limit_in_bytes?=1000 pids.max=100 \
          hugetlb.2MB.limit_in_bytes?=0 hugetlb.2MB.rsvd.limit_in_bytes?=0",
            "cpuset.cpus=0-1 cpuset.mems=0 memory.swap.max?=0 memory.max=1000 pids.max=100 \
          hugetlb.2MB.max?=0 hugetlb.2MB.rsvd.max?=0",
        ),
    ] {
        assert_eq!(show(Kind::V1, &limits, None).unwrap(), v1, "v1 of {limits:?}");
        assert_eq!(show(Kind::Unified, &limits, None).unwrap(), v2, "v2 of {limits:?}");
    }
}

#[test]
fn a_new_period_keeps_the_quota_and_a_new_quota_the_period() {
    let held = Some("20000 50000\n");
    assert_eq!(show(Kind::Unified, &cpu(0, 80_000, 0), held).unwrap(), "cpu.max=20000 80000");
    assert_eq!(show(Kind::Unified, &cpu(0, 0, 30_000), held).unwrap(), "cpu.max=30000 50000");
    assert_eq!(show(Kind::Unified, &cpu(0, 0, -1), held).unwrap(), "cpu.max=max 50000");
}

#[test]
fn what_only_a_spec_can_ask_for() {
    let device = BlockDevice { major: 8, minor: 16 };
    let io = Io {
        weight: Some(500),
        weights: vec![(device, 10), (device, 1000)],
        rates: vec![(device, Rate::ReadBytes, 1024), (device, Rate::Writes, 0)],
    };
    for (limits, v1, v2) in [
        (
            Limits { cpu_burst_us: Some(5), cpu_idle: Some(true), ..cpu(2, 0, 9) },
            "cpu.shares=2 cpu.cfs_quota_us=9 cpu.cfs_burst_us=5 cpu.idle=1",
            "cpu.weight=1 cpu.max=9 100000 cpu.max.burst=5 cpu.idle=1",
        ),
        (Limits { cpu_idle: Some(false), ..Limits::default() }, "cpu.idle=0", "cpu.idle=0"),
        (
            Limits { memory_reservation_bytes: Some(500), ..memory(1000, 1000) },
            "memory.limit_in_bytes=1000|memory.memsw.limit_in_bytes?=1000 memory.soft_limit_in_bytes=500",
            "memory.swap.max?=0 memory.max=1000 memory.low=500",
        ),
        (
            Limits { memory_reservation_bytes: Some(-1), ..Limits::default() },
            "memory.soft_limit_in_bytes=-1",
            "memory.low=max",
        ),
        (
            Limits { io, ..Limits::default() },
            "blkio.weight=500 blkio.weight_device=8:16 10 blkio.weight_device=8:16 1000 \
             blkio.throttle.read_bps_device=8:16 1024 blkio.throttle.write_iops_device=8:16 0",
            "io.weight=4950 io.weight=8:16 1 io.weight=8:16 10000 io.max=8:16 rbps=1024 io.max=8:16 wiops=max",
        ),
    ] {
        assert_eq!(show(Kind::V1, &limits, None).unwrap(), v1, "v1 of {limits:?}");
        assert_eq!(show(Kind::Unified, &limits, None).unwrap(), v2, "v2 of {limits:?}");
    }
    let swappiness = Limits { memory_swappiness: Some(10), ..Limits::default() };
    assert_eq!(show(Kind::V1, &swappiness, None).unwrap(), "memory.swappiness=10");
    assert!(show(Kind::Unified, &swappiness, None).is_err());
    for weight in [9, 1001] {
        let io = Io { weight: Some(weight), ..Io::default() };
        assert!(show(Kind::V1, &Limits { io, ..Limits::default() }, None).is_err());
    }
}

#[test]
fn a_file_of_v2_needs_its_controller_there() {
    let home = |controller| Some(if controller == Controller::Hugetlb { Kind::Unified } else { Kind::V1 });
    let present =
        Present { home: &home, cpu_max: None, memory: None, unified: true, scheduler: Scheduler::Another };
    let refused = plan(&files(&[("memory.high", "900")]), present).unwrap_err();
    assert!(matches!(refused, Error::NotUnified { controller: Controller::Memory, .. }), "{refused}");
    assert_eq!(plan(&files(&[("hugetlb.2MB.max", "0")]), present).unwrap().len(), 1);
}

#[test]
fn files_of_v2_come_last_and_are_checked() {
    let mut limits = files(&[("memory.oom.group", "1"), ("memory.high", "900")]);
    limits.memory_limit_bytes = Some(1000);
    assert_eq!(
        show(Kind::Unified, &limits, None).unwrap(),
        "memory.max=1000 memory.high=900 memory.oom.group=1"
    );
    assert!(show(Kind::V1, &limits, None).is_err());
    for file in
        ["cgroup.procs", "cgroup.kill", "../memory.max", "a/b.c", "", ".", "..", "Memory.max", "memory"]
    {
        assert!(show(Kind::Unified, &files(&[(file, "1")]), None).is_err(), "{file:?}");
    }
    assert!(show(Kind::Unified, &files(&[("memory.high", "1\0")]), None).is_err());
}

#[test]
fn impossible_memory_is_refused() {
    for kind in [Kind::V1, Kind::Unified] {
        assert!(show(kind, &memory(1000, 999), None).is_err());
        assert!(show(kind, &memory(-1, 999), None).is_err());
    }
    assert!(show(Kind::Unified, &memory(0, 1000), None).is_err());
}

#[test]
fn a_missing_controller_is_named_but_for_hugetlb() {
    let home = |_| None;
    let present =
        Present { home: &home, cpu_max: None, memory: None, unified: true, scheduler: Scheduler::Another };
    assert!(matches!(
        plan(&memory(1000, 0), present),
        Err(Error::NoController { controller: Controller::Memory, .. })
    ));
    let hugepages = vec![HugepageLimit { page_size: "2MB".into(), limit_bytes: 0 }];
    assert!(plan(&Limits { hugepages, ..Limits::default() }, present).unwrap().is_empty());
}

#[test]
fn a_page_size_cannot_lead_elsewhere() {
    for size in ["", "../x", "2mb", "2MB.max"] {
        let hugepages = vec![HugepageLimit { page_size: size.into(), limit_bytes: 0 }];
        assert!(show(Kind::Unified, &Limits { hugepages, ..Limits::default() }, None).is_err(), "{size:?}");
    }
}

#[test]
fn a_hybrid_node_gets_files_of_both_kinds() {
    let home = |controller| Some(if controller == Controller::Hugetlb { Kind::Unified } else { Kind::V1 });
    let limits = Limits {
        hugepages: vec![HugepageLimit { page_size: "1GB".into(), limit_bytes: 7 }],
        ..memory(1000, 0)
    };
    let steps = plan(
        &limits,
        Present { home: &home, cpu_max: None, memory: None, unified: true, scheduler: Scheduler::Another },
    )
    .unwrap();
    let names: Vec<_> = steps
        .iter()
        .map(|step| match step {
            Step::One(write) | Step::Pair(write, _) => write.file.as_str(),
        })
        .collect();
    assert_eq!(names, ["memory.limit_in_bytes", "hugetlb.1GB.max", "hugetlb.1GB.rsvd.max"]);
}

#[test]
fn what_may_be_swapped_stays_when_memory_changes() {
    let plan_v1 = |limits: &Limits, memory| {
        let home = |_| Some(Kind::V1);
        plan(
            limits,
            Present { home: &home, cpu_max: None, memory, unified: false, scheduler: Scheduler::Another },
        )
        .unwrap()
    };
    let both = |limit: i64, both: i64, held| match &plan_v1(&memory(limit, both), held)[..] {
        [Step::One(_only)] => None,
        [Step::Pair(_memory, both)] => Some(both.value.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(both(300, 0, Some((100, 150))), Some("350".into()));
    assert_eq!(both(50, 0, Some((100, 100))), Some("50".into()));
    assert_eq!(both(300, 400, Some((100, 150))), Some("400".into()));
    assert_eq!(both(300, 0, Some((100, 9_223_372_036_854_771_712))), None);
    assert_eq!(both(300, 0, None), None);
}
