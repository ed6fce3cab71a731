//! The texts that wait in one lane, in an order that is fair between clients.
//!
//! # Flow
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). Virtual time says how many tokens a client
//! has had who was always there. A text *begins* when its client's last one ends, or now if that is over, and
//! takes as long as it has tokens; texts go in the order in which they begin. So a client's texts are one behind
//! the other, and those of several interleave token by token. Now is when the text began that was the first of
//! the last batch.
//!
//! # Guarantees
//!
//! - Clients who have something in line all the time get the same number of tokens, but for a window.
//! - A client who comes with one text is next, whatever another has in line.
//! - None starves, however many come after it. If all of them began now, and more came all the time than can be
//!   served, now would stay. So it follows, at a distance, a second clock, which goes on by what each of those who
//!   wait would have got of a batch: who comes much later begins later.
//! - Pushing, taking and leaving cost the logarithm of what waits, for each text.
//!
//! # Caveat
//!
//! What a caller who leaves would have got goes to his client's next texts; those of his client that
//! are in line behind it stay where they are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::{Client, Job, Origin};

/// Of virtual time to a token: so that a batch that many clients share is not rounded to nothing. At a million
/// tokens a second a u64 is full in five centuries.
const UNIT: u64 = 1024;

fn span(tokens: usize) -> u64 {
    (tokens as u64).saturating_mul(UNIT)
}

/// Where a text is in the fair order: the least goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// In virtual time.
    begins: u64,
    /// Of all texts that were ever in line.
    number: u64,
}

#[derive(Debug)]
struct Request {
    client: Client,
    at: Duration,
    /// Of all its texts, those that have left the line included.
    places: Vec<Place>,
    waiting: usize,
}

#[derive(Debug)]
struct Account {
    /// How many texts it has in line.
    waiting: usize,
    /// When its last text ends, in virtual time.
    ends: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Line<T> {
    jobs: BTreeMap<Place, Job<T>>,
    tokens: usize,
    /// Those with something in line.
    requests: BTreeMap<u64, Request>,
    /// Those with something in line, and those who have had more than their share.
    clients: HashMap<Client, Account>,
    /// Who has nothing in line but has had more than its share, by when that is over.
    ahead: BTreeSet<(u64, Client)>,
    /// Virtual time.
    now: u64,
    /// What each of those who wait would have had by now, had all been served alike. No less than `now`.
    alike: u64,
    /// How far `now` may be behind that, because texts of a window go in another order.
    slack: u64,
    /// How many texts were ever in line.
    numbered: u64,
    /// How many texts were looked at, put in line or taken out of it.
    #[cfg(test)]
    pub(super) steps: std::cell::Cell<usize>,
}

impl<T> Line<T> {
    /// An empty one, out of which texts are taken from windows of so many tokens.
    pub(super) fn new(window: usize) -> Self {
        Self {
            jobs: BTreeMap::new(),
            tokens: 0,
            requests: BTreeMap::new(),
            clients: HashMap::new(),
            ahead: BTreeSet::new(),
            now: 0,
            alike: 0,
            slack: span(window),
            numbered: 0,
            #[cfg(test)]
            steps: std::cell::Cell::new(0),
        }
    }

    #[cfg(test)]
    fn step(&self) {
        self.steps.set(self.steps.get() + 1);
    }

    /// Of how many clients something is remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.clients.len().max(self.ahead.len())
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) const fn tokens(&self) -> usize {
        self.tokens
    }

