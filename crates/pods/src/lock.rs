//! Locks over memory alone. They are held for moments: never across a wait, and never while a file is read or written.
//! The one exception are the meters of pods and containers, which a reader of their statistics holds while it reads the
//! kernel's files.
//!
//! Code that needs several takes them in this order:
//!
//! 1. `Pod::changing`, which a change of the whole pod holds from beginning to end, except for a stop. Those that make
//!    a container share it;
//! 2. `Pod::ending`, the same for a stop, which does not wait for what is being made: that may be stuck, and must not
//!    keep the pod running. The pod's removal begins with a stop, and takes the first after it: a stop meanwhile has
//!    nothing to do;
//! 3. the telling in `Container::stopping`, while the stop signal is sent;
//! 4. `Container::changing`, for one container what the first is for its pod. Code may wait while it holds these four,
//!    which are not locks of this module;
//! 5. `Pod::telling`, while something happens and is reported;
//! 6. `Pod::making`, the containers that are being made;
//! 7. the clients of `Events`, while an event is built from the rest;
//! 8. any other lock, and no second one below it.

use std::sync::{self, MutexGuard, RwLockReadGuard, RwLockWriteGuard};

use wharf_types::lock;

/// A mutex that is never held across a wait.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        lock::lock(&self.0)
    }
}

/// A reader-writer lock that is never held across a wait.
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
