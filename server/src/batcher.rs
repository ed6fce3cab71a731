//! Which waiting texts are embedded together: a pure policy.
//!
//! # Flow
//!
//! Jobs are pushed as they arrive. A worker that has nothing to do asks
//! [`Batcher::next`] and gets a batch, or nothing. There is no artificial delay:
//! while all workers are busy jobs gather by themselves, and a worker that is idle
//! takes what is there at once.
//!
//! # Guarantees
//!
//! - Every job is handed out exactly once, or removed by [`Batcher::cancel`].
//! - The oldest job is in the next batch: nobody starves.
//! - A batch keeps to the token budget, unless it is a single job.
//! - A batch is sorted by length, longest first, and made of neighbours in length:
//!   padded models waste little, and padding-free ones meet runs of equal length.
//!
//! It knows neither clock, thread nor tensor.

use std::collections::VecDeque;

/// One text that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job<T> {
    /// The request it belongs to.
    pub request: u64,
    /// Its length in tokens; at least one.
    pub tokens: usize,
    /// What the caller attached to it.
    pub payload: T,
}

/// How batches are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The most tokens of a batch.
    pub max_tokens: usize,
    /// Whether the model pads texts to the longest of the batch, so that a batch
    /// costs `texts × longest` tokens.
    pub padded: bool,
    /// When several workers are idle, the queue is split among them into parts of
    /// no fewer tokens than this: smaller ones are not worth a second thread.
    pub min_share: usize,
}

impl Policy {
    fn cost(&self, texts: usize, total: usize, longest: usize) -> usize {
        if self.padded { texts * longest } else { total }
    }
}

/// Why a batch is as large as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// It took everything that waited.
    Drained,
    /// It left a share for other idle workers.
    Shared,
    /// It reached the token budget.
    Full,
}

/// Jobs to embed together, longest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// The jobs.
    pub jobs: Vec<Job<T>>,
    /// Why it has this size.
    pub why: Why,
}

/// How far beyond one batch the policy looks for texts of similar length, in
/// budgets. More sorts better and costs more per decision.
const WINDOW: usize = 4;

/// The queue and the policy on it. See the module.
#[derive(Debug)]
pub struct Batcher<T> {
    policy: Policy,
    queue: VecDeque<Job<T>>,
    tokens: usize,
}

impl<T> Batcher<T> {
    /// An empty queue.
    pub const fn new(policy: Policy) -> Self {
        Self { policy, queue: VecDeque::new(), tokens: 0 }
    }

    /// How it makes batches.
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// Appends a job.
    pub fn push(&mut self, job: Job<T>) {
        self.tokens += job.tokens;
        self.queue.push_back(job);
    }

    /// Number of waiting jobs.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Number of waiting tokens.
    pub const fn tokens(&self) -> usize {
        self.tokens
    }

    /// Removes the jobs of a request whose caller has left.
    pub fn cancel(&mut self, request: u64) {
        self.queue.retain(|job| job.request != request);
        self.tokens = self.queue.iter().map(|job| job.tokens).sum();
    }

    /// The next batch for one of `idle` workers that have nothing to do (the one
    /// that asks included); nothing when nothing waits.
    pub fn next(&mut self, idle: usize) -> Option<Batch<T>> {
        let oldest = self.queue.front()?.tokens;
        let share = self.tokens.div_ceil(idle.max(1)).max(self.policy.min_share);
        let budget = share.min(self.policy.max_tokens);

        // The oldest jobs, up to a few budgets, sorted by length, the oldest first
        // among equals.
        let mut seen = 0;
        let window = self.queue.iter().take_while(|job| {
            let fits = seen < budget.saturating_mul(WINDOW);
            seen += job.tokens;
            fits
        });
        let mut order: Vec<(usize, usize)> =
            window.enumerate().map(|(position, job)| (job.tokens, position)).collect();
        order.sort_unstable_by_key(|&(tokens, position)| (std::cmp::Reverse(tokens), position));
        let anchor = order.iter().position(|&(_, position)| position == 0).unwrap_or(0);

        // From the oldest job outwards, to the neighbour that is closer in length,
        // until the budget is spent.
        let (mut first, mut last) = (anchor, anchor + 1);
        let mut total = oldest;
        loop {
            let longer = first.checked_sub(1).and_then(|index| order.get(index)).map(|job| job.0);
            let shorter = order.get(last).map(|job| job.0);
            let up = match (longer, shorter) {
                (Some(longer), Some(shorter)) => longer - oldest <= oldest - shorter,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => break,
            };
            let candidate = if up { longer } else { shorter }.unwrap_or(0);
            let longest = if up { candidate } else { order.get(first).map_or(oldest, |job| job.0) };
            if self.policy.cost(last - first + 1, total + candidate, longest) > budget {
                break;
            }
            total += candidate;
            if up {
                first -= 1;
            } else {
                last += 1;
            }
        }

        let taken: Vec<usize> = order.drain(first..last).map(|(_, position)| position).collect();
        let jobs = self.take(&taken);
        let why = if self.queue.is_empty() {
            Why::Drained
        } else if budget < self.policy.max_tokens {
            Why::Shared
        } else {
            Why::Full
        };
        Some(Batch { jobs, why })
    }

