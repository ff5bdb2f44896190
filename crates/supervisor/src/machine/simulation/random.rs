//! Numbers that look random and are the same for the same seed.

/// A xorshift generator.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    /// Spreads the seed over all bits, so that neighbouring seeds have nothing in common.
    pub(super) fn new(seed: u64) -> Self {
        let spread = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = Self(spread | 1);
        random.next();
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    /// A number from 0 to below `count`.
    pub(super) fn below(&mut self, count: u64) -> u64 {
        self.next() % count
    }

    pub(super) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// One of the items, if there are any.
    pub(super) fn pick<'a, T>(&mut self, items: impl ExactSizeIterator<Item = &'a T>) -> Option<T>
    where
        T: Clone + 'a,
    {
        let count = items.len() as u64;
        if count == 0 {
            return None;
        }
        let mut items = items;
        items.nth(usize::try_from(self.below(count)).ok()?).cloned()
    }
}
