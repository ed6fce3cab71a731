//! Tables of decisions, and what holds of any: with times that are made up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use Lane::{Bulk, Interactive};
use proptest::prelude::*;

use super::*;

const PACKED: Policy = Policy { max_tokens: 100, padded: false, min_share: 10 };
const PADDED: Policy = Policy { padded: true, ..PACKED };

fn client(number: u32) -> Client {
    Client::Address(Ipv4Addr::from(number).into())
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A request of texts of one length.
#[derive(Clone, Copy, Debug)]
struct Ask {
    at: u64,
    client: u32,
    lane: Lane,
    texts: usize,
    tokens: usize,
}

fn ask(at: u64, client: u32, lane: Lane, texts: usize, tokens: usize) -> Ask {
    Ask { at, client, lane, texts, tokens }
}

/// Puts requests in line, which are numbered; a job's payload is its number in the whole.
fn push(batcher: &mut Batcher<usize>, asks: &[Ask]) {
    let mut payload = 0;
    for (request, ask) in asks.iter().enumerate() {
        let origin =
            Origin { request: request as u64, client: client(ask.client), lane: ask.lane, at: ms(ask.at) };
        for _ in 0..ask.texts {
            batcher.push(origin, ask.tokens, payload);
            payload += 1;
        }
    }
}

/// Texts of these lengths of one client, two to a request.
fn batcher(policy: Policy, lengths: &[usize]) -> Batcher<usize> {
    let mut batcher = Batcher::new(policy);
    for (payload, &tokens) in lengths.iter().enumerate() {
        let origin =
            Origin { request: payload as u64 / 2, client: client(1), lane: Interactive, at: Duration::ZERO };
        batcher.push(origin, tokens, payload);
    }
    batcher
}

/// (payloads taken, why)
fn next(batcher: &mut Batcher<usize>, idle: usize) -> Option<(Vec<usize>, Why)> {
    let batch = batcher.next(idle, Duration::ZERO)?;
    Some((batch.jobs.iter().map(|job| job.payload).collect(), batch.why))
}

/// (request, texts) of each request in a batch
type Requests = Vec<(u64, usize)>;

fn requests<T>(batch: &Batch<T>) -> Requests {
    let mut counts = BTreeMap::new();
    batch.jobs.iter().for_each(|job| *counts.entry(job.request).or_insert(0) += 1);
    counts.into_iter().collect()
}

#[test]
fn the_policy_in_a_table() {
    let table: [(&str, Policy, &[usize], usize, &[usize], Why); 12] = [
        ("everything, longest first", PACKED, &[5, 9, 7], 1, &[1, 2, 0], Why::Drained),
        ("equal lengths stay in order", PACKED, &[5, 5, 5], 1, &[0, 1, 2], Why::Drained),
        ("a text over the budget goes alone", PACKED, &[500, 5], 1, &[0], Why::Full),
        ("the budget is kept", PACKED, &[60, 60], 1, &[0], Why::Full),
        ("neighbours in length of the first", PACKED, &[50, 10, 49, 11], 1, &[0, 2], Why::Full),
        ("in fair order within a class", PACKED, &[48, 40, 49, 50], 1, &[2, 0], Why::Full),
        ("the nearer class", PACKED, &[16, 90, 80, 20, 10], 1, &[3, 0, 4], Why::Full),
        ("padding counts", PADDED, &[50, 1, 1, 50], 1, &[0, 3], Why::Full),
        ("two idle workers share", PACKED, &[20, 20, 20, 20], 2, &[0, 1], Why::Shared),
        ("small work is not shared", PACKED, &[4, 4], 2, &[0, 1], Why::Drained),
        ("no worker counts as one", PACKED, &[4, 4], 0, &[0, 1], Why::Drained),
        ("no further than the window", PACKED, &[100, 7, 99, 99, 98, 100], 1, &[0], Why::Full),
    ];
    for (name, policy, lengths, idle, taken, why) in table {
        let mut batcher = batcher(policy, lengths);
        assert_eq!(next(&mut batcher, idle), Some((taken.to_vec(), why)), "{name}");
        assert_eq!(batcher.len(), lengths.len() - taken.len(), "{name}");
    }
}

#[test]
fn lanes_and_clients_in_a_table() {
    // What is asked, and of each batch after so many milliseconds the texts of each request.
    let (one, other) = (1, 2);
    let asks_of = |rows: &[(u64, u32, Lane, usize, usize)]| -> Vec<Ask> {
        rows.iter().map(|&(at, client, lane, texts, tokens)| ask(at, client, lane, texts, tokens)).collect()
    };
    let table: [(&str, Vec<Ask>, Vec<(u64, Requests)>); 9] = [
        (
            "interactive goes first, and is not filled up with bulk",
            asks_of(&[(0, one, Bulk, 20, 10), (1, one, Interactive, 1, 10)]),
            vec![(1, vec![(1, 1)]), (1, vec![(0, 10)]), (1, vec![(0, 10)])],
        ),
        (
            "bulk is not filled up with anything either",
            asks_of(&[(0, one, Bulk, 3, 10)]),
            vec![(0, vec![(0, 3)])],
        ),
        (
            "a burst that is over before bulk is old meets none",
            asks_of(&[(0, one, Bulk, 10, 10), (0, other, Interactive, 50, 10)]),
            vec![
                (0, vec![(1, 10)]),
                (200, vec![(1, 10)]),
                (400, vec![(1, 10)]),
                (600, vec![(1, 10)]),
                (800, vec![(1, 10)]),
                (900, vec![(0, 10)]),
            ],
        ),
        (
            "bulk that is old gets a quarter",
            asks_of(&[(0, one, Bulk, 30, 10), (0, other, Interactive, 90, 10)]),
            vec![
                (1000, vec![(1, 10)]),
                (1001, vec![(1, 10)]),
                (1002, vec![(1, 10)]),
                (1003, vec![(0, 10)]),
                (1004, vec![(1, 10)]),
                (1005, vec![(1, 10)]),
                (1006, vec![(1, 10)]),
                (1007, vec![(0, 10)]),
            ],
        ),
        (
            "however long it was passed, it is one batch that is due",
            asks_of(&[(0, one, Bulk, 30, 10), (0, other, Interactive, 90, 10)]),
            vec![
                (0, vec![(1, 10)]),
                (1, vec![(1, 10)]),
                (2, vec![(1, 10)]),
                (3, vec![(1, 10)]),
                (4, vec![(1, 10)]),
                (5, vec![(1, 10)]),
                (1000, vec![(0, 10)]),
                (1001, vec![(1, 10)]),
            ],
        ),
        (
            "a text behind another client's many is next",
            asks_of(&[(0, one, Bulk, 1000, 10), (0, other, Bulk, 1, 10)]),
            vec![(0, vec![(0, 9), (1, 1)])],
        ),
        (
            "clients share alike",
            asks_of(&[(0, one, Bulk, 100, 10), (0, other, Bulk, 100, 10)]),
            vec![(0, vec![(0, 5), (1, 5)]), (1, vec![(0, 5), (1, 5)])],
        ),
        (
            "they share tokens, not texts",
            asks_of(&[(0, one, Bulk, 100, 19), (0, other, Bulk, 100, 16)]),
            vec![(0, vec![(0, 2), (1, 3)]), (1, vec![(0, 3), (1, 2)]), (2, vec![(0, 2), (1, 3)])],
        ),
        (
            "requests of a client go one after the other",
            asks_of(&[(0, one, Bulk, 15, 10), (0, one, Bulk, 15, 10)]),
            vec![(0, vec![(0, 10)]), (1, vec![(0, 5), (1, 5)]), (2, vec![(1, 10)])],
        ),
    ];
    for (name, asks, expected) in table {
        let mut batcher = Batcher::new(PACKED);
        push(&mut batcher, &asks);
        for (turn, (at, expected)) in expected.into_iter().enumerate() {
            let batch = batcher.next(1, ms(at)).unwrap();
            assert_eq!(requests(&batch), expected, "{name}, batch {turn}");
        }
    }
}

#[test]
fn a_newcomer_is_in_the_next_batch_whatever_another_client_has_in_line() {
    for lengths in [&[10][..], &[50, 3, 80, 1], &[1, 100, 1, 1, 40], &[90, 5]] {
        // Of two who come at once, one is first.
        for turns in 1..40 {
            let mut batcher = Batcher::new(PACKED);
            let origin =
                |request, client| Origin { request, client, lane: Bulk, at: Duration::from_secs(request) };
            for text in 0..3000 {
                batcher.push(origin(0, client(1)), lengths[text % lengths.len()], text);
            }
            for _ in 0..turns {
                batcher.next(1, Duration::ZERO).unwrap();
            }
            batcher.push(origin(1, client(2)), 7, 0);
            let batch = batcher.next(1, Duration::ZERO).unwrap();
            assert!(batch.jobs.iter().any(|job| job.request == 1), "{lengths:?} after {turns}");
        }
    }
}

#[test]
fn how_urgent_a_request_is_goes_by_its_texts_unless_it_says() {
    for (texts, lane) in [(0, Interactive), (1, Interactive), (8, Interactive), (9, Bulk), (1_000_000, Bulk)]
    {
        assert_eq!(Lane::of(texts), lane, "{texts}");
    }
    for lane in Lane::ALL {
        assert_eq!(lane.name().parse(), Ok(lane));
    }
    for wrong in ["", "Bulk", "high", "interactive,bulk"] {
        assert_eq!(wrong.parse::<Lane>(), Err(()), "{wrong}");
    }
}

#[test]
fn a_batch_says_how_long_its_oldest_text_has_waited() {
    let mut batcher = Batcher::new(PACKED);
    push(&mut batcher, &[ask(100, 1, Interactive, 1, 10), ask(200, 2, Interactive, 1, 10)]);
    assert_eq!(batcher.next(1, ms(350)).unwrap().waited, ms(250));
}

#[test]
fn an_empty_queue_gives_nothing() {
    assert_eq!(next(&mut batcher(PACKED, &[]), 1), None);
}

#[test]
fn a_cancelled_request_leaves_the_queue() {
    let mut batcher = batcher(PACKED, &[3, 4, 5, 6]);
    assert_eq!(batcher.cancel(0, 10).len(), 2);
    assert_eq!(batcher.tokens(), 11);
    assert_eq!(next(&mut batcher, 1), Some((vec![3, 2], Why::Drained)));
    assert!(batcher.cancel(1, 10).is_empty());
}

#[test]
fn a_large_request_leaves_in_parts() {
    let mut batcher = Batcher::new(PACKED);
    push(&mut batcher, &[ask(0, 1, Bulk, 25, 10), ask(0, 2, Bulk, 1, 10)]);
    batcher.next(1, Duration::ZERO).unwrap();
    let parts: Vec<usize> =
        std::iter::from_fn(|| Some(batcher.cancel(0, 7).len()).filter(|part| *part > 0)).collect();
    assert_eq!(parts, [7, 7, 2], "9 of the 25 were taken");
    assert!(batcher.is_empty());
}

#[test]
fn a_caller_who_left_is_not_charged_for_what_he_did_not_get() {
    let mut batcher = Batcher::new(PACKED);
    push(&mut batcher, &[ask(0, 1, Bulk, 1000, 10), ask(0, 2, Bulk, 1000, 10)]);
    batcher.cancel(0, usize::MAX);
    // He asks again, for less.
    let origin = Origin { request: 9, client: client(1), lane: Bulk, at: Duration::ZERO };
    (0..5).for_each(|payload| batcher.push(origin, 10, payload));
    assert_eq!(requests(&batcher.next(1, Duration::ZERO).unwrap()), [(1, 5), (9, 5)]);
}

/// Steps of all that is done to a queue, for each of its texts.
fn steps_a_text(lengths: impl Fn(usize) -> usize, texts: usize, leaves: bool) -> usize {
    let mut batcher = Batcher::new(Policy { max_tokens: 1024, padded: false, min_share: 64 });
    let origin = Origin { request: 1, client: client(1), lane: Bulk, at: Duration::ZERO };
    for text in 0..texts {
        batcher.push(origin, lengths(text), ());
    }
    if leaves {
        while !batcher.cancel(1, 256).is_empty() {}
    } else {
        while batcher.next(1, Duration::ZERO).is_some() {}
    }
    assert!(batcher.is_empty());
    batcher.bulk.steps.get() / texts
}

#[test]
fn what_a_text_costs_does_not_depend_on_how_many_there_are() {
    let mixed = |text: usize| [4, 9, 60, 250, 12, 30][text % 6];
    for texts in [100, 1000, 10_000, 100_000] {
        let steps = steps_a_text(mixed, texts, false);
        // It is pushed, taken, and looked at where it is in the window: a few times.
        assert!(steps <= 2 + 2 * WINDOW, "{steps} of each of {texts}");
        assert!(steps_a_text(mixed, texts, true) <= 2);
    }
}

#[test]
fn callers_who_leave_cost_what_they_had_in_line() {
    let mut batcher = Batcher::new(PACKED);
    push(&mut batcher, &vec![ask(0, 1, Interactive, 1, 10); 50_000]);
    let before = batcher.interactive.steps.get();
    for request in (0..50_000).step_by(7) {
        assert_eq!(batcher.cancel(request, 256).len(), 1);
    }
    assert_eq!(batcher.interactive.steps.get() - before, 50_000 / 7 + 1);
}

#[test]
fn nobody_is_remembered_for_longer_than_it_matters() {
    let mut batcher = Batcher::new(PACKED);
    let origin = |request, from| Origin { request, client: client(from), lane: Bulk, at: Duration::ZERO };
    (0..100_000).for_each(|_| batcher.push(origin(0, 0), 10, ()));
    for request in 1..5000 {
        batcher.push(origin(request, request as u32), 10, ());
        batcher.next(1, Duration::ZERO);
    }
    assert!(batcher.bulk.remembered() < 100, "{}", batcher.bulk.remembered());
}

/// A simulated server: a worker after the other is done and takes what comes next.
struct Simulation {
    batcher: Batcher<usize>,
    workers: Vec<u64>,
    asks: Vec<Ask>,
    asked: usize,
    /// When each text of each request was handed out.
    taken: Vec<Vec<u64>>,
    /// Tokens that each client has had.
    had: BTreeMap<u32, usize>,
}

impl Simulation {
    fn new(policy: Policy, workers: usize, mut asks: Vec<Ask>) -> Self {
        asks.sort_by_key(|ask| ask.at);
        let taken = vec![Vec::new(); asks.len()];
        let batcher = Batcher::new(policy);
        Self { batcher, workers: vec![0; workers], asks, asked: 0, taken, had: BTreeMap::new() }
    }

    /// One batch: a forward takes a millisecond for each token, and one more. When nothing waits, time goes on.
    fn step(&mut self) -> Option<(u64, Batch<usize>)> {
        loop {
            let worker = (0..self.workers.len()).min_by_key(|&worker| self.workers[worker])?;
            let now = self.workers[worker];
            while let Some(ask) = self.asks.get(self.asked).filter(|ask| ask.at <= now) {
                let (request, client) = (self.asked as u64, client(ask.client));
                let origin = Origin { request, client, lane: ask.lane, at: ms(ask.at) };
                (0..ask.texts).for_each(|_| self.batcher.push(origin, ask.tokens, self.asked));
                self.asked += 1;
            }
            if let Some(batch) = self.batcher.next(1, ms(now)) {
                for job in &batch.jobs {
                    self.taken[job.payload].push(now);
                    *self.had.entry(self.asks[job.payload].client).or_default() += job.tokens;
                }
                let tokens: usize = batch.jobs.iter().map(|job| job.tokens).sum();
                self.workers[worker] = now + tokens as u64 + 1;
                return Some((now, batch));
            }
            self.workers[worker] = self.asks.get(self.asked)?.at.max(now + 1);
        }
    }

    fn run(&mut self) {
        while self.step().is_some() {}
    }

    /// The longest that a text of a request has waited.
    fn waited(&self, request: usize) -> u64 {
        self.taken[request].iter().map(|taken| taken - self.asks[request].at).max().unwrap_or(0)
    }
}

#[test]
fn bulk_gets_on_however_many_questions_there_are() {
    // Questions of 40 tokens come every 30 ms for a minute: more than can be answered.
    let mut asks: Vec<_> =
        (0..2000).map(|number| ask(number * 30, number as u32, Interactive, 1, 40)).collect();
    asks.push(ask(0, 1, Bulk, 100, 10));
    let mut simulation = Simulation::new(PACKED, 1, asks);
    simulation.run();
    let bulk = simulation.asks.iter().position(|ask| ask.lane == Bulk).unwrap();
    // 1000 tokens at a quarter of the speed, and what a batch costs beyond its tokens.
    assert!(simulation.waited(bulk) < 6000, "{}", simulation.waited(bulk));
}

#[test]
fn bulk_gets_on_also_where_every_batch_of_questions_is_all_there_are() {
    let mut asks: Vec<_> = (0..2000).map(|number| ask(number * 21, 1, Interactive, 1, 20)).collect();
    asks.push(ask(0, 1, Bulk, 50, 10));
    let mut simulation = Simulation::new(PACKED, 1, asks);
    simulation.run();
    let bulk = simulation.asks.iter().position(|ask| ask.lane == Bulk).unwrap();
    assert!(simulation.waited(bulk) < 6000, "{}", simulation.waited(bulk));
}

#[test]
fn questions_wait_for_a_batch_or_two_however_much_bulk_there_is() {
    let mut asks = vec![ask(0, 1, Bulk, 20_000, 10), ask(0, 2, Bulk, 2000, 100)];
    asks.extend((0..500).map(|number| ask(number * 500, 1, Interactive, 1, 10)));
    let mut simulation = Simulation::new(PACKED, 2, asks);
    simulation.run();
    for request in 0..simulation.asks.len() {
        if simulation.asks[request].lane == Interactive {
            assert!(simulation.waited(request) <= 202, "{request}: {}", simulation.waited(request));
        }
    }
}

#[test]
fn an_old_client_gets_on_however_many_new_ones_come() {
    let mut batcher = Batcher::new(PACKED);
    let origin = |request, from| Origin { request, client: client(from), lane: Bulk, at: Duration::ZERO };
    (0..50).for_each(|_| batcher.push(origin(0, 0), 10, ()));
    let mut turns = 0u32;
    let mut left = 50;
    while left > 0 {
        // Twice as much as is taken, until 300 wait.
        for number in 0..20 {
            if batcher.len() < 300 {
                let from = 1 + turns * 20 + number;
                batcher.push(origin(u64::from(from), from), 10, ());
            }
        }
        let batch = batcher.next(1, Duration::ZERO).unwrap();
        left -= batch.jobs.iter().filter(|job| job.request == 0).count();
        turns += 1;
        // Its 50 texts of 300 clients' as many, and the distance at which time follows.
        assert!(turns < 300 * 50 / 10 + 300 * WINDOW as u32, "{left} left");
    }
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let one = (0u64..4000, 0u32..5, any::<bool>(), 1usize..40, 1usize..150);
    let one = one.prop_map(|(at, client, bulk, texts, tokens)| {
        ask(at, client, if bulk { Bulk } else { Interactive }, texts, tokens)
    });
    prop::collection::vec(one, 1..40)
}

/// What happens to a queue.
#[derive(Clone, Debug)]
enum Event {
    Push { client: u32, bulk: bool, lengths: Vec<usize> },
    Next { idle: usize, later: u64 },
    Cancel { request: usize, most: usize },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let lengths = prop::collection::vec(1usize..200, 1..30);
    let event = prop_oneof![
        3 => (0u32..4, any::<bool>(), lengths)
            .prop_map(|(client, bulk, lengths)| Event::Push { client, bulk, lengths }),
        4 => (0usize..5, 0u64..700).prop_map(|(idle, later)| Event::Next { idle, later }),
        1 => (0usize..40, 1usize..20).prop_map(|(request, most)| Event::Cancel { request, most }),
    ];
    prop::collection::vec(event, 1..120)
}

proptest! {
    #[test]
    fn nothing_is_lost_or_doubled_and_the_budget_holds(
        events in events(),
        padded: bool,
        max_tokens in 1usize..300,
    ) {
        let policy = Policy { max_tokens, padded, min_share: 16 };
        let mut batcher = Batcher::new(policy);
        let mut waiting: BTreeMap<usize, (u64, usize, Lane)> = BTreeMap::new();
        let (mut requests, mut texts, mut now) = (0, 0, 0);
        // What is left at the end is taken.
        let rest = std::iter::repeat_n(Event::Next { idle: 1, later: 1 }, 4000);
        for event in events.into_iter().chain(rest) {
            match event {
                Event::Push { client: from, bulk, lengths } => {
                    let lane = if bulk { Bulk } else { Interactive };
                    for tokens in lengths {
                        let origin = Origin { request: requests, client: client(from), lane, at: ms(now) };
                        batcher.push(origin, tokens, texts);
                        waiting.insert(texts, (requests, tokens, lane));
                        texts += 1;
                    }
                    requests += 1;
                }
                Event::Cancel { request, most } => {
                    let removed = batcher.cancel(request as u64, most);
                    let had = waiting.values().filter(|job| job.0 == request as u64).count();
                    prop_assert_eq!(removed.len(), had.min(most));
                    for job in removed {
                        prop_assert_eq!(waiting.remove(&job.payload).map(|job| job.0), Some(request as u64));
                    }
                }
                Event::Next { idle, later } => {
                    now += later;
                    let Some(batch) = batcher.next(idle, ms(now)) else {
                        prop_assert!(waiting.is_empty());
                        continue;
                    };
                    let sizes: Vec<usize> = batch.jobs.iter().map(|job| job.tokens).collect();
                    prop_assert!(!sizes.is_empty());
                    prop_assert!(sizes.is_sorted_by(|a, b| a >= b), "longest first: {sizes:?}");
                    let cost = policy.cost(sizes.len(), sizes.iter().sum(), sizes[0]);
                    prop_assert!(sizes.len() == 1 || cost <= max_tokens, "over budget: {sizes:?}");
                    for job in batch.jobs {
                        let expected = (job.request, job.tokens, batch.lane);
                        prop_assert_eq!(waiting.remove(&job.payload), Some(expected), "twice, or of nobody");
                    }
                }
            }
            let tokens: usize = waiting.values().map(|job| job.1).sum();
            prop_assert_eq!((batcher.len(), batcher.tokens()), (waiting.len(), tokens));
        }
        prop_assert!(batcher.is_empty());
    }

    #[test]
    fn no_lane_and_no_client_starves(asks in asks(), workers in 1usize..4) {
        let mut simulation = Simulation::new(PACKED, workers, asks);
        simulation.run();
        for (request, ask) in simulation.asks.iter().enumerate() {
            prop_assert_eq!(simulation.taken[request].len(), ask.texts);
            // All that there is, at a quarter of the speed: what a client can be made to wait by others is
            // less, but what it had of its own counts, too.
            let work: usize = simulation.asks.iter().map(|ask| ask.texts * (ask.tokens + 1)).sum();
            let most = PATIENCE.as_millis() as u64 + 4 * work as u64;
            prop_assert!(simulation.waited(request) <= most);
        }
        let of_questions = |ask: &Ask| ask.lane == Interactive;
        let questions: usize =
            simulation.asks.iter().filter(|ask| of_questions(ask)).map(|ask| ask.texts * (ask.tokens + 1)).sum();
        for (request, _) in simulation.asks.iter().enumerate().filter(|(_, ask)| of_questions(ask)) {
            // All other questions, a third of that for bulk, and the batches that are running.
            let most = questions * 4 / 3 + 2 * (PACKED.max_tokens + 150);
            prop_assert!(simulation.waited(request) <= most as u64);
        }
    }

    #[test]
    fn clients_who_always_have_something_in_line_get_alike(
        lengths in prop::collection::vec(prop::collection::vec(1usize..100, 1..8), 2..6),
        padded: bool,
    ) {
        let mut batcher = Batcher::new(Policy { padded, ..PACKED });
        for (from, lengths) in lengths.iter().enumerate() {
            let origin = Origin { request: from as u64, client: client(from as u32), lane: Bulk, at: ms(0) };
            let mut tokens = 0;
            for length in lengths.iter().cycle() {
                batcher.push(origin, *length, from);
                tokens += length;
                if tokens > 5000 {
                    break;
                }
            }
        }
        let mut had = vec![0; lengths.len()];
        for _ in 0..40 {
            let batch = batcher.next(1, ms(0)).unwrap();
            batch.jobs.iter().for_each(|job| had[job.payload] += job.tokens);
            let (least, most) = (had.iter().min().unwrap(), had.iter().max().unwrap());
            // What is looked at beyond the first is another's at most, and a text is whole.
            prop_assert!(most - least <= WINDOW * 100 + 200, "{had:?}");
        }
    }

    #[test]
    fn a_newcomer_waits_for_no_more_than_its_share(
        before in prop::collection::vec((0u32..6, 1usize..60, 1usize..100), 1..20),
        turns in 0usize..60,
    ) {
        let mut batcher = Batcher::new(PACKED);
        for (request, &(from, texts, tokens)) in before.iter().enumerate() {
            let origin = Origin { request: request as u64, client: client(from), lane: Bulk, at: ms(0) };
            (0..texts).for_each(|_| batcher.push(origin, tokens, from));
        }
        for _ in 0..turns {
            batcher.next(1, ms(0));
        }
        batcher.push(Origin { request: 1000, client: client(99), lane: Bulk, at: ms(0) }, 10, 99);
        let others: BTreeSet<u32> = before.iter().map(|(from, _, _)| *from).collect();
        let mut had: BTreeMap<u32, usize> = BTreeMap::new();
        while batcher.waiting(Bulk).0 > 0 {
            let batch = batcher.next(1, ms(0)).unwrap();
            if batch.jobs.iter().any(|job| job.payload == 99) {
                break;
            }
            batch.jobs.iter().for_each(|job| *had.entry(job.payload).or_default() += job.tokens);
        }
        // All others together get what is in one window.
        let all: usize = had.values().sum();
        prop_assert!(all <= WINDOW * 100 + 100 * (1 + others.len()), "{had:?}");
    }
}
