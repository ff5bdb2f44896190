//! Checks beside a wharfd that cannot be reached: why, and whether a disk is what it waits for.

use std::path::Path;

use super::disk::disk;
use super::mend::{CommandLine, Remedy};
use super::service::LOG;
use super::{Check, bounded, process, source};
use crate::args::SOCKET;
use crate::error::{Error, is_zombie};

/// Where wharfd has its data unless it is configured otherwise.
const ROOT: &str = "/var/lib/wharf";

/// Where systemd looks for units, the first place first.
const UNITS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// What keeps a process from going on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// A signal.
    Stopped,
    /// The process with this id, which may be at work with it.
    Traced(String),
}

impl Halt {
    /// What there is to say of one that is traced.
    pub(super) fn traced(&self, pid: &str) -> Option<String> {
        let Self::Traced(tracer) = self else { return None };
        Some(format!(
            "process {tracer} (TracerPid) traces {pid}, and no signal continues it: have that one detach"
        ))
    }
}

/// Why wharfd cannot be reached. If it may be waiting for a disk, the usual ones are looked at.
pub(super) fn checks(error: &Error, state: &Path) -> Vec<Check> {
    let told = reason(error, &UNITS.map(Path::new));
    match error {
        Error::Unresponsive { .. } | Error::NotListening { .. } | Error::File { .. } => {
            let places = [
                ("disk", Path::new(ROOT)),
                ("state", state),
                (bounded::LOGS, Path::new(wharf_types::POD_LOGS)),
            ];
            let mut checks: Vec<Check> = places.into_iter().map(|(what, place)| usual(what, place)).collect();
            checks.push(told);
            checks
        }
        _ => vec![told],
    }
}

/// The check of the disk of a place, which wharfd need not be configured to have.
fn usual(what: &'static str, place: &Path) -> Check {
    bounded::check(what, place, move |place| match place.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Check::ok(what, format!("nothing is at {}", place.display()))
        }
        _ => disk(what, place, "remove other files on that file system"),
    })
}

/// Why wharfd cannot be reached. One that is not running is started if its unit is enabled: whoever disabled or
/// masked it did not want it to run.
fn reason(error: &Error, units: &[&Path]) -> Check {
    const WHAT: &str = "wharfd";
    let text = wharf_types::chain(error);
    let (found, advice) = text.split_once("\n  ").unwrap_or((&text, LOG));
    let unit =
        units.iter().map(|place| place.join(process::UNIT)).find(|unit| unit.is_symlink() || unit.exists());
    let told = Check::fail(WHAT, found, advice.replace("\n  ", "; "));
    match error {
        Error::NotRunning { socket } if is_usual(socket) && unit.is_some_and(|unit| unit.is_file()) => {
            if !is_enabled(units) {
                let advice =
                    "its unit is not enabled: if it is to run, systemctl enable --now wharfd.service";
                return Check::fail(WHAT, found, advice);
            }
            let start = CommandLine::new(&format!("systemctl start {}", process::UNIT));
            Check::fail(WHAT, found, format!("start it; if it ends, {LOG}")).mended_by(vec![start])
        }
        // One that was killed cannot be restarted, and of an unknown one nothing is known.
        Error::Unresponsive { pid: Some(pid) } if !is_zombie(*pid) => match halt(&status(&pid.to_string())) {
            Some(Halt::Stopped) => {
                let go_on = CommandLine::new(&format!("kill -CONT {pid}"));
                Check::fail(WHAT, found, "it was stopped: continue it").mended_by(vec![go_on])
            }
            Some(traced) => Check::fail(WHAT, found, traced.traced(&pid.to_string()).unwrap_or_default()),
            None => told.left_as(Remedy::Restart),
        },
        Error::SocketRemoved { .. } => told.left_as(Remedy::Restart),
        _ => told,
    }
}

/// Whether a socket is the one that the unit's wharfd listens on unless it is configured otherwise.
fn is_usual(socket: &Path) -> bool {
    SOCKET.strip_prefix("unix://").is_some_and(|usual| socket == Path::new(usual))
}

