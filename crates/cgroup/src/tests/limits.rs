//! Limits that the kernel enforces, and updates that fail.

use super::{Fresh, Shell, read};
use crate::detect::Kind;
use crate::{BlockDevice, Controller, Io, Limits, Rate};
use wharf_types::{ErrorKind, Failure};

const MIB: i64 = 1 << 20;

/// The value of the file for this node's version.
fn value(fresh: &Fresh, controller: Controller, v1: &str, v2: &str) -> String {
    let (kind, directory) = fresh.0.home(controller).unwrap();
    read(&directory.join(if kind == Kind::V1 { v1 } else { v2 }))
}

fn memory_limit(fresh: &Fresh) -> String {
    value(fresh, Controller::Memory, "memory.limit_in_bytes", "memory.max")
}

fn memory(limit: i64, both: i64) -> Limits {
    Limits { memory_limit_bytes: Some(limit), memory_swap_limit_bytes: Some(both), ..Limits::default() }
}

#[test]
fn every_limit_arrives() {
    let fresh = Fresh::new("apply");
    let limits = Limits {
        cpu_shares: Some(512),
        cpu_period_us: Some(50_000),
        cpu_quota_us: Some(20_000),
        cpuset_cpus: Some("0".into()),
        cpuset_mems: Some("0".into()),
        pids_limit: Some(77),
        hugepages: vec![crate::HugepageLimit { page_size: "2MB".into(), limit_bytes: 0 }],
        ..memory(64 * MIB, 64 * MIB)
    };
    fresh.0.apply(&limits).unwrap();
    assert_eq!(memory_limit(&fresh), (64 * MIB).to_string());
    assert_eq!(value(&fresh, Controller::Pids, "pids.max", "pids.max"), "77");
    assert_eq!(value(&fresh, Controller::Cpuset, "cpuset.cpus", "cpuset.cpus"), "0");
    let cpu = value(&fresh, Controller::Cpu, "cpu.cfs_quota_us", "cpu.max");
    assert!(["20000", "20000 50000"].contains(&cpu.as_str()), "{cpu}");
    let shares = value(&fresh, Controller::Cpu, "cpu.shares", "cpu.weight");
    assert!(["512", "59"].contains(&shares.as_str()), "{shares}");
}

#[test]
fn what_only_a_spec_can_ask_for_arrives() {
    let fresh = Fresh::new("spec");
    let limits = Limits {
        cpu_quota_us: Some(20_000),
        cpu_burst_us: Some(10_000),
        memory_reservation_bytes: Some(16 * MIB),
        ..memory(64 * MIB, 64 * MIB)
    };
    fresh.0.apply(&limits).unwrap();
    assert_eq!(value(&fresh, Controller::Cpu, "cpu.cfs_burst_us", "cpu.max.burst"), "10000");
    let reserved = value(&fresh, Controller::Memory, "memory.soft_limit_in_bytes", "memory.low");
    assert_eq!(reserved, (16 * MIB).to_string());
    let idle = |idle| Limits { cpu_idle: Some(idle), ..Limits::default() };
    for (now, shown) in [(true, "1"), (false, "0")] {
        fresh.0.update(&idle(now)).unwrap();
        assert_eq!(value(&fresh, Controller::Cpu, "cpu.idle", "cpu.idle"), shown);
    }
    let swappiness = fresh.0.update(&Limits { memory_swappiness: Some(7), ..Limits::default() });
    match fresh.0.home(Controller::Memory).unwrap().0 {
        Kind::V1 => assert_eq!(value(&fresh, Controller::Memory, "memory.swappiness", ""), "7"),
        Kind::Unified => assert_eq!(swappiness.unwrap_err().kind(), ErrorKind::InvalidArgument),
    }
}

