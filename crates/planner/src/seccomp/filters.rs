//! The cache of compiled profiles. Most containers of a node have one of a few profiles, and compiling one takes longer
//! than all other decisions about a container.

use std::sync::{Arc, Mutex};

use oci_spec::runtime::LinuxSeccomp;
use wharf_types::lock::lock;

use super::{Program, choice, compile_spec};
use crate::Refusal;

/// How many are cached: only a few sets of capabilities and profiles are in use on one node.
const KEPT: usize = 64;

/// Profiles with their programs, the least recently used first.
#[derive(Debug, Default)]
pub struct Filters(Mutex<Vec<(LinuxSeccomp, Arc<Program>)>>);

impl Filters {
    /// The program for a profile. It depends on nothing else.
    pub(crate) fn program(&self, profile: &LinuxSeccomp) -> Result<Arc<Program>, Refusal> {
        let mut kept = lock(&self.0);
        if let Some(at) = kept.iter().rposition(|(known, _)| known == profile) {
            let used = kept.remove(at);
            let program = Arc::clone(&used.1);
            kept.push(used);
            return Ok(program);
        }
        let compiled = compile_spec(profile, choice::native()?);
        let program =
            Arc::new(compiled.map_err(|error| Refusal::field("seccomp", wharf_types::chain(&error)))?);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push((profile.clone(), Arc::clone(&program)));
        Ok(program)
    }
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
}
