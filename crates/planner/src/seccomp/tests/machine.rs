//! An interpreter of classic BPF, with the checks that the kernel makes before it accepts a filter.

use super::Call;
use crate::seccomp::Instruction;

/// The result and the cost of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) value: u32,
    pub(super) steps: usize,
    pub(super) looked_at_arguments: bool,
}

/// Runs a filter on a call.
pub(super) fn run(program: &[Instruction], call: &Call) -> Run {
    let (mut at, mut accumulator, mut looked_at_arguments) = (0, 0_u32, false);
    for steps in 1.. {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let test = match code {
            0x20 => {
                looked_at_arguments |= k >= 16;
                accumulator = load(call, k);
                continue;
            }
            0x54 => {
                accumulator &= k;
                continue;
            }
            0x05 => {
                at += usize::try_from(k).unwrap();
                continue;
            }
            0x06 => return Run { value: k, steps, looked_at_arguments },
            0x15 => accumulator == k,
            0x25 => accumulator > k,
            0x35 => accumulator >= k,
            other => panic!("operation {other:#x}"),
        };
        at += usize::from(if test { jt } else { jf });
    }
    unreachable!("a program only goes forward");
}

fn load(call: &Call, offset: u32) -> u32 {
    let mut data = Vec::new();
    data.extend(call.number.to_le_bytes());
    data.extend(call.audit.to_le_bytes());
    data.extend([0; 8]);
    data.extend(call.arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    let at = usize::try_from(offset).unwrap();
    u32::from_le_bytes(data[at..at + 4].try_into().unwrap())
}

/// Panics unless the kernel would accept the program.
pub(super) fn verify(program: &[Instruction]) {
    assert!((1..=4096).contains(&program.len()), "{} instructions", program.len());
    for (at, instruction) in program.iter().enumerate() {
        let left = program.len() - at - 1;
        let skip = match instruction.code {
            0x20 => {
                assert!(instruction.k % 4 == 0 && instruction.k < 64, "{at}: {instruction:?}");
                0
            }
            0x54 => 0,
            0x06 => continue,
            0x05 => usize::try_from(instruction.k).unwrap(),
            0x15 | 0x25 | 0x35 => usize::from(instruction.jt.max(instruction.jf)),
            other => panic!("{at}: operation {other:#x}"),
        };
        assert!(skip < left, "{at}: {instruction:?} leaves the program");
    }
}
