//! The v2 form of device rules: an eBPF program that the kernel runs on each access to a device.
//!
//! The program keeps the requested kinds of access in a register and walks the rules from last to first. A rule that
//! matches the device decides only the kinds that it names: if it denies one that is still undecided, the program ends
//! with "no"; if it allows, its kinds are removed from the register, and when the register is empty the program ends
//! with "yes". Whatever is undecided at the end is denied.

use wharf_sys::bpf::Instruction;

use super::{DeviceRule, DeviceType};
use crate::error::Error;

/// Keeps the program below 4096 instructions, which every kernel accepts.
const RULES_MAX: usize = 500;

// The context that the kernel passes in r1: u32 access_type (access << 16 | type), u32 major, u32 minor.
const OFFSET_TYPE: i16 = 0;
const OFFSET_MAJOR: i16 = 4;
const OFFSET_MINOR: i16 = 8;
const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;

const R0: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const LOAD_U32: u8 = 0x61;
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Compiles rules over "deny everything"; the last rule that matches wins.
pub(crate) fn program(rules: &[DeviceRule]) -> Result<Vec<Instruction>, Error> {
    if rules.len() > RULES_MAX {
        let limit = format!("devices ({} rules)", rules.len());
        return Err(Error::InvalidLimit { limit, reason: "there are more than 500 rules" });
    }
    let mut program = vec![
        load(TYPE, OFFSET_TYPE),
        Instruction { code: MOVE, registers: UNDECIDED | TYPE << 4, offset: 0, immediate: 0 },
        constant(AND, TYPE, 0xffff),
        constant(SHIFT_RIGHT, UNDECIDED, 16),
        load(MAJOR, OFFSET_MAJOR),
        load(MINOR, OFFSET_MINOR),
    ];
    for rule in rules.iter().rev() {
        append(&mut program, rule)?;
    }
    program.extend(answer(0));
    Ok(program)
}

fn append(program: &mut Vec<Instruction>, rule: &DeviceRule) -> Result<(), Error> {
    let mut conditions = Vec::new();
    match rule.kind {
        DeviceType::All => {}
        DeviceType::Char => conditions.push((TYPE, TYPE_CHAR)),
        DeviceType::Block => conditions.push((TYPE, TYPE_BLOCK)),
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        let Some(number) = number else { continue };
        let number = i32::try_from(number).map_err(|_wide| Error::InvalidLimit {
            limit: format!("device number {number}"),
            reason: "no device has a number of more than 31 bits",
        })?;
        conditions.push((register, number));
    }
    let decision = decide(rule);
    let mut distance = jump(conditions.len() + decision.len());
    for (register, number) in conditions {
        // Each jump goes to the first instruction after this rule.
        distance -= 1;
        let registers = register;
        program.push(Instruction { code: JUMP_IF_NOT_EQUAL, registers, offset: distance, immediate: number });
    }
    program.extend(decision);
    Ok(())
}

/// The effect of a rule that matches the device; falls through to the next rule if something is still undecided.
fn decide(rule: &DeviceRule) -> Vec<Instruction> {
    let access = i32::from(rule.access.bits());
    let over = jump(2);
    if rule.allow {
        let mut instructions = vec![
            constant(AND, UNDECIDED, !access),
            Instruction { code: JUMP_IF_NOT_EQUAL, registers: UNDECIDED, offset: over, immediate: 0 },
        ];
        instructions.extend(answer(1));
        instructions
    } else {
        let mut instructions = vec![
            Instruction { code: MOVE, registers: R0 | UNDECIDED << 4, offset: 0, immediate: 0 },
            constant(AND, R0, access),
            Instruction { code: JUMP_IF_EQUAL, registers: R0, offset: over, immediate: 0 },
        ];
        instructions.extend(answer(0));
        instructions
    }
}

fn answer(allowed: i32) -> [Instruction; 2] {
    [constant(SET, R0, allowed), constant(EXIT, 0, 0)]
}

fn constant(code: u8, register: u8, immediate: i32) -> Instruction {
    Instruction { code, registers: register, offset: 0, immediate }
}

fn load(register: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD_U32, registers: register | CONTEXT << 4, offset, immediate: 0 }
}

