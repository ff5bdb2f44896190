//! From names to numbers, for each ABI that a filter can encounter.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use super::numbers;

/// The bit that marks a number as one of x32.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// One set of system call numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Abi {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
}

impl Abi {
    /// Every one.
    pub(super) const ALL: [Self; 5] = [Self::X86_64, Self::X86, Self::X32, Self::Aarch64, Self::Arm];

    /// The kernel's value in `seccomp_data.arch` (`AUDIT_ARCH_…`); x32 has the same value as x86_64.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// The numbers of this ABI.
    pub(super) fn table(self) -> &'static Table {
        static X86_64: LazyLock<Table> = LazyLock::new(|| Table::parse(numbers::X86_64));
        static X86: LazyLock<Table> = LazyLock::new(|| Table::parse(numbers::X86));
        static X32: LazyLock<Table> = LazyLock::new(Table::x32);
        static AARCH64: LazyLock<Table> = LazyLock::new(|| Table::parse(numbers::AARCH64));
        static ARM: LazyLock<Table> = LazyLock::new(|| Table::parse(numbers::ARM));
        match self {
            Self::X86_64 => &X86_64,
            Self::X86 => &X86,
            Self::X32 => &X32,
            Self::Aarch64 => &AARCH64,
            Self::Arm => &ARM,
        }
    }
}

/// Whether any ABI has a call of this name.
pub(super) fn is_known(name: &str) -> bool {
    Abi::ALL.iter().any(|abi| abi.table().number(name).is_some())
}

/// The numbers of one ABI, by name.
#[derive(Debug)]
pub(super) struct Table {
    numbers: HashMap<&'static str, u32>,
}

impl Table {
    /// The number of a call, if this ABI has it.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// Every number that has a name, in ascending order.
    pub(super) fn known(&self) -> BTreeSet<u32> {
        self.numbers.values().copied().collect()
    }

    /// The names, in no particular order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.numbers.keys().copied()
    }

    /// The names and numbers, in no particular order.
    #[cfg(test)]
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.numbers.iter().map(|(name, number)| (*name, *number))
    }

    fn parse(text: &'static str) -> Self {
        let mut numbers = HashMap::new();
        let mut next = 0;
        for word in text.split_ascii_whitespace() {
            match word.parse() {
                Ok(number) => next = number,
                Err(_) => {
                    numbers.insert(word, next);
                    next += 1;
                }
            }
        }
        Self { numbers }
    }

    fn x32() -> Self {
        let mut numbers = Self::parse(numbers::X86_64).numbers;
        for name in numbers::NOT_X32.split_ascii_whitespace() {
            numbers.remove(name);
        }
        numbers.extend(Self::parse(numbers::X32).numbers);
        numbers.values_mut().for_each(|number| *number |= X32_BIT);
        Self { numbers }
    }
}
