//! Locks over memory alone. They are held for moments: never across a wait, and never while a file is touched, but for the
//! meter of a pod, which whoever reads its statistics holds while the kernel's files are read.
//!
//! Who needs several takes them in this order:
//!
//! 1. `Pod::changing`, which a change of the pod as a whole holds from its beginning to its end;
//! 2. `Container::changing`, likewise for one container. Both may be waited under, and neither is one of these locks;
//! 3. `Pod::telling`, while something happens and is told;
//! 4. `Pod::making`, the container that is being made;
//! 5. the listeners of `Events`, while an event is made of what the rest says;
//! 6. any other, and no second one below it.

use std::sync::{self, MutexGuard, RwLockReadGuard, RwLockWriteGuard};

use wharf_types::lock;

/// For one at a time.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        lock::lock(&self.0)
    }
}

/// For many who read, or one who writes.
#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        lock::read(&self.0)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        lock::write(&self.0)
    }
}
