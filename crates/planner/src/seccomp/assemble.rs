//! An assembler for classic BPF that writes programs from the end.
//!
//! Jumps in classic BPF only go forward. So when a program is written backwards, every target is already known and no
//! second pass is needed. Conditional jumps reach 255 instructions; targets farther away get an intermediate jump.

use std::collections::HashMap;

use super::{Error, Instruction};

/// The kernel's `BPF_MAXINSNS`.
pub(super) const MAX_INSTRUCTIONS: usize = 4096;

// The few operations that are needed, each with the constant `k` as its operand.
const LOAD_ABSOLUTE: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const RETURN: u16 = 0x06;

/// A comparison of the accumulator with a constant; the value is the operation's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Test {
    Equal = 0x15,
    Greater = 0x25,
    GreaterOrEqual = 0x35,
}

/// An instruction to jump to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Label {
    /// Instructions from the program's end.
    at: u32,
    /// The value that it returns, if it is a return: copying a return is as short as jumping to it, and faster.
    returns: Option<u32>,
}

/// A program being written, last instruction first.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    reversed: Vec<Instruction>,
    length: u32,
    /// The latest return of each value.
    returns: HashMap<u32, Label>,
    /// The latest intermediate jump to each distant target.
    steps: HashMap<Label, Label>,
}

impl Assembler {
    /// A return of this value to the kernel; shared if one is near enough.
    pub(super) fn ret(&mut self, value: u32) -> Label {
        match self.returns.get(&value) {
            Some(label) if self.offset(*label).is_some() => *label,
            _ => self.new_return(value),
        }
    }

    /// Loads the word of `seccomp_data` at this offset.
    pub(super) fn load(&mut self, offset: u32, next: Label) -> Label {
        self.put_before(next);
        self.push(LOAD_ABSOLUTE, (0, 0), offset)
    }

    /// Masks the accumulator with these bits.
    pub(super) fn and(&mut self, mask: u32, next: Label) -> Label {
        self.put_before(next);
        self.push(AND, (0, 0), mask)
    }

    /// Jumps to one label or the other, depending on a test of the accumulator.
    pub(super) fn branch(&mut self, test: Test, value: u32, (mut yes, mut no): (Label, Label)) -> Label {
        loop {
            match (self.offset(yes), self.offset(no)) {
                (Some(jt), Some(jf)) => return self.push(test as u16, (jt, jf), value),
                (None, _) => yes = self.step(yes),
                (_, None) => no = self.step(no),
            }
        }
    }

    /// The program in execution order.
    ///
    /// # Errors
    /// It is too long for the kernel.
    pub(super) fn finish(mut self) -> Result<Vec<Instruction>, Error> {
        self.check_length()?;
        self.reversed.reverse();
        Ok(self.reversed)
    }

    /// Fails as soon as the program is too long, so that a hostile profile costs no more than a large one.
    pub(super) fn check_length(&self) -> Result<(), Error> {
        if self.reversed.len() > MAX_INSTRUCTIONS {
            return Err(Error::ProgramTooLong { limit: MAX_INSTRUCTIONS });
        }
        Ok(())
    }

    /// How many instructions a conditional jump at this position would skip, if it can reach the target.
    fn offset(&self, target: Label) -> Option<u8> {
        u8::try_from(self.length - 1 - target.at).ok()
    }

    /// A label within reach that leads to the target.
    fn step(&mut self, target: Label) -> Label {
        match (target.returns, self.steps.get(&target)) {
            (Some(value), _) => self.ret(value),
            (None, Some(step)) if self.offset(*step).is_some() => *step,
            (None, _) => self.new_step(target),
        }
    }

    /// Makes the next instruction to be written continue at the target.
    fn put_before(&mut self, target: Label) {
        if target.at + 1 == self.length {
            return;
        }
        match target.returns {
            Some(value) => self.new_return(value),
            None => self.new_step(target),
        };
    }

    fn new_return(&mut self, value: u32) -> Label {
        let label = Label { returns: Some(value), ..self.push(RETURN, (0, 0), value) };
        self.returns.insert(value, label);
        label
    }

    fn new_step(&mut self, target: Label) -> Label {
        let label = self.push(JUMP, (0, 0), self.length - 1 - target.at);
        self.steps.insert(target, label);
        label
    }

    fn push(&mut self, code: u16, (jt, jf): (u8, u8), k: u32) -> Label {
        self.reversed.push(Instruction { code, jt, jf, k });
        self.length += 1;
        Label { at: self.length - 1, returns: None }
    }
}
