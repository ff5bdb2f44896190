//! Where a test runs: this program, executed again in the test's own namespaces and cgroups, which end with it.
//!
//! It tests what cargo builds now, with the images from tests/images. Both are built before the first test enters its
//! rig, if they do not exist.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::fstatvfs;

/// Names the test, inside the rig.
const INSIDE: &str = "WHARF_E2E_TEST";

/// What the tests run, and with what.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) wharfd: PathBuf,
    pub(crate) wharf: PathBuf,
    pub(crate) supervisor: PathBuf,
    /// The program that inspects other processes from inside a container.
    pub(crate) onlooker: PathBuf,
    /// The stand-in for a supervisor of an earlier release.
    pub(crate) earlier: PathBuf,
    /// The image layouts.
    pub(crate) images: PathBuf,
}

impl Built {
    /// Copies wharfd into a test's directory, for a test that counts what happens in this file: what other tests
    /// execute at the same time is not counted. Supervisors execute a copy of their daemon's anyway.
    pub(crate) fn copy(dir: &Path) {
        std::fs::copy(built().wharfd, Self::own(dir)).unwrap();
    }

    /// What runs in a test's directory: its own copy, if it has one.
    pub(crate) fn of(dir: &Path) -> Self {
        let own = Self::own(dir);
        if own.exists() { Self { wharfd: own, ..built() } } else { built() }
    }

    fn own(dir: &Path) -> PathBuf {
        dir.join("wharfd")
    }
}

/// The test's directory, if this is the program inside the test's rig. If not, runs the test there and returns `None`.
///
/// # Panics
/// The test failed in its rig; its output is shown.
pub(crate) fn enter() -> Option<PathBuf> {
    let thread = std::thread::current();
    let test = thread.name().expect("the test harness names a test's thread after it");
    if std::env::var(INSIDE).as_deref() == Ok(test) {
        return Some(std::env::var_os("WHARF_RIG").expect("set by the rig").into());
    }
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(build);
    let mut command = command(&repository().join("tests/isolate.sh"));
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    command.env(INSIDE, test).env("RUST_BACKTRACE", "0").env_remove("WHARF_RIG").stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "\n{}{}", text(&output.stdout), text(&output.stderr));
    None
}

/// The programs and images that the outer program has prepared.
pub(crate) fn built() -> Built {
    let target = repository().join("target");
    Built {
        wharfd: target.join("debug/wharfd"),
        wharf: target.join("debug/wharf"),
        supervisor: target.join(musl()).join("supervisor/wharf-shim"),
        onlooker: target.join(musl()).join("supervisor/examples/onlooker"),
        earlier: target.join(musl()).join("supervisor/examples/earlier"),
        images: repository().join("tests/images/out"),
    }
}

fn build() -> Built {
    let run = |command: &mut Command| {
        let output = command.current_dir(repository()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(cargo().args(["--package", "wharf-daemon", "--package", "wharf-cli"]));
    // With its symbols, by which what it does is counted.
    run(cargo()
        .args(["--package", "wharf-supervisor", "--bins", "--examples"])
        .args(["--profile", "supervisor", "--target", &musl()])
        .env("CARGO_PROFILE_SUPERVISOR_STRIP", "debuginfo"));
    let built = built();
    if !built.images.join("images.json").exists() {
        run(command(&repository().join("tests/images/build.sh")).arg(&built.images));
    }
    built
}

/// `cargo build` as a person would run it: the variables that cargo sets for this package's tests would make build
/// scripts run again.
fn cargo() -> Command {
    let mut cargo = command(Path::new(env!("CARGO")));
    let of_package = |name: &str| name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        cargo.env_remove(name);
    }
    cargo.args(["build", "--locked"]);
    cargo
}

/// The supervisor's target, which is static.
fn musl() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Makes a directory a tmpfs of its own, with these options.
pub(crate) fn tmpfs(directory: &Path, options: &str) {
    std::fs::create_dir(directory).unwrap();
    mount(Some("test"), directory, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
}

/// Uses up all free space of a file system except this much, with a new file, as something else on it would.
pub(crate) fn fill(filler: &Path, leave_bytes: u64) {
    let file = std::fs::File::create(filler).unwrap();
    let disk = fstatvfs(&file).unwrap();
    let free = disk.blocks_available() * disk.fragment_size();
    let bytes = i64::try_from(free - leave_bytes).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, bytes).unwrap();
}

/// A command that a test needs besides wharf.
#[expect(
    clippy::disallowed_methods,
    reason = "wharf itself starts only supervisors and plugins; its tests start wharf"
)]
pub(crate) fn command(program: &Path) -> Command {
    Command::new(program)
}