#[test]
fn rates_of_a_device_are_set_and_taken_back_with_what_fails() {
    let fresh = Fresh::new("rates");
    // The kernel knows it whether or not it has a medium.
    let number = std::fs::read_dir("/sys/dev/block").unwrap().flatten().next().expect("a block device");
    let number = number.file_name().into_string().unwrap();
    let (major, minor) = number.split_once(':').unwrap();
    let device = BlockDevice { major: major.parse().unwrap(), minor: minor.parse().unwrap() };
    let no_device = BlockDevice { major: 4095, minor: 1 };
    let limits = |rates: &[(BlockDevice, u64)]| {
        let rates = rates.iter().map(|(device, bytes)| (*device, Rate::ReadBytes, *bytes)).collect();
        Limits { io: Io { rates, ..Io::default() }, ..Limits::default() }
    };
    let held = || value(&fresh, Controller::Io, "blkio.throttle.read_bps_device", "io.max");
    assert!(fresh.0.update(&limits(&[(device, 1 << 20), (no_device, 1)])).is_err());
    assert_eq!(held(), "", "a refused update leaves nothing");
    fresh.0.update(&limits(&[(device, 1 << 20)])).unwrap();
    assert!(held().starts_with(&number) && held().contains("1048576"), "{}", held());
    assert!(fresh.0.update(&limits(&[(device, 1 << 21), (no_device, 1)])).is_err());
    assert!(held().contains("1048576"), "{}", held());
    fresh.0.update(&limits(&[(device, 0)])).unwrap();
    assert_eq!(held(), "");
}

#[test]
fn memory_goes_up_and_down_in_either_order() {
    let fresh = Fresh::new("memory");
    fresh.0.apply(&memory(64 * MIB, 64 * MIB)).unwrap();
    fresh.0.update(&memory(128 * MIB, 128 * MIB)).unwrap();
    assert_eq!(memory_limit(&fresh), (128 * MIB).to_string());
    fresh.0.update(&memory(32 * MIB, 48 * MIB)).unwrap();
    assert_eq!(memory_limit(&fresh), (32 * MIB).to_string());
    fresh.0.update(&memory(-1, 0)).unwrap();
    assert!(memory_limit(&fresh).parse::<u64>().is_err() || memory_limit(&fresh).len() == 19);
}

#[test]
fn memory_goes_up_beside_a_limit_on_swap() {
    let fresh = Fresh::new("swap");
    fresh.0.apply(&memory(64 * MIB, 96 * MIB)).unwrap();
    for limit in [256 * MIB, 128 * MIB] {
        fresh.0.update(&memory(limit, 0)).unwrap();
        assert_eq!(memory_limit(&fresh), limit.to_string());
        let swap = value(&fresh, Controller::Memory, "memory.memsw.limit_in_bytes", "memory.swap.max");
        assert!([32 * MIB, limit + 32 * MIB].map(|bytes| bytes.to_string()).contains(&swap), "{swap}");
    }
}

#[test]
fn memory_that_is_used_is_not_taken_away_where_the_kernel_refuses_that() {
    let fresh = Fresh::new("used");
    fresh.0.apply(&memory(64 * MIB, 64 * MIB)).unwrap();
    let used = "used=$(head -c 8000000 /dev/zero | tr '\\0' x); echo $#used; read forever";
    let mut shell = Shell::enter(&fresh.0.entry(), used);
    shell.line();
    let updated = fresh.0.update(&memory(MIB, MIB));
    let (kind, _) = fresh.0.home(Controller::Memory).unwrap();
    if kind == Kind::V1 {
        let error = updated.unwrap_err().to_string();
        assert!(error.contains("memory.limit_in_bytes") && !error.contains("memsw"), "{error}");
        assert_eq!(memory_limit(&fresh), (64 * MIB).to_string());
    } else {
        // It kills what does not fit.
        updated.unwrap();
    }
}

#[test]
fn a_score_is_of_every_process() {
    let fresh = Fresh::new("score");
    let mut shell = Shell::enter(&fresh.0.entry(), "sleep 1000 >/dev/null & echo started; read forever");
    assert_eq!(shell.line(), "started");
    let scores = || {
        let pids = fresh.0.pids().unwrap();
        pids.iter().map(|pid| read(format!("/proc/{pid}/oom_score_adj").as_ref())).collect::<Vec<_>>()
    };
    let before = scores();
    let old = fresh.0.set_oom_score(321).unwrap();
    assert_eq!(scores(), ["321", "321"]);
    let error = fresh.0.set_oom_score(1001).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");
    assert_eq!(scores(), ["321", "321"], "it is given to all or to none");
    old.restore();
    assert_eq!(scores(), before);
}

