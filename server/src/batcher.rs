//! Which waiting texts are embedded together: a pure policy.
//!
//! # Flow
//!
//! Jobs are pushed as they arrive, each into the lane of its request. A worker that has
//! nothing to do asks [`Batcher::next`] and gets a batch, or nothing. There is no artificial
//! delay: while all workers are busy jobs gather by themselves, and a worker that is idle
//! takes what is there at once.
//!
//! ```text
//! push ─┬─ interactive: Line ─┐ which lane?  the first in fair order, and those of the
//!       └─ bulk:        Line ─┴─▶ next ────▶ WINDOW behind it that are nearest in length ─▶ Batch
//! ```
//!
//! # Lanes
//!
//! What somebody waits for goes before what is worked off: [`Lane::Interactive`] before
//! [`Lane::Bulk`]. Neither starves. While both wait, bulk that has waited for [`PATIENCE`] gets one
//! token of every [`SHARE`]` + 1`, and interactive gets all the others.
//!
//! A batch is of one lane: a lone text is not made to wait for a forward of a thousand tokens of
//! somebody's bulk that would ride along. That costs little of the whole. Lone texts gather while a
//! forward of bulk runs, so that at most every other forward is a small one, and what a small one costs
//! beyond its tokens is a few percent of a full one.
//!
//! # Clients
//!
//! In a lane, clients share by tokens ([`Line`]): the next is of whom the least was embedded.
//! Somebody's million texts let the one text of somebody else into the very next batch.
//!
//! # Guarantees
//!
//! - Every job is handed out exactly once, or removed by [`Batcher::cancel`].
//! - The first job of a lane's fair order is in its next batch: no client starves.
//! - A batch keeps to the token budget, unless it is a single job.
//! - A batch is sorted by length, longest first, and made of classes of length that are neighbours:
//!   padded models waste little, and padding-free ones meet runs of equal length.
//! - A decision looks at no more than [`WINDOW`] budgets, and leaving costs what one has in line:
//!   neither depends on how much waits.
//!
//! It knows neither clock, thread nor tensor. Times are since any one moment.

mod line;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::net::IpAddr;
use std::time::Duration;

use line::{Line, Place};

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

/// Who asks, as far as is known: clients share a model by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// Nothing is known: all of these are one.
    #[default]
    Unknown,
    /// The address at the other end of the connection.
    Address(IpAddr),
}

/// How urgent a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Somebody waits for it.
    Interactive,
    /// It is worked off.
    Bulk,
}

impl Lane {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Interactive, Self::Bulk];

    /// The most texts of a request that is interactive unless it says otherwise.
    ///
    /// A question is one text, or a few where it is asked in several ways. What libraries cut
    /// documents into to have them embedded is more: 10 texts (`LlamaIndex`), 32 (Haystack), 96
    /// (Cohere), 1,000 (`LangChain`).
    pub const MOST_INTERACTIVE: usize = 8;

    /// That of a request with so many texts, which does not say how urgent it is.
    pub const fn of(texts: usize) -> Self {
        if texts <= Self::MOST_INTERACTIVE { Self::Interactive } else { Self::Bulk }
    }

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
        }
    }
}

impl std::str::FromStr for Lane {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|lane| lane.name() == text).ok_or(())
    }
}

/// Where texts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The request's number; later requests have higher ones.
    pub request: u64,
    /// Who asks.
    pub client: Client,
    /// How urgent it is.
    pub lane: Lane,
    /// When it was put in line.
    pub at: Duration,
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
    const fn cost(&self, texts: usize, total: usize, longest: usize) -> usize {
        if self.padded { texts * longest } else { total }
    }
}

/// Why a batch is as large as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// It took everything that waited in its lane.
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
    /// The lane that they are of.
    pub lane: Lane,
    /// How long the one of them that has waited longest had.
    pub waited: Duration,
    /// Why it has this size.
    pub why: Why,
}

/// How far beyond one batch the policy looks for texts of similar length, in
/// budgets. More sorts better, costs more per decision, and lets more go before a text whose
/// turn it is than its turn says: at most so much.
const WINDOW: usize = 4;

/// How long bulk waits before it gets a share of what interactive wants, too.
///
/// A burst of questions that is over by then meets no bulk at all. Who sends bulk waits for seconds
/// anyway: 10,000 texts take that long on any CPU. Clients give up after 60 s and more.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// How many tokens of interactive go before each token of bulk that has waited long enough. Where
/// questions come as fast as they can be answered they take a third longer, and bulk gets on at a quarter
/// of its speed.
pub const SHARE: usize = 3;

/// The queue and the policy on it. See the module.
#[derive(Debug)]
pub struct Batcher<T> {
    policy: Policy,
    interactive: Line<T>,
    bulk: Line<T>,
    /// Tokens of interactive that went before bulk that waited, less [`SHARE`] for each token of bulk that
    /// went before interactive that waited.
    passed: i64,
}

impl<T> Batcher<T> {
    /// An empty queue.
    pub fn new(policy: Policy) -> Self {
        let window = policy.max_tokens.saturating_mul(WINDOW);
        Self { policy, interactive: Line::new(window), bulk: Line::new(window), passed: 0 }
    }

