//! Threads that compute one forward together.
//!
//! # Flow
//!
//! [`Crew::run`] does some work on the calling thread, and asks threads that sleep to do the same. The work is a
//! row of phases ([`Member::phase`]), each of them some units, which members take one by one until none is left. A
//! phase begins when all units of the one before it are done.
//!
//! # Guarantees
//!
//! - What was written in a phase, all see in the next one.
//! - The caller waits for nobody but who has taken a unit: a thread that the system has no CPU for, or that wakes
//!   late, takes no unit, and the work is done without it. So do threads that are no longer spare.
//! - When the work is done, no other thread is in it, and those that come late do not begin.
//! - A member that panics takes the others with it, where they would wait for it for ever.
//! - One piece of work at a time is done together. Another caller's meanwhile is done by himself alone.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::model::Spare;

/// How often a member looks whether a phase is over before it offers its CPU to others: some microseconds, as
/// the last unit of a phase may take.
const LOOKS: usize = 256;

/// Which units are taken and done.
#[derive(Debug, Default)]
struct Progress {
    /// The phase in the upper half, and the next of its units in the lower one.
    next: AtomicU64,
    /// How many units of the phase are done.
    done: AtomicUsize,
    broken: AtomicBool,
}

impl Progress {
    fn assert_whole(&self) {
        assert!(!self.broken.load(Ordering::Relaxed), "another thread of this forward has panicked");
    }
}

/// One thread's part in the work.
#[derive(Debug)]
pub(super) struct Member<'a> {
    progress: &'a Progress,
    index: usize,
    phase: u64,
    /// Whether it may stay; the caller stays always.
    still: &'a AtomicBool,
    left: bool,
}

impl Member<'_> {
    /// Its number, from 0 on, which no other member of this work has.
    pub(super) const fn index(&self) -> usize {
        self.index
    }

    /// Takes units of the next phase, as long as there are any, and returns when all are done; or, where it is no
    /// longer to help, before.
    ///
    /// # Panics
    ///
    /// Where another member has panicked.
    pub(super) fn phase(&mut self, units: usize, mut work: impl FnMut(usize)) {
        let Progress { next, done, .. } = self.progress;
        let (begin, end) = (self.phase << 32, (self.phase + 1) << 32);
        self.phase += 1;
        if units == 0 {
            // The first who finds nothing to do ends it.
            let _ = next.compare_exchange(begin, end, Ordering::AcqRel, Ordering::Relaxed);
        }
        let mut looks = 0;
        loop {
            let seen = next.load(Ordering::Acquire);
            self.left |= self.index > 0 && !self.still.load(Ordering::Relaxed);
            if seen >= end || self.left {
                return;
            }
            let unit = (seen - begin) as usize;
            if unit < units {
                if next.compare_exchange_weak(seen, seen + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    work(unit);
                    if done.fetch_add(1, Ordering::AcqRel) + 1 == units {
                        done.store(0, Ordering::Relaxed);
                        next.store(end, Ordering::Release);
                        return;
                    }
                }
                continue;
            }
            self.progress.assert_whole();
            looks += 1;
            if looks < LOOKS {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.progress.broken.store(true, Ordering::Relaxed);
        }
    }
}

#[derive(Default)]
struct State {
    /// What there is to help with, while more may join it. The caller waits until nobody is in it before it ends.
    work: Option<&'static (dyn Fn(usize) + Sync)>,
    /// How many may join it yet.
    wanted: usize,
    /// The number of the next who joins.
    index: usize,
    /// How many are in it.
    inside: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    come: Condvar,
    left: Condvar,
}

impl Shared {
    // Nothing in here panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread of the crew does all its life.
    fn help(&self) {
        let mut state = self.lock();
        while !state.closed {
            let Some(work) = state.work.filter(|_| state.wanted > 0) else {
                state = self.come.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let index = state.index;
            state.index += 1;
            state.wanted -= 1;
            state.inside += 1;
            drop(state);
            // Its member tells the others.
            let _ = catch_unwind(AssertUnwindSafe(|| work(index)));
            state = self.lock();
            state.inside -= 1;
            if state.inside == 0 {
                self.left.notify_all();
            }
        }
    }
}

/// Threads that sleep until somebody wants help: started when they are wanted first, and ended with it.
#[derive(Default)]
pub(crate) struct Crew {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crew({} threads)", self.threads().len())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.come.notify_all();
        for thread in self.threads().drain(..) {
            // It catches what it runs.
            let _ = thread.join();
        }
    }
}

impl Crew {
    // Nothing panics while it is locked.
    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that there are so many threads beside the one that calls, if they can be had.
    fn hire(&self, helpers: usize) {
        let mut threads = self.threads();
        while threads.len() < helpers {
            let shared = Arc::clone(&self.shared);
            let started = thread::Builder::new().name("embed-crew".to_owned()).spawn(move || shared.help());
            let Ok(thread) = started else { return };
            threads.push(thread);
        }
    }

