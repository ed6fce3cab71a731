//! Mutexes whose data is good at any time.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a thread panicked that held the lock: what we lock is whole after each
/// statement.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
