//! The cache of compiled profiles. Most containers of a node have one of a few profiles, and compiling one takes longer
//! than all other decisions about a container.

use std::sync::{Arc, Mutex};

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall};
use wharf_types::lock::lock;

use super::{Program, choice, compile_spec};
use crate::Refusal;

/// How many are cached: only a few sets of capabilities and profiles are in use on one node.
const KEPT: usize = 64;
/// How much memory their profiles may take up together, in bytes; a usual one has 20 KiB.
const KEPT_BYTES: usize = 8 << 20;

/// Profiles with their programs, the least recently used first.
#[derive(Debug, Default)]
pub struct Filters(Mutex<Vec<(LinuxSeccomp, Arc<Program>)>>);

impl Filters {
    /// The program for a profile. It depends on nothing else.
    pub(crate) fn program(&self, profile: &LinuxSeccomp) -> Result<Arc<Program>, Refusal> {
        if let Some(program) = used(&mut lock(&self.0), profile) {
            return Ok(program);
        }
        // Without the lock: a profile that takes long keeps no other container waiting.
        let compiled = compile_spec(profile, choice::native()?);
        let program =
            Arc::new(compiled.map_err(|error| Refusal::field("seccomp", wharf_types::chain(&error)))?);
        let mut kept = lock(&self.0);
        if let Some(other) = used(&mut kept, profile) {
            return Ok(other);
        }
        kept.push((profile.clone(), Arc::clone(&program)));
        while kept.len() > KEPT || kept.iter().map(|(known, _)| size_bytes(known)).sum::<usize>() > KEPT_BYTES
        {
            kept.remove(0);
        }
        Ok(program)
    }
}

/// The program of a profile that is cached, which is the most recently used one from now on.
fn used(kept: &mut Vec<(LinuxSeccomp, Arc<Program>)>, profile: &LinuxSeccomp) -> Option<Arc<Program>> {
    let at = kept.iter().rposition(|(known, _)| known == profile)?;
    let used = kept.remove(at);
    let program = Arc::clone(&used.1);
    kept.push(used);
    Some(program)
}

/// About how much memory the rules of a profile take up.
fn size_bytes(profile: &LinuxSeccomp) -> usize {
    let rule = |syscall: &LinuxSyscall| {
        let names: usize = syscall.names().iter().map(|name| size_of::<String>() + name.len()).sum();
        let arguments = syscall.args().as_ref().map_or(0, Vec::len) * size_of::<LinuxSeccompArg>();
        size_of::<LinuxSyscall>() + names + arguments
    };
    profile.syscalls().iter().flatten().map(rule).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(errno: u32) -> LinuxSeccomp {
        let mut profile = LinuxSeccomp::default();
        profile
            .set_default_action(oci_spec::runtime::LinuxSeccompAction::ScmpActErrno)
            .set_default_errno_ret(Some(errno));
        profile
    }

    #[test]
    fn a_profile_is_compiled_once_as_long_as_it_is_in_use() {
        let filters = Filters::default();
        let first = filters.program(&profile(1)).unwrap();
        for errno in 2..100 {
            let again = filters.program(&profile(1)).unwrap();
            assert!(Arc::ptr_eq(&first, &again));
            assert_ne!(filters.program(&profile(errno)).unwrap(), first);
        }
        assert_eq!(filters.0.lock().unwrap().len(), KEPT);
    }

    #[test]
    fn large_profiles_are_not_kept_beyond_the_limit() {
        let filters = Filters::default();
        let mut rule = LinuxSyscall::default();
        rule.set_names(vec!["read".to_owned(); 1 << 14]);
        for errno in 1..40 {
            let mut large = profile(errno);
            large.set_syscalls(Some(vec![rule.clone()]));
            filters.program(&large).unwrap();
        }
        let kept = filters.0.lock().unwrap();
        assert!((2..39).contains(&kept.len()), "{} kept", kept.len());
        assert!(kept.iter().map(|(known, _)| size_bytes(known)).sum::<usize>() <= KEPT_BYTES);
        assert_eq!(kept.last().unwrap().0.default_errno_ret(), Some(39));
    }
}
