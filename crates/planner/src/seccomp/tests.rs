//! The compiler, checked with an interpreter of its output and an evaluator of its input.

mod artifacts;
mod golden;
mod intersections;
mod machine;
mod parsing;
mod properties;
mod reference;

use super::syscalls::Abi;
use super::{Arch, Target};
use crate::capabilities;

/// A call as a filter sees it (the kernel's `seccomp_data` without the instruction pointer).
#[derive(Debug, Clone, Copy)]
struct Call {
    audit: u32,
    number: u32,
    arguments: [u64; 6],
}

impl Call {
    fn named(abi: Abi, name: &str, arguments: &[u64]) -> Self {
        let number = abi.table().number(name).unwrap_or_else(|| panic!("{abi:?} has no {name}"));
        let mut padded = [0; 6];
        padded[..arguments.len()].copy_from_slice(arguments);
        Self { audit: abi.audit(), number, arguments: padded }
    }
}

fn target(capabilities: &[&str]) -> Target {
    let bit = |name: &&str| capabilities::mask(name).unwrap_or_else(|| panic!("no {name}"));
    Target { arch: Arch::X86_64, capabilities: capabilities.iter().map(bit).sum(), kernel: (6, 18) }
}