#[test]
fn unset_limits_stay() {
    let fresh = Fresh::new("unset");
    fresh.0.apply(&memory(64 * MIB, 0)).unwrap();
    fresh
        .0
        .update(&Limits { pids_limit: Some(50), memory_limit_bytes: Some(0), ..Limits::default() })
        .unwrap();
    assert_eq!(memory_limit(&fresh), (64 * MIB).to_string());
    assert_eq!(value(&fresh, Controller::Pids, "pids.max", "pids.max"), "50");
}

#[test]
fn a_failed_update_leaves_everything_as_it_was() {
    let fresh = Fresh::new("undo");
    let before = Limits { cpu_shares: Some(512), pids_limit: Some(10), ..memory(64 * MIB, 64 * MIB) };
    fresh.0.apply(&before).unwrap();
    let shares = value(&fresh, Controller::Cpu, "cpu.shares", "cpu.weight");
    // No kernel has this CPU. The memory pair comes after it, so pids fails as well in order that the rest runs before.
    for bad in [
        Limits { cpu_shares: Some(2048), cpuset_cpus: Some("4095".into()), ..memory(128 * MIB, 128 * MIB) },
        Limits { cpu_shares: Some(2048), pids_limit: Some(i64::MAX), ..memory(128 * MIB, 128 * MIB) },
        Limits { cpu_shares: Some(2048), pids_limit: Some(i64::MAX), ..memory(32 * MIB, 32 * MIB) },
    ] {
        let error = fresh.0.update(&bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");
        assert_eq!(memory_limit(&fresh), (64 * MIB).to_string());
        assert_eq!(value(&fresh, Controller::Cpu, "cpu.shares", "cpu.weight"), shares);
        assert_eq!(value(&fresh, Controller::Pids, "pids.max", "pids.max"), "10");
    }
    fresh.0.update(&memory(96 * MIB, 96 * MIB)).unwrap();
}

#[test]
fn an_update_that_cannot_read_what_it_would_restore_leaves_everything_as_it_was() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let fresh = Fresh::new("unread");
    fresh.0.apply(&Limits { cpu_shares: Some(512), ..memory(64 * MIB, 64 * MIB) }).unwrap();
    let shares = value(&fresh, Controller::Cpu, "cpu.shares", "cpu.weight");
    let (_, directory) = fresh.0.home(Controller::Pids).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            // Reading it fails with EIO.
            let unreadable = Some("/proc/thread-self/mem");
            mount(unreadable, &directory.join("pids.max"), none, MsFlags::MS_BIND, none).unwrap();
            let new = Limits { cpu_shares: Some(2048), pids_limit: Some(20), ..memory(128 * MIB, 128 * MIB) };
            assert!(matches!(fresh.0.update(&new), Err(crate::Error::Io { .. })));
        });
    });
    assert_eq!(value(&fresh, Controller::Cpu, "cpu.shares", "cpu.weight"), shares);
    assert_eq!(memory_limit(&fresh), (64 * MIB).to_string());
}

#[test]
fn an_impossible_limit_writes_nothing() {
    let fresh = Fresh::new("impossible");
    let error = fresh.0.apply(&memory(64 * MIB, 32 * MIB)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let missing =
        Limits { unified: [("memory.nothing".to_owned(), "1".to_owned())].into(), ..Limits::default() };
    assert!(fresh.0.update(&missing).is_err());
}

#[test]
fn what_takes_too_much_is_killed_and_counted() {
    let fresh = Fresh::new("oom");
    fresh.0.apply(&memory(16 * MIB, 16 * MIB)).unwrap();
    assert_eq!(fresh.0.oom_kills().unwrap(), Some(0));
    // tail keeps its only line in memory.
    let mut shell = Shell::enter(&fresh.0.entry(), "exec tail -n 1 /dev/zero");
    assert_eq!(shell.end(), Some(9));
    assert_eq!(fresh.0.oom_kills().unwrap(), Some(1));
    let text = read(&fresh.0.oom_file().unwrap());
    assert!(text.lines().any(|line| line == "oom_kill 1"), "{text}");
}
