//! The tar of hack/package, made of programs that do only what it asks of them.
#![expect(
    clippy::tests_outside_test_module,
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "an integration test is nothing but tests, and this one runs a script"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

const ARCH: &str = std::env::consts::ARCH;
/// The time of everything in the tar.
const EPOCH: u64 = 1_700_000_000;
/// What the tar has below its directory, in this order; programs are in `bin`.
const FILES: &[&str] = &[
    "INSTALL",
    "bin/wharf",
    "bin/wharf-shim",
    "bin/wharfd",
    "lib/systemd/system/wharfd.service",
    "share/bash-completion/completions/wharf",
    "share/doc/wharf/README.md",
    "share/doc/wharf/config.toml",
    "share/doc/wharf/crictl.yaml",
    "share/doc/wharf/grafana.json",
    "share/doc/wharf/licences.gz",
    "share/doc/wharf/spdx.json",
    "share/fish/vendor_completions.d/wharf.fish",
    "share/man/man1/wharf.1.gz",
    "share/zsh/site-functions/_wharf",
];

/// A `wharf` that has a page and completion.
const COMMAND_LINE: &str = "#!/bin/sh
case $1 in
    man) echo '.TH wharf 1' >\"$2/wharf.1\" ;;
    completion) echo \"# for $2\" ;;
    *) exit 1 ;;
esac
";

/// A directory of programs, which were built at this time.
fn programs(built: SystemTime) -> TempDir {
    let directory = TempDir::new().unwrap();
    for (name, text) in [("wharf", COMMAND_LINE), ("wharfd", "#!/bin/sh\n"), ("wharf-shim", "#!/bin/sh\n")] {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        fs::File::open(&path).unwrap().set_modified(built).unwrap();
    }
    directory
}

/// Makes the tar, as somebody whose files are nobody else's.
fn package(programs: &Path, to: &Path) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/package");
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 077; exec \"$0\" --tar \"$1\" \"$2\""]).arg(script).arg(ARCH).arg(to);
    shell.env("WHARF_PROGRAMS", programs).env("SOURCE_DATE_EPOCH", EPOCH.to_string()).output().unwrap()
}

/// Makes the tar, and reads it.
fn made(programs: &Path) -> Vec<u8> {
    let to = TempDir::new().unwrap();
    let output = package(programs, to.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let paths: Vec<PathBuf> = printed.lines().map(PathBuf::from).collect();
    let [parts, tar] = paths.as_slice() else { panic!("{printed}") };
    assert!(parts.to_str().unwrap().ends_with(&format!("-linux-{ARCH}.spdx.json")), "{printed}");
    assert!(tar.to_str().unwrap().ends_with(&format!("-linux-{ARCH}.tar.gz")), "{printed}");
    fs::read(tar).unwrap()
}

#[test]
fn the_same_programs_make_the_same_tar_whenever_they_were_built() {
    let now = SystemTime::now();
    let [new, old] = [now, now - Duration::from_secs(86_400)].map(|built| made(programs(built).path()));
    assert!(new == old, "{} and {} bytes", new.len(), old.len());

    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(new.as_slice()));
    let mut files = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let (header, path) = (entry.header(), entry.path().unwrap());
        let (_top, path) = path.to_str().unwrap().split_once('/').unwrap();
        let is_open = header.entry_type().is_dir() || path.starts_with("bin/");
        assert_eq!(header.mode().unwrap(), if is_open { 0o755 } else { 0o644 }, "{path}");
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0), "{path}");
        assert_eq!(header.mtime().unwrap(), EPOCH, "{path}");
        if !header.entry_type().is_dir() {
            files.push(path.to_owned());
        }
    }
    assert_eq!(files, FILES);
}

#[test]
fn programs_that_need_a_c_library_are_refused() {
    let programs = programs(SystemTime::now());
    // As cargo links tests for this machine.
    let dynamic = std::env::current_exe().unwrap();
    fs::copy(dynamic, programs.path().join("wharfd")).unwrap();
    let to = TempDir::new().unwrap();
    let output = package(programs.path(), to.path());
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = format!("wharfd is not static: build it with 'hack/build --static {ARCH}'");
    assert!(!output.status.success() && words.contains(&expected), "{words}");
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0, "something was left");
}
