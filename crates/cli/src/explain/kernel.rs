//! What the kernel's log says about containers: who was killed because memory ran out, and which calls seccomp refused.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;

use nix::errno::Errno;
use nix::fcntl::OFlag;

/// A process that the kernel killed because memory ran out.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct OomKill {
    pub(super) victim: String,
    pub(super) pid: u32,
    /// The cgroup whose limit was reached; `None` if the machine's memory ran out.
    pub(super) limited: Option<String>,
    /// The cgroup of the victim.
    pub(super) of: String,
    /// How much memory of its own it had.
    pub(super) anonymous_bytes: Option<u64>,
}

/// A process that was killed for a call that its seccomp profile does not allow.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub(super) program: String,
    pub(super) call: u32,
    /// In hundredths of a second since the epoch.
    at_cs: i64,
}

/// What was found in the kernel's log.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Kernel {
    pub(super) oom_kills: Vec<OomKill>,
    pub(super) refusals: Vec<Refusal>,
}

impl Kernel {
    /// Reads the log; nothing is found if it cannot be read.
    pub(super) fn read() -> Self {
        Self::parse(&messages())
    }

    fn parse(messages: &str) -> Self {
        let lines = || messages.lines();
        let mut oom_kills: Vec<OomKill> = lines().filter_map(oom_kill).collect();
        for (pid, bytes) in lines().filter_map(killed) {
            if let Some(kill) = oom_kills.iter_mut().rfind(|kill| kill.pid == pid) {
                kill.anonymous_bytes = Some(bytes);
            }
        }
        Self { oom_kills, refusals: lines().filter_map(refusal).collect() }
    }

    /// The last process of a container that was killed, by the container's id, which the path of its cgroup has.
    pub(super) fn oom_kill_in(&self, id: &str) -> Option<&OomKill> {
        self.oom_kills.iter().rfind(|kill| kill.of.contains(id))
    }

    /// The call for which a process was killed at this time. The log does not say of which container it was.
    pub(super) fn refusal_at(&self, ns: i64) -> Option<&Refusal> {
        const NEAR_CS: i64 = 100;
        let near = |refusal: &&Refusal| (refusal.at_cs - ns / 10_000_000).abs() <= NEAR_CS;
        self.refusals.iter().rfind(near)
    }
}

/// All messages that the kernel still has, a line each.
fn messages() -> String {
    let mut all = Vec::new();
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg");
    let Ok(mut log) = opened else { return String::new() };
    let mut message = [0; 8192];
    loop {
        match log.read(&mut message) {
            Ok(0) => break,
            Ok(length) => all.extend(&message[..length]),
            // Messages were overwritten before they were read: it goes on with the oldest.
            Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => {}
            Err(_end) => break,
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// The text between two others.
fn between<'a>(line: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = line.split_once(before)?.1;
    Some(rest.split_once(after).map_or(rest, |(text, _)| text))
}

/// `oom-kill:constraint=…,oom_memcg=…,task_memcg=…,task=…,pid=…,uid=…`.
fn oom_kill(line: &str) -> Option<OomKill> {
    let line = line.split_once(";oom-kill:")?.1;
    // A program may have any name.
    let (head, tail) = line.rsplit_once(",pid=")?;
    let (head, victim) = head.split_once(",task=")?;
    Some(OomKill {
        victim: victim.to_owned(),
        pid: tail.split(',').next()?.parse().ok()?,
        limited: between(head, ",oom_memcg=", ",task_memcg=").map(str::to_owned),
        of: head.split_once(",task_memcg=")?.1.to_owned(),
        anonymous_bytes: None,
    })
}

/// `…: Killed process 123 (name) total-vm:…kB, anon-rss:…kB, …`.
fn killed(line: &str) -> Option<(u32, u64)> {
    let pid = between(line, ": Killed process ", " ")?.parse().ok()?;
    let kib: u64 = between(line, ", anon-rss:", "kB")?.parse().ok()?;
    Some((pid, kib * 1024))
}

/// `audit: type=1326 audit(1764600000.123:45): … comm="x" exe="/x" sig=31 arch=… syscall=169 …`.
fn refusal(line: &str) -> Option<Refusal> {
    let line = line.split_once("type=1326 audit(")?.1;
    let (seconds, hundredths) = between(line, "", ":")?.split_once('.')?;
    let at_cs = seconds.parse::<i64>().ok()? * 100 + hundredths.get(..2)?.parse::<i64>().ok()?;
    let program = between(line, " comm=", " sig=")?.split(" exe=").next()?.trim_matches('"').to_owned();
    let is_killed = between(line, " sig=", " ")? == "31";
    is_killed.then_some(Refusal { program, call: between(line, " syscall=", " ")?.parse().ok()?, at_cs })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
6,900,100;tail invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
6,901,101;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c1,mems_allowed=0,oom_memcg=/wharf/p1/c1,task_memcg=/wharf/p1/c1/container,task=a,pid=1,pid=95,uid=0
3,902,102;Memory cgroup out of memory: Killed process 95 (a,pid=1) total-vm:34648kB, anon-rss:32000kB, file-rss:1528kB
6,903,103;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=c2,mems_allowed=0,global_oom,task_memcg=/wharf/p1/c2,task=b,pid=96,uid=0
5,904,104;audit: type=1326 audit(1764600000.129:45): auid=4294967295 uid=0 gid=0 ses=4294967295 pid=97 comm=\"mkdir\" exe=\"/bin/busybox\" sig=31 arch=c000003e syscall=83 compat=0 ip=0x4 code=0x80000000
5,905,105;audit: type=1326 audit(1764600900.129:46): auid=1 uid=0 pid=98 comm=\"logged\" exe=\"/x\" sig=0 arch=c000003e syscall=84 compat=0 ip=0x4 code=0x7ffc0000
6,906,106;oom-kill:constraint=CONSTRAINT_MEMCG
";

    #[test]
    fn who_was_killed_and_by_which_limit_is_read() {
        let kernel = Kernel::parse(LOG);
        let kill = kernel.oom_kill_in("c1").unwrap();
        assert_eq!((kill.victim.as_str(), kill.pid, kill.anonymous_bytes), ("a,pid=1", 95, Some(32_768_000)));
        assert_eq!(kill.limited.as_deref(), Some("/wharf/p1/c1"));
        let global = kernel.oom_kill_in("c2").unwrap();
        assert_eq!((&global.limited, global.victim.as_str(), global.anonymous_bytes), (&None, "b", None));
        assert_eq!((kernel.oom_kill_in("c3"), kernel.oom_kills.len()), (None, 2));
    }

    #[test]
    fn a_call_that_was_refused_is_found_by_its_time() {
        const AT_NS: i64 = 1_764_600_000_129_000_000;
        let kernel = Kernel::parse(LOG);
        let [refusal] = kernel.refusals.as_slice() else { panic!("{kernel:?}") };
        assert_eq!((refusal.program.as_str(), refusal.call), ("mkdir", 83));
        assert_eq!(kernel.refusal_at(AT_NS + 900_000_000), Some(refusal));
        assert_eq!(kernel.refusal_at(AT_NS + 2_000_000_000), None, "another container's");
    }

    #[test]
    fn a_log_that_says_nothing_is_nothing() {
        for log in ["", ";oom-kill:", "type=1326 audit(", "type=1326 audit(x): sig=31", ": Killed process x"]
        {
            assert_eq!(Kernel::parse(log), Kernel::default(), "{log}");
        }
    }
}