    /// Since when the oldest request has been in line.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.requests.first_key_value().map(|(_, request)| request.at)
    }

    pub(super) fn push(&mut self, origin: Origin, tokens: usize, payload: T) {
        #[cfg(test)]
        self.step();
        let Origin { request, client, lane: _, at } = origin;
        let account = self.clients.entry(client).or_insert(Account { waiting: 0, ends: self.now });
        if account.waiting == 0 {
            self.ahead.remove(&(account.ends, client));
        }
        let place = Place { begins: account.ends.max(self.now), number: self.numbered };
        self.numbered += 1;
        account.ends = place.begins.saturating_add(span(tokens));
        account.waiting += 1;
        let new = || Request { client, at, places: Vec::new(), waiting: 0 };
        let entry = self.requests.entry(request).or_insert_with(new);
        entry.places.push(place);
        entry.waiting += 1;
        self.tokens += tokens;
        self.jobs.insert(place, Job { request, tokens, payload });
    }

    /// The lengths and places of those who go first: as many as have so many tokens, or the first
    /// alone.
    pub(super) fn window(&self, tokens: usize) -> Vec<(usize, Place)> {
        let mut seen = 0;
        let window = self.jobs.iter().take_while(|(_, job)| {
            #[cfg(test)]
            self.step();
            let fits = seen < tokens.max(1);
            seen += job.tokens.max(1);
            fits
        });
        window.map(|(place, job)| (job.tokens, *place)).collect()
    }

    /// Takes the jobs at these places out of the line, in this order; and since when the oldest of them has been
    /// there.
    pub(super) fn take(&mut self, places: &[Place]) -> (Vec<Job<T>>, Duration) {
        let waiting = self.clients.len() - self.ahead.len();
        let mut since = Duration::MAX;
        let mut jobs = Vec::with_capacity(places.len());
        for &place in places {
            let Some((job, client, at)) = self.remove(place) else { continue };
            self.retire(client);
            since = since.min(at);
            jobs.push(job);
        }
        let each = span(jobs.iter().map(|job| job.tokens).sum()) / waiting.max(1) as u64;
        let first = places.iter().min().map_or(0, |place| place.begins);
        self.alike = self.alike.saturating_add(each.max(1)).max(first);
        self.now = self.now.max(first).max(self.alike.saturating_sub(self.slack));
        self.settle();
        (jobs, since)
    }

    /// Takes jobs of this request out of the line, its last ones first, at most so many.
    pub(super) fn cancel(&mut self, request: u64, most: usize) -> Vec<Job<T>> {
        let mut removed = Vec::new();
        let Some(client) = self.requests.get(&request).map(|request| request.client) else {
            return removed;
        };
        while removed.len() < most {
            // The entry goes with its last job.
            let Some(place) = self.requests.get_mut(&request).and_then(|entry| entry.places.pop()) else {
                break;
            };
            removed.extend(self.remove(place).map(|(job, _, _)| job));
        }
        // It did not get what it has left.
        if let Some(account) = self.clients.get_mut(&client) {
            let tokens = removed.iter().map(|job| job.tokens).sum();
            account.ends = account.ends.saturating_sub(span(tokens)).max(self.now);
        }
        self.retire(client);
        self.settle();
        removed
    }

    /// Takes out what is at a place; whose it is, and since when it was there. [`Line::retire`] is to follow.
    fn remove(&mut self, place: Place) -> Option<(Job<T>, Client, Duration)> {
        #[cfg(test)]
        self.step();
        let job = self.jobs.remove(&place)?;
        self.tokens -= job.tokens;
        let request = self.requests.get_mut(&job.request)?;
        let (client, at) = (request.client, request.at);
        request.waiting -= 1;
        if request.waiting == 0 {
            self.requests.remove(&job.request);
        }
        if let Some(account) = self.clients.get_mut(&client) {
            account.waiting -= 1;
        }
        Some((job, client, at))
    }

    /// A client without anything in line is remembered only for as long as it is ahead.
    fn retire(&mut self, client: Client) {
        if let Some(account) = self.clients.get(&client).filter(|account| account.waiting == 0) {
            self.ahead.insert((account.ends, client));
        }
    }

    /// Forgets who is ahead no more; all, where nobody waits for whom they could be ahead of.
    fn settle(&mut self) {
        if self.jobs.is_empty() {
            self.clients.clear();
            self.ahead.clear();
            (self.now, self.alike) = (0, 0);
        }
        while let Some(&(ends, client)) = self.ahead.first().filter(|(ends, _)| *ends <= self.now) {
            self.ahead.remove(&(ends, client));
            self.clients.remove(&client);
        }
    }
}