    /// Does the work here and on other threads, as many as are spare, and returns when it is done.
    ///
    /// # Panics
    ///
    /// Where it panics on one of them.
    pub(super) fn run(&self, spare: &Spare, work: impl Fn(&mut Member<'_>) + Sync) {
        let progress = Progress::default();
        let still = &spare.still;
        let join = |index| work(&mut Member { progress: &progress, index, phase: 0, still, left: false });
        if spare.threads == 0 || !self.call(spare.threads, &join) {
            return join(0);
        }
        let result = catch_unwind(AssertUnwindSafe(|| join(0)));
        self.dismiss();
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        progress.assert_whole();
    }

    /// Asks for help; whether it is there to be had. [`Crew::dismiss`] has to follow before `join` ends.
    fn call<'a>(&self, helpers: usize, join: &'a (dyn Fn(usize) + Sync + 'a)) -> bool {
        self.hire(helpers);
        let mut state = self.shared.lock();
        if state.work.is_some() || state.inside > 0 {
            return false;
        }
        // SAFETY: only the lifetime changes. Who is inside uses the work, for whom `dismiss` waits; after that nobody
        // has it any more.
        let work = unsafe {
            std::mem::transmute::<&'a (dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(join)
        };
        *state = State { work: Some(work), wanted: helpers, index: 1, ..State::default() };
        drop(state);
        (0..helpers).for_each(|_| self.shared.come.notify_one());
        true
    }

    /// Lets nobody join any more and waits until nobody is inside.
    fn dismiss(&self) {
        let mut state = self.shared.lock();
        state.work = None;
        while state.inside > 0 {
            state = self.shared.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spare(threads: usize) -> Spare {
        Spare { threads, still: Arc::new(AtomicBool::new(true)) }
    }

    #[test]
    fn each_unit_is_done_once_and_seen_in_the_next_phase() {
        for threads in 0..4 {
            let crew = Crew::default();
            for _ in 0..20 {
                let cells: Vec<AtomicUsize> = (0..7).map(|_| AtomicUsize::new(0)).collect();
                crew.run(&spare(threads), |member| {
                    for phase in 1..200 {
                        member.phase(cells.len(), |unit| {
                            assert_eq!(cells[unit].fetch_add(1, Ordering::Relaxed), phase - 1);
                        });
                        member.phase(0, |_| unreachable!("there is no unit"));
                        let check = || cells.iter().all(|cell| cell.load(Ordering::Relaxed) == phase);
                        member.phase(3, |_| assert!(check(), "{cells:?} in {phase}"));
                    }
                });
                assert!(cells.iter().all(|cell| cell.load(Ordering::Relaxed) == 199));
            }
        }
    }

    #[test]
    fn all_help_and_none_more_than_wanted() {
        let crew = Crew::default();
        for members in [1, 4, 2] {
            let inside = AtomicUsize::new(0);
            crew.run(&spare(members - 1), |member| {
                assert!(member.index() < members, "member {} of {members}", member.index());
                inside.fetch_add(1, Ordering::SeqCst);
                // Nobody is through before all are here.
                member.phase(members, |_| {
                    while inside.load(Ordering::SeqCst) < members {
                        thread::yield_now();
                    }
                });
            });
            assert_eq!(inside.load(Ordering::SeqCst), members);
        }
    }

    #[test]
    fn who_is_wanted_elsewhere_leaves_and_the_work_is_done() {
        let crew = Crew::default();
        let (spare, inside, helped) = (spare(2), AtomicUsize::new(0), AtomicUsize::new(0));
        crew.run(&spare, |member| {
            member.phase(3, |_| {
                inside.fetch_add(1, Ordering::SeqCst);
                while inside.load(Ordering::SeqCst) < 3 {
                    thread::yield_now();
                }
                spare.still.store(false, Ordering::SeqCst);
            });
            for _ in 0..1000 {
                let is_helper = usize::from(member.index() > 0);
                member.phase(2, |_| {
                    helped.fetch_add(is_helper, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(helped.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn two_at_once_get_both_done() {
        let crew = Crew::default();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        crew.run(&spare(1), |member| {
                            member.phase(10, |unit| {
                                sum.fetch_add(unit, Ordering::Relaxed);
                            });
                        });
                        assert_eq!(sum.load(Ordering::Relaxed), 45);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_ends_the_work_and_not_the_crew() {
        let crew = Crew::default();
        for unit in 0..3 {
            let panics = || {
                crew.run(&spare(2), |member| {
                    member.phase(3, |at| assert!(at != unit, "on purpose"));
                    member.phase(3, |_| {});
                });
            };
            assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
            let done = AtomicUsize::new(0);
            crew.run(&spare(2), |member| {
                member.phase(5, |_| {
                    done.fetch_add(1, Ordering::Relaxed);
                });
            });
            assert_eq!(done.load(Ordering::Relaxed), 5);
        }
    }
}
