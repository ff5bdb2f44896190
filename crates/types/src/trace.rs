//! The trace that work belongs to, if its call is traced: stages ([`crate::Timings`]) and facts are told to it.
//!
//! It goes along with the work without being an argument: while work is done, the thread knows its trace. Whoever
//! passes work to another thread or task passes the trace on ([`Traced::carry`], and what `tasks` makes of it).

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A call that is traced. It is told in whatever thread does the work, and must not make that wait.
pub trait Trace: fmt::Debug + Send + Sync {
    /// A stage of the work has ended.
    fn stage(&self, name: &'static str, began: Instant, took: Duration);

    /// Something that the call is about: a key of OpenTelemetry's conventions, and its value.
    fn about(&self, key: &'static str, value: &str);
}

/// What work belongs to: a traced call, or nothing. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Traced(Option<Arc<dyn Trace>>);

/// Whether anything has ever been traced: until then nobody looks for a trace.
static EVER: AtomicBool = AtomicBool::new(false);

thread_local! {
    static CURRENT: RefCell<Traced> = const { RefCell::new(Traced(None)) };
}

impl Traced {
    /// What belongs to this call.
    #[must_use]
    pub fn by(call: Arc<dyn Trace>) -> Self {
        EVER.store(true, Ordering::Relaxed);
        Self(Some(call))
    }

    /// What this thread does belongs to this.
    #[must_use]
    pub fn here() -> Self {
        if EVER.load(Ordering::Relaxed) { CURRENT.with_borrow(Self::clone) } else { Self(None) }
    }

    /// Does work that belongs to this. What belongs to nothing is what the thread does anyway.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.0.is_none() {
            return work();
        }
        let _before = Before(CURRENT.replace(self.clone()));
        work()
    }

    /// The same, to be done somewhere else.
    pub fn carry<T>(self, work: impl FnOnce() -> T) -> impl FnOnce() -> T {
        move || self.within(work)
    }
}

/// What the thread did before, and does again once this is dropped, whatever becomes of the work.
struct Before(Traced);

impl Drop for Before {
    fn drop(&mut self) {
        CURRENT.set(std::mem::take(&mut self.0));
    }
}

/// Tells the trace of what this thread does that a stage has ended.
pub fn stage(name: &'static str, began: Instant, took: Duration) {
    if let Traced(Some(call)) = Traced::here() {
        call.stage(name, began, took);
    }
}

/// Waits for the work of a stage, and tells its trace.
pub async fn staged<T>(name: &'static str, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.await;
    stage(name, began, began.elapsed());
    done
}

/// Tells the trace of what this thread does what it is about.
pub fn about(key: &'static str, value: &str) {
    if let Traced(Some(call)) = Traced::here() {
        call.about(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::lock;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Told(Mutex<Vec<String>>);

    impl Trace for Told {
        fn stage(&self, name: &'static str, _began: Instant, _took: Duration) {
            lock(&self.0).push(name.to_owned());
        }

        fn about(&self, key: &'static str, value: &str) {
            lock(&self.0).push(format!("{key}={value}"));
        }
    }

    fn note(name: &'static str) {
        crate::Timings::default().time(name, || ());
    }

    #[test]
    fn what_is_done_within_a_call_is_told_to_it_wherever_it_is_done() {
        let [outer, inner] = [(); 2].map(|()| Arc::new(Told::default()));
        let [of_outer, of_inner] =
            [&outer, &inner].map(|told| Traced::by(Arc::clone(told) as Arc<dyn Trace>));
        note("before");
        of_outer.within(|| {
            note("one");
            of_inner.within(|| about("of", "inner"));
            std::thread::scope(|scope| {
                scope.spawn(Traced::here().carry(|| note("carried")));
                scope.spawn(|| note("not carried"));
            });
            Traced::default().within(|| note("two"));
        });
        note("after");
        assert_eq!(*lock(&outer.0), ["one", "carried", "two"]);
        assert_eq!(*lock(&inner.0), ["of=inner"]);
    }

    #[test]
    fn work_that_panics_leaves_the_thread_as_it_was() {
        let told = Arc::new(Told::default());
        let traced = Traced::by(Arc::clone(&told) as Arc<dyn Trace>);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            traced.within(|| panic!("on purpose"));
        }));
        assert!(panicked.is_err());
        note("after");
        assert_eq!(*lock(&told.0), [""; 0]);
    }
}