    /// Removes the jobs at these positions and returns them in this order.
    fn take(&mut self, positions: &[usize]) -> Vec<Job<T>> {
        let end = positions.iter().max().map_or(0, |&last| last + 1);
        let mut head: Vec<Option<Job<T>>> = self.queue.drain(..end).map(Some).collect();
        let jobs: Vec<Job<T>> =
            positions.iter().filter_map(|&position| head.get_mut(position).and_then(Option::take)).collect();
        for job in head.into_iter().rev().flatten() {
            self.queue.push_front(job);
        }
        self.tokens -= jobs.iter().map(|job| job.tokens).sum::<usize>();
        jobs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PACKED: Policy = Policy { max_tokens: 100, padded: false, min_share: 10 };
    const PADDED: Policy = Policy { padded: true, ..PACKED };

    fn batcher(policy: Policy, lengths: &[usize]) -> Batcher<usize> {
        let mut batcher = Batcher::new(policy);
        for (payload, &tokens) in lengths.iter().enumerate() {
            batcher.push(Job { request: payload as u64 / 2, tokens, payload });
        }
        batcher
    }

    /// (positions taken, why)
    fn next(batcher: &mut Batcher<usize>, idle: usize) -> Option<(Vec<usize>, Why)> {
        batcher.next(idle).map(|batch| (batch.jobs.iter().map(|job| job.payload).collect(), batch.why))
    }

    #[test]
    fn the_policy_in_a_table() {
        let table: [(&str, Policy, &[usize], usize, &[usize], Why); 9] = [
            ("everything, longest first", PACKED, &[5, 9, 7], 1, &[1, 2, 0], Why::Drained),
            ("equal lengths stay in order", PACKED, &[5, 5, 5], 1, &[0, 1, 2], Why::Drained),
            ("a text over the budget goes alone", PACKED, &[500, 5], 1, &[0], Why::Full),
            ("the budget is kept", PACKED, &[60, 60], 1, &[0], Why::Full),
            ("neighbours in length of the oldest", PACKED, &[50, 10, 49, 11], 1, &[0, 2], Why::Full),
            ("padding counts", PADDED, &[50, 1, 1, 50], 1, &[0, 3], Why::Full),
            ("two idle workers share", PACKED, &[20, 20, 20, 20], 2, &[0, 1], Why::Shared),
            ("small work is not shared", PACKED, &[4, 4], 2, &[0, 1], Why::Drained),
            ("no worker counts as one", PACKED, &[4, 4], 0, &[0, 1], Why::Drained),
        ];
        for (name, policy, lengths, idle, taken, why) in table {
            let mut batcher = batcher(policy, lengths);
            assert_eq!(next(&mut batcher, idle), Some((taken.to_vec(), why)), "{name}");
            assert_eq!(batcher.len(), lengths.len() - taken.len(), "{name}");
        }
    }

    #[test]
    fn an_empty_queue_gives_nothing() {
        assert_eq!(next(&mut batcher(PACKED, &[]), 1), None);
    }

    #[test]
    fn a_cancelled_request_leaves_the_queue() {
        let mut batcher = batcher(PACKED, &[3, 4, 5, 6]);
        batcher.cancel(0);
        assert_eq!(batcher.tokens(), 11);
        assert_eq!(next(&mut batcher, 1), Some((vec![3, 2], Why::Drained)));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_doubled_and_the_oldest_never_waits(
            lengths in prop::collection::vec(1usize..80, 1..200),
            idle in 1usize..5,
            padded: bool,
            max_tokens in 1usize..300,
        ) {
            let policy = Policy { max_tokens, padded, min_share: 16 };
            let mut batcher = batcher(policy, &lengths);
            let mut left: std::collections::BTreeSet<usize> = (0..lengths.len()).collect();
            while let Some(batch) = batcher.next(idle) {
                let oldest = left.first().copied();
                let sizes: Vec<usize> = batch.jobs.iter().map(|job| job.tokens).collect();
                prop_assert!(sizes.is_sorted_by(|a, b| a >= b), "longest first: {sizes:?}");
                prop_assert!(
                    sizes.len() == 1 || policy.cost(sizes.len(), sizes.iter().sum(), sizes[0]) <= max_tokens,
                    "over budget: {sizes:?}"
                );
                prop_assert!(batch.jobs.iter().any(|job| Some(job.payload) == oldest), "the oldest waits");
                for job in batch.jobs {
                    prop_assert!(left.remove(&job.payload), "handed out twice");
                }
                prop_assert_eq!(batcher.tokens(), left.iter().map(|&index| lengths[index]).sum::<usize>());
            }
            prop_assert!(left.is_empty());
        }
    }
}