/// Whether something that systemd starts wants the unit.
fn is_enabled(units: &[&Path]) -> bool {
    let wants = |place: &Path, name: String| {
        name.ends_with(".wants") && place.join(name).join(process::UNIT).is_symlink()
    };
    let mut places = units.iter().filter_map(|place| Some((place, source::names(place).ok()?)));
    places.any(|(place, names)| names.into_iter().any(|name| wants(place, name)))
}

/// A process's `status`; empty if it is gone.
pub(super) fn status(pid: &str) -> String {
    source::text(&Path::new("/proc").join(pid).join("status")).unwrap_or_default()
}

/// What a process's `status` says of why it does not go on.
pub(super) fn halt(status: &str) -> Option<Halt> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    match field("State:\t")?.chars().next()? {
        'T' => Some(Halt::Stopped),
        't' => Some(Halt::Traced(field("TracerPid:\t").unwrap_or("?").to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::Verdict;
    use super::super::bounded::tests::of_silent;
    use super::*;

    #[test]
    fn a_wharfd_that_is_not_running_is_started_by_its_unit() {
        let dir = tempfile::tempdir().unwrap();
        let [etc, lib] = ["etc", "lib"].map(|name| dir.path().join(name));
        [&etc, &lib].iter().for_each(|place| std::fs::create_dir(place).unwrap());
        let remedy = |error: &Error| reason(error, &[&etc, &lib]).remedy;
        let not_running = |socket: &str| Error::NotRunning { socket: PathBuf::from(socket) };
        assert_eq!(remedy(&not_running("/run/wharf/wharf.sock")), Remedy::Judgement, "there is no unit");
        std::fs::write(lib.join("wharfd.service"), "").unwrap();
        let disabled = reason(&not_running("/run/wharf/wharf.sock"), &[&etc, &lib]);
        assert_eq!(disabled.remedy, Remedy::Judgement, "it is not enabled");
        assert!(disabled.advice.contains("systemctl enable"), "{disabled:?}");
        let wants = etc.join("multi-user.target.wants");
        std::fs::create_dir(&wants).unwrap();
        std::os::unix::fs::symlink(lib.join("wharfd.service"), wants.join("wharfd.service")).unwrap();
        // systemd refuses to reset a unit that it has not loaded.
        let start = CommandLine::new("systemctl start wharfd.service");
        assert_eq!(remedy(&not_running("/run/wharf/wharf.sock")), Remedy::Commands(vec![start]));
        assert_eq!(remedy(&not_running("/run/another.sock")), Remedy::Judgement);
        assert_eq!(
            remedy(&Error::SocketRemoved { socket: PathBuf::from("/run/wharf/wharf.sock"), pid: 7 }),
            Remedy::Restart
        );
        std::os::unix::fs::symlink("/dev/null", etc.join("wharfd.service")).unwrap();
        assert_eq!(remedy(&not_running("/run/wharf/wharf.sock")), Remedy::Judgement, "it is masked");
    }

    #[test]
    fn a_wharfd_that_no_signal_continues_is_left() {
        let traced = "Name:\tx\nState:\tt (tracing stop)\nTracerPid:\t7\n";
        assert_eq!(halt(traced), Some(Halt::Traced("7".to_owned())));
        assert_eq!(halt("State:\tT (stopped)\nTracerPid:\t0\n"), Some(Halt::Stopped));
        assert_eq!((halt("State:\tS (sleeping)\n"), halt("")), (None, None));
        assert_eq!(reason(&Error::Unresponsive { pid: None }, &[]).remedy, Remedy::Judgement);
    }

    #[test]
    fn beside_a_wharfd_that_does_not_respond_its_usual_disks_are_looked_at() {
        of_silent(|place| usual("disk", place));
        let state = tempfile::tempdir().unwrap();
        let whats = |error: &Error| checks(error, state.path()).iter().map(|it| it.what).collect::<Vec<_>>();
        assert_eq!(whats(&Error::Unresponsive { pid: None }), ["disk", "state", "logs", "wharfd"]);
        assert_eq!(whats(&Error::NotRunning { socket: PathBuf::from("/no") }), ["wharfd"]);
        assert_eq!(usual("disk", Path::new("/no/such")).verdict, Verdict::Ok);
    }
}
