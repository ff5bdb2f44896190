//! Seccomp profiles, compiled to classic BPF.
//!
//! A [`Profile`] is the runtime's own ([`Profile::runtime_default`]) or parsed from JSON ([`Profile::parse`]). For one
//! container and machine it becomes a profile in the runtime spec's form, and this becomes a filter, which is cached
//! ([`Filters`]). One from a registry ([`Profile::parse_artifact`]) is first intersected with a base. Nothing here does
//! I/O or asks the kernel.
//!
//! What a compiled filter does with a call:
//! * of an architecture that the profile does not list: it kills the process;
//! * with a number for which wharf has no name, or newer than every call that the profile names: it returns ENOSYS,
//!   unless the profile allows calls by default (and, if it has no name, the profile forbids none of which wharf has
//!   never heard: a misspelt name costs a program new calls, and a new one is no hole);
//! * otherwise the first matching rule decides, in the profile's order. (In libseccomp, a rule without conditions
//!   overrides all others; here a condition before it still counts, which is what the author wrote.)

mod artifact;
mod assemble;
mod choice;
mod compile;
mod default_profile;
mod error;
mod filters;
mod intersection;
mod json;
mod libseccomp;
mod numbers;
mod profile;
mod spec;
mod syscalls;
#[cfg(test)]
mod tests;

pub(crate) use choice::check;
pub(crate) use choice::describe;
pub use choice::{Base, Choice, choice, fill, reference, runtime_default};
pub use error::Error;
pub use filters::Filters;
pub(crate) use libseccomp::overlooked;
pub use profile::{Action, Profile};
use spec::{compile_spec, resolve};

/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`.
const SPEC_ALLOW: u32 = 1 << 2;

/// A machine's native architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64-bit x86; profiles may list i386 and x32 with it.
    X86_64,
    /// 64-bit Arm, little-endian; profiles may list 32-bit Arm with it.
    Aarch64,
}

impl Arch {
    /// The architecture that wharf was built for, if filters can be compiled for it.
    #[must_use]
    pub const fn native() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }

    /// Its name in `includes` and `excludes` of Docker's profiles.
    fn moby_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }
}

/// The container and the machine for which a filter is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    /// The machine's native architecture.
    pub arch: Arch,
    /// The container's bounding set: bit n stands for capability number n.
    pub capabilities: u64,
    /// Major and minor version of the running kernel.
    pub kernel: (u32, u32),
}

impl Target {
    /// The flags for a profile that sets none. Before Linux 5.16 a filter also disabled speculative store bypass, which
    /// made containers measurably slower; such a profile asks to leave that alone, as in other runtimes.
    fn usual_flags(&self) -> u32 {
        if self.kernel >= (4, 17) { SPEC_ALLOW } else { 0 }
    }
}

/// One instruction of classic BPF, the kernel's `sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// How many instructions are skipped if the test holds.
    pub jt: u8,
    /// How many instructions are skipped if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

impl Instruction {
    /// The 8 bytes that the kernel reads, in native byte order.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let ([c0, c1], [k0, k1, k2, k3]) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        [c0, c1, self.jt, self.jf, k0, k1, k2, k3]
    }
}

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Program {
    /// 1 to 4096 instructions.
    pub instructions: Vec<Instruction>,
    /// The `SECCOMP_FILTER_FLAG_…` flags to load it with.
    pub flags: u32,
}

impl Program {
    /// All instructions as the kernel reads them, 8 bytes each.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.instructions.iter().flat_map(|instruction| instruction.to_bytes()).collect()
    }
}

/// Compiles a profile for this target.
///
/// # Errors
/// The program would be longer than the kernel accepts.
pub fn compile(profile: &Profile, target: &Target) -> Result<Program, Error> {
    Ok(Program {
        instructions: compile::compile(profile, target)?,
        flags: profile.flags.unwrap_or_else(|| target.usual_flags()),
    })
}