/// The distance of a jump over at most the eight instructions of a rule.
fn jump(instructions: usize) -> i16 {
    i16::try_from(instructions).unwrap_or(i16::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::{Access, default_devices};
    use super::*;
    use wharf_sys::bpf::DeviceProgram;

    /// Interprets the few instructions that [`program`] uses.
    fn run(program: &[Instruction], context: [u32; 3]) -> i64 {
        let mut registers = [0_i64; 11];
        let mut at = 0;
        loop {
            let now = program[at];
            let to = usize::from(now.registers & 15);
            let from = usize::from(now.registers >> 4);
            let immediate = i64::from(now.immediate);
            at += 1;
            let jump = usize::try_from(now.offset).unwrap();
            match now.code {
                LOAD_U32 => registers[to] = i64::from(context[jump / 4]),
                MOVE => registers[to] = registers[from],
                SET => registers[to] = immediate,
                AND => registers[to] &= immediate,
                SHIFT_RIGHT => registers[to] >>= immediate,
                JUMP_IF_EQUAL if registers[to] == immediate => at += jump,
                JUMP_IF_NOT_EQUAL if registers[to] != immediate => at += jump,
                JUMP_IF_EQUAL | JUMP_IF_NOT_EQUAL => {}
                EXIT => return registers[0],
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    fn allowed(rules: &[DeviceRule], kind: u32, device: (u32, u32), letters: &str) -> bool {
        let access = u32::from(Access::parse(letters).unwrap().bits());
        run(&program(rules).unwrap(), [access << 16 | kind, device.0, device.1]) == 1
    }

    const BLOCK: u32 = 1;
    const CHAR: u32 = 2;

    #[test]
    fn the_defaults_as_a_table() {
        for (kind, device, letters, expected) in [
            (CHAR, (1, 3), "rwm", true),
            (CHAR, (136, 77), "rw", true),
            (CHAR, (5, 2), "rw", true),
            (CHAR, (5, 1), "m", true),
            (CHAR, (5, 1), "r", false),
            (CHAR, (10, 229), "m", true),
            (CHAR, (10, 229), "r", false),
            (CHAR, (1, 1), "rw", false),
            (CHAR, (1, 1), "rm", false),
            (BLOCK, (8, 0), "m", true),
            (BLOCK, (8, 0), "r", false),
            (BLOCK, (1, 3), "r", false),
        ] {
            assert_eq!(
                allowed(&default_devices(), kind, device, letters),
                expected,
                "{kind} {device:?} {letters}"
            );
        }
    }

    #[test]
    fn the_last_rule_wins_and_grants_add_up() {
        let access = |letters| Access::parse(letters).unwrap();
        let all = DeviceRule::allow(DeviceType::All, None, None, Access::ALL);
        let no_write = DeviceRule::deny(DeviceType::Char, Some(1), Some(3), Access::WRITE);
        assert!(allowed(&[all, no_write], CHAR, (1, 3), "r"));
        assert!(!allowed(&[all, no_write], CHAR, (1, 3), "rw"));
        assert!(allowed(&[no_write, all], CHAR, (1, 3), "rw"));
        let read = DeviceRule::allow(DeviceType::Char, Some(1), None, access("r"));
        let write = DeviceRule::allow(DeviceType::Char, None, Some(3), access("w"));
        assert!(allowed(&[read, write], CHAR, (1, 3), "rw"));
        assert!(!allowed(&[read, write], CHAR, (1, 4), "rw"));
        assert!(!allowed(&[], CHAR, (1, 3), "r"));
    }

    #[test]
    fn the_verifier_takes_every_program() {
        let all = DeviceRule::allow(DeviceType::All, None, None, Access::ALL);
        let many = vec![DeviceRule::allow(DeviceType::Char, Some(1), Some(3), Access::READ); RULES_MAX];
        for rules in [vec![], vec![all], vec![all, all], default_devices(), many.clone()] {
            DeviceProgram::load(&program(&rules).unwrap()).unwrap();
        }
        assert!(program(&[many, vec![all]].concat()).is_err());
        assert!(program(&[DeviceRule::allow(DeviceType::Char, Some(u32::MAX), None, Access::ALL)]).is_err());
    }
}
