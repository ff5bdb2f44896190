//! Locks that survive the panic of a holder.
//!
//! What wharf guards with them is valid at every moment, because each update is one assignment, insertion or removal.
//! So a panic ends only the thread that panicked, and the next holder continues with what is there.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks a mutex.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for reading.
pub fn read<T: ?Sized>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for writing.
pub fn write<T: ?Sized>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_panic_of_a_holder_is_its_own() {
        let (mutex, both) = (Mutex::new(1), RwLock::new(2));
        let holder = std::thread::scope(|scope| {
            let holder = scope.spawn(|| {
                let _held = (lock(&mutex), write(&both));
                panic!("while it holds them");
            });
            holder.join()
        });
        assert!(holder.is_err() && mutex.is_poisoned() && both.is_poisoned());
        *lock(&mutex) += 1;
        *write(&both) += 1;
        assert_eq!((*lock(&mutex), *read(&both)), (2, 3));
    }
}
