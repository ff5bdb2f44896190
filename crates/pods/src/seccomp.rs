//! Which seccomp program a container gets, compiled once for each profile and set of capabilities.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::OFlag;
use wharf_cri_api::v1::{LinuxContainerSecurityContext, SecurityProfile, security_profile::ProfileType};
use wharf_planner::seccomp::{Arch, Profile, Program, Target, compile};

use crate::error::Error;

/// The longest profile that is read, in bytes.
const PROFILE_LIMIT_BYTES: u64 = 1 << 20;

/// The default profile's programs by capabilities. Local profiles are read anew each time: the file may have changed.
#[derive(Debug, Default)]
pub(crate) struct Seccomp(Mutex<HashMap<u64, Arc<Program>>>);

impl Seccomp {
    /// The program for a container; `None` if it is not confined.
    pub(crate) fn program(
        &self,
        context: &LinuxContainerSecurityContext,
        capabilities: u64,
    ) -> Result<Option<Arc<Program>>, Error> {
        if context.privileged {
            return Ok(None);
        }
        match &context.seccomp {
            Some(profile) => self.by_message(profile, capabilities),
            None => self.by_path(legacy_path(context), capabilities),
        }
    }

    fn by_message(
        &self,
        profile: &SecurityProfile,
        capabilities: u64,
    ) -> Result<Option<Arc<Program>>, Error> {
        match profile.profile_type() {
            ProfileType::RuntimeDefault => self.default_program(capabilities).map(Some),
            ProfileType::Unconfined => Ok(None),
            ProfileType::Localhost => local(&profile.localhost_ref, capabilities).map(Some),
        }
    }

    fn by_path(&self, path: &str, capabilities: u64) -> Result<Option<Arc<Program>>, Error> {
        match path {
            "" | "unconfined" => Ok(None),
            "runtime/default" | "docker/default" => self.default_program(capabilities).map(Some),
            other => match other.strip_prefix("localhost/") {
                Some(path) => local(path, capabilities).map(Some),
                None => Err(Error::invalid("seccomp_profile_path", format!("{other:?} is not a known form"))),
            },
        }
    }

    fn default_program(&self, capabilities: u64) -> Result<Arc<Program>, Error> {
        let mut programs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = programs.get(&capabilities) {
            return Ok(Arc::clone(program));
        }
        let program = Arc::new(build(&Profile::runtime_default(), capabilities)?);
        // Bounded: only so many sets of capabilities are in use on one node.
        if programs.len() >= 256 {
            programs.clear();
        }
        programs.insert(capabilities, Arc::clone(&program));
        Ok(program)
    }
}

#[allow(deprecated, reason = "older kubelets send the path alone")]
fn legacy_path(context: &LinuxContainerSecurityContext) -> &str {
    &context.seccomp_profile_path
}

fn local(path: &str, capabilities: u64) -> Result<Arc<Program>, Error> {
    let fail = |problem: String| Error::invalid("seccomp", format!("profile {path:?} {problem}"));
    if !path.starts_with('/') {
        return Err(fail("is not an absolute path".to_owned()));
    }
    let json = read(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    if json.len() as u64 > PROFILE_LIMIT_BYTES {
        return Err(fail("is longer than 1 MiB".to_owned()));
    }
    let profile = Profile::parse(&json).map_err(|error| fail(wharf_types::chain(&error)))?;
    build(&profile, capabilities).map(Arc::new)
}

/// A profile's bytes, and one more than there may be of one that is too long. What is not a regular file may have no end,
/// or never begin: it is not read.
fn read(path: &str) -> std::io::Result<Vec<u8>> {
    let without_waiting = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(without_waiting).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut json = Vec::new();
    file.take(PROFILE_LIMIT_BYTES + 1).read_to_end(&mut json)?;
    Ok(json)
}

fn build(profile: &Profile, capabilities: u64) -> Result<Program, Error> {
    let arch = Arch::native().ok_or_else(|| {
        Error::invalid("seccomp", "profiles cannot be compiled for this machine's architecture")
    })?;
    compile(profile, &Target { arch, capabilities, kernel: kernel_version() })
        .map_err(|error| Error::invalid("seccomp", wharf_types::chain(&error)))
}

fn kernel_version() -> (u32, u32) {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(5), numbers.next().unwrap_or(15))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(path: &std::path::Path) -> String {
        local(path.to_str().unwrap(), 0).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&fifo, std::path::Path::new("/dev/zero"), dir.path()] {
            assert!(problem(path).contains("not a regular file"), "{}: {}", path.display(), problem(path));
        }
    }

    #[test]
    fn a_profile_that_is_longer_than_its_size_says_is_cut_off() {
        // Its size is told as 0.
        assert!(problem(std::path::Path::new("/proc/kallsyms")).contains("longer than 1 MiB"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile");
        std::fs::write(&path, vec![b' '; 1 << 20]).unwrap();
        assert!(!problem(&path).contains("longer than 1 MiB"));
        std::fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
        assert!(problem(&path).contains("longer than 1 MiB"));
    }
}