    /// How it makes batches.
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    const fn line(&self, lane: Lane) -> &Line<T> {
        match lane {
            Lane::Interactive => &self.interactive,
            Lane::Bulk => &self.bulk,
        }
    }

    const fn line_mut(&mut self, lane: Lane) -> &mut Line<T> {
        match lane {
            Lane::Interactive => &mut self.interactive,
            Lane::Bulk => &mut self.bulk,
        }
    }

    /// Puts a job at its request's end of the line.
    pub fn push(&mut self, origin: Origin, tokens: usize, payload: T) {
        self.line_mut(origin.lane).push(origin, tokens, payload);
    }

    /// Number of waiting jobs.
    pub fn len(&self) -> usize {
        self.interactive.len() + self.bulk.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of waiting tokens.
    pub const fn tokens(&self) -> usize {
        self.interactive.tokens() + self.bulk.tokens()
    }

    /// (jobs, tokens) that wait in a lane.
    pub fn waiting(&self, lane: Lane) -> (usize, usize) {
        (self.line(lane).len(), self.line(lane).tokens())
    }

    /// Removes jobs of a request whose caller has left, at most so many at once; fewer than that are
    /// its last. They are given back because letting go of them takes longer than this.
    pub fn cancel(&mut self, request: u64, most: usize) -> Vec<Job<T>> {
        let mut removed = self.interactive.cancel(request, most);
        if removed.len() < most {
            removed.extend(self.bulk.cancel(request, most - removed.len()));
        }
        self.settle();
        removed
    }

    /// The next batch for one of `idle` workers that have nothing to do (the one
    /// that asks included); nothing when nothing waits.
    pub fn next(&mut self, idle: usize, now: Duration) -> Option<Batch<T>> {
        let policy = self.policy;
        let lane = self.lane(now)?;
        let waiting = self.line_mut(lane);
        let share = waiting.tokens().div_ceil(idle.max(1)).max(policy.min_share);
        let budget = share.min(policy.max_tokens);
        let chosen = choose(&waiting.window(budget.saturating_mul(WINDOW)), policy, budget);
        let (jobs, since) = waiting.take(&chosen);
        let why = if waiting.is_empty() {
            Why::Drained
        } else if budget < policy.max_tokens {
            Why::Shared
        } else {
            Why::Full
        };
        self.count(lane, jobs.iter().map(|job| job.tokens).sum());
        Some(Batch { jobs, lane, waited: now.saturating_sub(since), why })
    }

    /// The lane whose turn it is.
    fn lane(&self, now: Duration) -> Option<Lane> {
        let Some(since) = self.bulk.oldest() else {
            return (!self.interactive.is_empty()).then_some(Lane::Interactive);
        };
        let is_old = now.saturating_sub(since) >= PATIENCE;
        let batch = self.bulk.tokens().min(self.policy.max_tokens);
        let is_due = is_old && self.passed >= (batch * SHARE) as i64;
        Some(if self.interactive.is_empty() || is_due { Lane::Bulk } else { Lane::Interactive })
    }

    /// Counts what one lane got while the other waited.
    fn count(&mut self, lane: Lane, tokens: usize) {
        match lane {
            // No more than makes one batch due: bulk that could not be served before it was old has no
            // claim to many of them at once.
            Lane::Interactive => {
                let most = (self.policy.max_tokens * SHARE) as i64;
                self.passed = (self.passed + tokens as i64).min(most);
            }
            Lane::Bulk if self.interactive.is_empty() => self.passed = 0,
            Lane::Bulk => self.passed -= (tokens * SHARE) as i64,
        }
        self.settle();
    }

    /// Nobody goes before what does not wait.
    fn settle(&mut self) {
        if self.bulk.is_empty() {
            self.passed = 0;
        }
    }
}

/// The class of a length: four to a doubling, so that lengths of a class differ by less than a quarter.
const fn class(tokens: usize) -> usize {
    let tokens = if tokens == 0 { 1 } else { tokens };
    let doublings = tokens.ilog2() as usize;
    // The two bits behind the first one.
    let first_three = if doublings >= 2 { tokens >> (doublings - 2) } else { tokens << (2 - doublings) };
    doublings * 4 + (first_three & 3)
}

/// The places of a batch, longest first: the first of the window, and with it those of its class and then of
/// the classes next to it, until the budget is spent. Within a class, fair order is kept.
fn choose(window: &[(usize, Place)], policy: Policy, budget: usize) -> Vec<Place> {
    let Some(&(first, _)) = window.first() else { return Vec::new() };
    let mut order: Vec<_> = window
        .iter()
        .map(|&(tokens, place)| {
            let (own, of_first) = (class(tokens), class(first));
            // Of two classes that are as near, the longer one first.
            (own.abs_diff(of_first), own < of_first, place, tokens)
        })
        .collect();
    order.sort_unstable();
    let (mut total, mut longest) = (0, 0);
    let mut chosen = Vec::new();
    for (_, _, place, tokens) in order {
        total += tokens;
        longest = longest.max(tokens);
        if !chosen.is_empty() && policy.cost(chosen.len() + 1, total, longest) > budget {
            break;
        }
        chosen.push((Reverse(tokens), place));
    }
    chosen.sort_unstable();
    chosen.into_iter().map(|(_, place)| place).collect()
}
