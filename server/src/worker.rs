//! The threads that own the forwards.
//!
//! # Flow
//!
//! [`Queue::submit`] puts the texts of a request in line; a worker takes a batch,
//! embeds it, and answers each text through its own channel.
//!
//! # Guarantees
//!
//! - A model handle belongs to one thread; nothing locks around a forward.
//! - A batch that fails is repeated text by text: one bad text harms no other. One that is too much for the memory of
//!   its device is repeated by halves.
//! - A panic inside a forward is such a failure; the thread goes on.
//! - A caller that has left ([`Queue::cancel`]) leaves the line at once.
//! - After [`Queue::close`] what is in line is still answered, then the threads end.
//!
//! # The watchdog
//!
//! Each thread writes down when its forward began. [`Heartbeats::stuck`] tells whether
//! one has been at it for longer than the deadline, or has died. A long line is
//! not stuck: it only means that there is much to do.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::batcher::{Batch, Batcher, Client, Job, Lane, Origin, Policy, Why};
use crate::model::{self, Model, Sequence, Spare, TokenBatch};

/// Why a text has no vector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The model failed on it.
    #[error("the model failed on this text: {0}")]
    Failed(String),
    /// It alone is more than the model's device has memory for.
    #[error("the device has not enough memory for this text of {tokens} tokens: shorten it")]
    TooLarge {
        /// Its tokens.
        tokens: usize,
    },
    /// The vector has NaN or infinity in it.
    #[error("the model made a vector with values that are not finite for this text")]
    NotFinite,
    /// The workers are shutting down.
    #[error("the model is stopping")]
    Stopping,
}

/// What is wanted of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// One vector.
    #[default]
    Vector,
    /// The state of each of its tokens, one after the other.
    TokenStates,
}

/// A text in line, with the way back to its caller.
#[derive(Debug)]
pub struct Text {
    sequence: Sequence,
    output: Output,
    reply: oneshot::Sender<Result<Vec<f32>, Error>>,
}

#[derive(Debug)]
struct Line {
    batcher: Batcher<Text>,
    idle: usize,
    /// How many are in a forward.
    busy: usize,
    /// How many times in a row texts came when nobody was in a forward.
    alone: usize,
    closed: bool,
}

impl Line {
    fn come(&mut self) {
        self.alone = if self.busy == 0 { self.alone.saturating_add(1) } else { 0 };
    }

    /// How many idle workers, besides the one that takes the last of what waits, are of no use but to help it.
    ///
    /// Where callers come now and then, that is all of them. Where several come all the time, one that helps holds
    /// up the threads that bring the next texts, and the batches that come of it are smaller: with 8 callers a
    /// tenth fewer texts a second, measured.
    fn spare(&self) -> usize {
        if self.batcher.is_empty() && self.alone >= RARE { (self.idle - 1).min(MOST_SPARE) } else { 0 }
    }
}

/// What a finished batch was like; for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Number of texts.
    pub texts: usize,
    /// Number of tokens in them.
    pub tokens: usize,
    /// Why it had this size.
    pub why: Why,
    /// The lane that its texts were of.
    pub lane: Lane,
    /// How long the text of it that had waited longest had.
    pub waited: Duration,
    /// How long the forward took.
    pub took: Duration,
}

/// How many texts are put in line, or taken out of it, at a time: of a request with a million, other requests
/// and the workers do not wait until all are there, but for a fraction of a millisecond.
const AT_ONCE: usize = 256;

/// How many times in a row texts have to come while nothing runs for callers to be called rare.
const RARE: usize = 2;

/// The most threads that help with a forward: each more meets the others at every step, and gets less to do in
/// between.
const MOST_SPARE: usize = 7;

/// After which pauses a text is tried again for which its device had no memory.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(200)];

/// A receiver for each text of a request.
pub type Receivers = Vec<oneshot::Receiver<Result<Vec<f32>, Error>>>;

/// The line of waiting texts before a model's workers.
#[derive(Debug)]
pub struct Queue {
    line: Mutex<Line>,
    wake: Condvar,
    next_request: AtomicU64,
    /// The batcher's times are since this.
    epoch: Instant,
    /// Whether idle workers are of no use but to help with the forward that runs.
    spare: Arc<AtomicBool>,
}

impl Queue {
    /// An empty line.
    pub fn new(policy: Policy) -> Arc<Self> {
        Arc::new(Self {
            line: Mutex::new(Line {
                batcher: Batcher::new(policy),
                idle: 0,
                busy: 0,
                alone: 0,
                closed: false,
            }),
            wake: Condvar::new(),
            next_request: AtomicU64::new(0),
            epoch: Instant::now(),
            spare: Arc::default(),
        })
    }

    // A panic while the lock is held cannot leave the line half-changed: the
    // batcher is pure, and forwards run outside of it.
    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts texts in line, so that workers see all of them at once, or many.
    /// Returns the request's number, for [`Queue::cancel`], and a receiver a text.
    pub fn submit(
        &self,
        texts: impl IntoIterator<Item = Sequence>,
        output: Output,
        client: Client,
        lane: Lane,
    ) -> Result<(u64, Receivers), Error> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let origin = Origin { request, client, lane, at: self.epoch.elapsed() };
        let mut texts = texts.into_iter();
        let mut receivers = Vec::with_capacity(texts.size_hint().0);
        loop {
            let part = texts.by_ref().take(AT_ONCE).map(|sequence| {
                let (reply, receiver) = oneshot::channel();
                receivers.push(receiver);
                Text { sequence, output, reply }
            });
            let part: Vec<Text> = part.collect();
            let is_last = part.len() < AT_ONCE;
            let mut queue = self.lock();
            if queue.closed {
                drop(queue);
                self.cancel(request);
                return Err(Error::Stopping);
            }
            let wanted = part.len().min(queue.idle);
            // Of a request that is put in line in parts, the first.
            if receivers.len() <= AT_ONCE {
                queue.come();
            }
            self.spare.store(false, Ordering::Relaxed);
            for text in part {
                queue.batcher.push(origin, text.sequence.ids.len(), text);
            }
            drop(queue);
            // One text wakes one worker: the others would look, find nothing, and sleep again. Each that is
            // woken takes one text or more, so that none is left while a worker sleeps.
            (0..wanted).for_each(|_| self.wake.notify_one());
            if is_last {
                return Ok((request, receivers));
            }
        }
    }

    /// Takes the texts of a request out of the line; those in a forward stay there.
    pub fn cancel(&self, request: u64) {
        loop {
            let removed = self.lock().batcher.cancel(request, AT_ONCE);
            // They are let go of here, where nobody waits for it.
            if removed.len() < AT_ONCE {
                return;
            }
        }
    }

    /// How batches are made.
    pub fn policy(&self) -> Policy {
        self.lock().batcher.policy()
    }

    /// (texts, tokens) in line.
    pub fn waiting(&self) -> (usize, usize) {
        let line = self.lock();
        (line.batcher.len(), line.batcher.tokens())
    }

    /// (texts, tokens) in line in each of [`Lane::ALL`].
    pub fn waiting_by_lane(&self) -> [(usize, usize); 2] {
        let line = self.lock();
        Lane::ALL.map(|lane| line.batcher.waiting(lane))
    }

    /// Takes no new texts; the workers end when the line is empty.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }

    /// Waits for a batch; with the threads of workers that have nothing to do meanwhile. `None` when the line is
    /// closed and empty.
    fn take(&self) -> Option<(Batch<Text>, Spare)> {
        let mut line = self.lock();
        line.idle += 1;
        loop {
            let idle = line.idle;
            if let Some(batch) = line.batcher.next(idle, self.epoch.elapsed()) {
                let threads = line.spare();
                line.idle -= 1;
                line.busy += 1;
                self.spare.store(threads > 0, Ordering::Relaxed);
                return Some((batch, Spare { threads, still: Arc::clone(&self.spare) }));
            }
            if line.closed {
                line.idle -= 1;
                return None;
            }
            line = self.wake.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A batch that was taken has been computed. It is not yet answered: who comes again when he has his answer
    /// finds nobody in a forward.
    fn done(&self) {
        self.lock().busy -= 1;
    }
}

/// When each worker's forward began, in nanoseconds since `epoch` plus one.
#[derive(Debug)]
pub struct Heartbeats {
    epoch: Instant,
    begun: Vec<AtomicU64>,
}

const IDLE: u64 = 0;
const DEAD: u64 = u64::MAX;

impl Heartbeats {
    fn new(workers: usize) -> Arc<Self> {
        let begun = (0..workers).map(|_| AtomicU64::new(IDLE)).collect();
        Arc::new(Self { epoch: Instant::now(), begun })
    }

    fn set(&self, worker: usize, value: u64) {
        if let Some(begun) = self.begun.get(worker) {
            begun.store(value, Ordering::Relaxed);
        }
    }

    fn begin(&self, worker: usize) {
        let since = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(DEAD - 2);
        self.set(worker, since + 1);
    }

    /// What is wrong with a worker at `now`, if something is.
    pub fn stuck(&self, now: Instant, deadline: Duration) -> Option<String> {
        self.begun.iter().enumerate().find_map(|(worker, begun)| match begun.load(Ordering::Relaxed) {
            IDLE => None,
            DEAD => Some(format!("worker {worker} has died, or its GPU has failed")),
            begun => {
                let age =
                    now.saturating_duration_since(self.epoch).saturating_sub(Duration::from_nanos(begun - 1));
                (age > deadline).then(|| {
                    format!(
                        "a forward on worker {worker} has been running for {} s; the deadline is {} s",
                        age.as_secs(),
                        deadline.as_secs()
                    )
                })
            }
        })
    }
}

/// A model's worker threads.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    heartbeats: Arc<Heartbeats>,
}

/// How worker threads compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// Worker threads a model and device; each runs its own forward.
    pub workers: usize,
    /// Threads that one operator of a forward may use.
    pub per_worker: usize,
}

/// Called after each batch.
pub type OnBatch = Arc<dyn Fn(Report) + Send + Sync>;

impl Workers {
    /// Starts the threads that embed what is in line before a model, which is there once for each device.
    pub fn start(
        name: &str,
        models: Vec<Box<dyn Model>>,
        dimensions: usize,
        queue: &Arc<Queue>,
        threads: Threads,
        on_batch: &OnBatch,
    ) -> Result<Self, model::Error> {
        let workers = threads.workers.max(1);
        let mut handles = Vec::with_capacity(workers * models.len());
        for model in models {
            for _ in 1..workers {
                handles.push(model.share()?);
            }
            handles.push(model);
        }
        let heartbeats = Heartbeats::new(handles.len());
        let mut started = Self { threads: Vec::with_capacity(handles.len()), heartbeats };
        for (index, model) in handles.into_iter().enumerate() {
            let mut thread = Worker {
                index,
                model,
                dimensions,
                queue: Arc::clone(queue),
                heartbeats: started.heartbeats(),
                on_batch: Arc::clone(on_batch),
                lost: None,
            };
            let spawned =
                std::thread::Builder::new().name(format!("embed-{name}-{index}")).spawn(move || {
                    model::set_operator_threads(threads.per_worker.max(1));
                    if let Err(error) = model::enter_inference_mode() {
                        tracing::warn!(%error, "forwards keep autograd's bookkeeping");
                    }
                    if let Err(error) = thread.model.settle() {
                        tracing::error!(%error, "the thread cannot be prepared for its device");
                    }
                    thread.run();
                });
            match spawned {
                Ok(thread) => started.threads.push(thread),
                Err(error) => {
                    // Those that were started would wait for texts for ever.
                    queue.close();
                    started.join();
                    let why = format!("cannot start a worker thread: {error}");
                    return Err(model::Error::Unavailable(why));
                }
            }
        }
        Ok(started)
    }

    /// The watchdog's view of the threads.
    pub fn heartbeats(&self) -> Arc<Heartbeats> {
        Arc::clone(&self.heartbeats)
    }

    /// Waits until the threads have ended; close the queue first.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker thread had died");
            }
        }
    }
}

struct Worker {
    index: usize,
    model: Box<dyn Model>,
    dimensions: usize,
    queue: Arc<Queue>,
    heartbeats: Arc<Heartbeats>,
    on_batch: OnBatch,
    /// Why its device can be used no more, where that is so.
    lost: Option<String>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Forwards do not unwind out of `embed`: a thread that does has a bug.
        if std::thread::panicking() {
            self.heartbeats.set(self.index, DEAD);
        }
    }
}

impl Worker {
    fn run(&mut self) {
        while let Some((mut batch, spare)) = self.queue.take() {
            self.model.lend(spare);
            batch.jobs.retain(|job| !job.payload.reply.is_closed());
            if batch.jobs.is_empty() {
                self.queue.done();
                continue;
            }
            let begun = Instant::now();
            let texts = batch.jobs.len();
            let tokens = batch.jobs.iter().map(|job| job.tokens).sum();
            // Those of which something else is wanted last: each kind has a forward of its own.
            batch.jobs.sort_by_key(|job| job.payload.output != Output::Vector);
            let vectors = batch.jobs.partition_point(|job| job.payload.output == Output::Vector);
            let (of_vectors, of_states) = batch.jobs.split_at(vectors);
            let mut results = self.embed(of_vectors, Output::Vector);
            results.extend(self.embed(of_states, Output::TokenStates));
            self.queue.done();
            // Before the answers: who has one can see it counted.
            let Batch { lane, waited, why, .. } = batch;
            (self.on_batch)(Report { texts, tokens, why, lane, waited, took: begun.elapsed() });
            for (job, result) in batch.jobs.into_iter().zip(results) {
                // The caller may leave at any time; then nobody wants the answer.
                drop(job.payload.reply.send(result));
            }
        }
    }

    /// One result a job, in order.
    fn embed(&mut self, jobs: &[Job<Text>], output: Output) -> Vec<Result<Vec<f32>, Error>> {
        if jobs.is_empty() {
            return Vec::new();
        }
        let batch: TokenBatch = jobs.iter().map(|job| &job.payload.sequence).collect();
        let mut result = self.forward(&batch, output);
        // Others use the device's memory, too, and may need less of it soon.
        for pause in if jobs.len() == 1 { PAUSES.as_slice() } else { &[] } {
            if !matches!(result, Err(Failure::Memory(_))) {
                break;
            }
            std::thread::sleep(*pause);
            result = self.forward(&batch, output);
        }
        match result {
            Ok(values) => {
                let width =
                    values.len() / if output == Output::Vector { batch.len() } else { batch.tokens() };
                let rows = |&length: &i64| if output == Output::Vector { 1 } else { length as usize };
                let mut rest = values.as_slice();
                let own = batch.lengths().iter().map(|length| {
                    let (own, others) = rest.split_at(rows(length) * width);
                    rest = others;
                    finite(own)
                });
                own.collect()
            }
            Err(error) if jobs.len() == 1 => {
                tracing::error!(%error, tokens = batch.tokens(), "a forward failed");
                vec![Err(match error {
                    Failure::Memory(_) => Error::TooLarge { tokens: batch.tokens() },
                    Failure::Device(why) | Failure::Other(why) => Error::Failed(why),
                })]
            }
            Err(Failure::Device(why)) => vec![Err(Error::Failed(why)); jobs.len()],
            // Half of it may fit.
            Err(error @ Failure::Memory(_)) => {
                tracing::warn!(%error, texts = jobs.len(), tokens = batch.tokens(), "trying the batch by halves");
                let (first, second) = jobs.split_at(jobs.len() / 2);
                let mut results = self.embed(first, output);
                results.extend(self.embed(second, output));
                results
            }
            Err(error) => {
                tracing::warn!(%error, texts = jobs.len(), "a batch failed; trying its texts one by one");
                jobs.iter().flat_map(|job| self.embed(std::slice::from_ref(job), output)).collect()
            }
        }
    }

    fn forward(&mut self, batch: &TokenBatch, output: Output) -> Result<Vec<f32>, Failure> {
        if let Some(why) = &self.lost {
            return Err(Failure::Device(why.clone()));
        }
        self.heartbeats.begin(self.index);
        // The model's state is its weights, which a forward only reads.
        let result = catch_unwind(AssertUnwindSafe(|| match output {
            Output::Vector => self.model.embed(batch),
            Output::TokenStates => self.model.states(batch),
        }));
        self.heartbeats.set(self.index, IDLE);
        let values = match result {
            Ok(Ok(values)) => values,
            Ok(Err(error @ model::Error::OutOfMemory(_))) => return Err(Failure::Memory(error.to_string())),
            Ok(Err(error @ model::Error::DeviceFailed(_))) => {
                // The watchdog has the server started anew: nothing else helps.
                let why = error.to_string();
                tracing::error!(why, "worker {} computes no more", self.index);
                self.heartbeats.set(self.index, DEAD);
                self.lost = Some(why.clone());
                return Err(Failure::Device(why));
            }
            Ok(Err(error)) => return Err(Failure::Other(error.to_string())),
            Err(panic) => return Err(Failure::Other(format!("panic: {}", panic_line(&*panic)))),
        };
        let fits = match output {
            Output::Vector => values.len() == batch.len() * self.dimensions,
            Output::TokenStates => !values.is_empty() && values.len() % batch.tokens() == 0,
        };
        if fits {
            Ok(values)
        } else {
            Err(Failure::Other(format!(
                "{} values for {} texts of {} dimensions",
                values.len(),
                batch.len(),
                self.dimensions
            )))
        }
    }
}

/// Why a forward failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Its device had no room for it.
    #[error("{0}")]
    Memory(String),
    /// Its device can be used no more.
    #[error("{0}")]
    Device(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// The first line of what a thread panicked with.
pub(crate) fn panic_line(panic: &(dyn Any + Send)) -> &str {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("(no message)").lines().next().unwrap_or_default()
}

fn finite(vector: &[f32]) -> Result<Vec<f32>, Error> {
    if vector.iter().all(|value| value.is_finite()) { Ok(vector.to_vec()) } else { Err(Error::NotFinite) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::model::fake::{FAILS, Fake, IS_NAN, PANICS};

    const POLICY: Policy = Policy { max_tokens: 1000, padded: false, min_share: 16 };
    const ONE: Threads = Threads { workers: 1, per_worker: 1 };

    fn start(fake: &Fake, queue: &Arc<Queue>, threads: Threads) -> Workers {
        Workers::start(
            "fake",
            vec![Box::new(fake.clone())],
            8,
            queue,
            threads,
            &(Arc::new(|_| {}) as OnBatch),
        )
        .unwrap()
    }

    /// Puts texts of these ids in line.
    fn submit(queue: &Queue, texts: impl IntoIterator<Item = Vec<u32>>) -> Result<(u64, Receivers), Error> {
        let texts = texts.into_iter().map(Sequence::from);
        queue.submit(texts, Output::Vector, Client::Unknown, Lane::Interactive)
    }

    fn stop(queue: &Queue, workers: Workers) {
        queue.close();
        workers.join();
    }

    #[test]
    fn one_bad_text_harms_no_other_in_its_batch() {
        let fake = Fake::new(8);
        let queue = Queue::new(POLICY);
        let (_, receivers) =
            submit(&queue, [vec![1, 2], vec![FAILS], vec![3], vec![PANICS], vec![IS_NAN, 5]]).unwrap();
        let workers = start(&fake, &queue, ONE);
        let results: Vec<_> = receivers.into_iter().map(|r| r.blocking_recv().unwrap()).collect();
        assert_eq!(
            results,
            [
                Ok(fake.vector(&[1, 2])),
                Err(Error::Failed("a fake failure".into())),
                Ok(fake.vector(&[3])),
                Err(Error::Failed("panic: a fake panic".into())),
                Err(Error::NotFinite),
            ]
        );
        assert_eq!(workers.heartbeats().stuck(Instant::now(), Duration::from_secs(5)), None);
        stop(&queue, workers);
    }

    #[test]
    fn vectors_and_token_states_can_be_wanted_at_once() {
        let fake = Fake::new(8);
        let queue = Queue::new(POLICY);
        let (_, vectors) = submit(&queue, [vec![1, 2], vec![3]]).unwrap();
        let texts = [Sequence::from(vec![4, 5]), Sequence::from(vec![6, FAILS, 7])];
        let (_, states) =
            queue.submit(texts, Output::TokenStates, Client::Unknown, Lane::Interactive).unwrap();
        let workers = start(&fake, &queue, ONE);
        let receive = |receivers: Receivers| -> Vec<Vec<f32>> {
            receivers.into_iter().map(|receiver| receiver.blocking_recv().unwrap().unwrap()).collect()
        };
        assert_eq!(receive(vectors), [fake.vector(&[1, 2]), fake.vector(&[3])]);
        let of = |ids: &[i64]| ids.iter().flat_map(|id| fake.vector(&[*id])).collect::<Vec<f32>>();
        assert_eq!(receive(states), [of(&[4, 5]), of(&[6, i64::from(FAILS), 7])]);
        stop(&queue, workers);
    }

    #[test]
    fn texts_that_wait_together_are_embedded_together() {
        let fake = Fake::new(8);
        let queue = Queue::new(POLICY);
        let requests: Vec<_> = (0..10).map(|id| submit(&queue, [vec![id]]).unwrap().1).collect();
        let workers = start(&fake, &queue, ONE);
        for (id, receivers) in requests.into_iter().enumerate() {
            for receiver in receivers {
                assert_eq!(receiver.blocking_recv().unwrap(), Ok(fake.vector(&[id as i64])));
            }
        }
        assert_eq!(fake.batches().load(Ordering::Relaxed), 1);
        stop(&queue, workers);
    }

    /// Answers once several have begun a forward.
    #[derive(Debug)]
    struct Together(Arc<std::sync::Barrier>);

    impl Model for Together {
        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, model::Error> {
            self.0.wait();
            Ok(vec![1.0; batch.len() * 8])
        }

        fn states(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, model::Error> {
            self.embed(batch)
        }

        fn share(&self) -> Result<Box<dyn Model>, model::Error> {
            Ok(Box::new(Self(Arc::clone(&self.0))))
        }
    }

    #[test]
    fn as_many_workers_wake_as_there_are_texts_for() {
        let queue = Queue::new(POLICY);
        let model = Together(Arc::new(std::sync::Barrier::new(3)));
        let threads = Threads { workers: 3, per_worker: 1 };
        let on_batch: OnBatch = Arc::new(|_| {});
        let workers =
            Workers::start("together", vec![Box::new(model)], 8, &queue, threads, &on_batch).unwrap();
        // All at once, and one by one; each text is a batch.
        for parts in [vec![3], vec![1, 1, 1], vec![2, 1]] {
            while queue.lock().idle < 3 {
                std::thread::yield_now();
            }
            let part = |texts: usize| submit(&queue, vec![vec![1; 1000]; texts]).unwrap().1;
            let receivers: Receivers = parts.into_iter().flat_map(part).collect();
            for receiver in receivers {
                assert!(receiver.blocking_recv().unwrap().is_ok());
            }
        }
        stop(&queue, workers);
    }

    /// Answers how many threads it was lent, and when it may.
    #[derive(Clone, Debug)]
    struct Lent {
        spare: Spare,
        go: Arc<Mutex<()>>,
    }

    impl Model for Lent {
        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, model::Error> {
            drop(self.go.lock().unwrap());
            let still = self.spare.still.load(Ordering::Relaxed);
            let told = [self.spare.threads as f32, f32::from(u8::from(still))];
            Ok(told.into_iter().cycle().take(batch.len() * 8).collect())
        }

        fn states(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, model::Error> {
            self.embed(batch)
        }

        fn lend(&mut self, spare: Spare) {
            self.spare = spare;
        }

        fn share(&self) -> Result<Box<dyn Model>, model::Error> {
            Ok(Box::new(self.clone()))
        }
    }

    #[test]
    fn idle_workers_help_callers_who_come_now_and_then_and_leave_when_another_comes() {
        let queue = Queue::new(POLICY);
        let (spare, go) = (Spare::default(), Arc::new(Mutex::new(())));
        let model = Lent { spare, go: Arc::clone(&go) };
        let threads = Threads { workers: 3, per_worker: 1 };
        let on_batch: OnBatch = Arc::new(|_| {});
        let workers = Workers::start("lent", vec![Box::new(model)], 8, &queue, threads, &on_batch).unwrap();
        let until = |idle: usize| {
            while queue.lock().idle < idle {
                std::thread::yield_now();
            }
        };
        let begin = || submit(&queue, [vec![1, 2, 3]]).unwrap().1.remove(0);
        let end = |receiver: oneshot::Receiver<Result<Vec<f32>, Error>>| {
            let told = receiver.blocking_recv().unwrap().unwrap();
            (told[0] as usize, told[1] > 0.0)
        };
        let mut lent = Vec::new();
        for _ in 0..3 {
            until(3);
            lent.push(end(begin()));
        }
        assert_eq!(lent, [(0, false), (2, true), (2, true)], "the first is not known to be alone");
        until(3);
        let hold = go.lock().unwrap();
        let first = begin();
        while queue.lock().busy == 0 {
            std::thread::yield_now();
        }
        let second = begin();
        while queue.lock().busy < 2 {
            std::thread::yield_now();
        }
        drop(hold);
        assert_eq!((end(first), end(second)), ((2, false), (0, false)));
        until(3);
        assert_eq!(end(begin()).0, 0, "they are not alone any more");
        stop(&queue, workers);
    }

    /// Has memory for so many tokens at once.
    #[derive(Clone, Debug)]
    struct Narrow {
        most: usize,
        batches: Arc<Mutex<Vec<usize>>>,
    }

    impl Model for Narrow {
        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, model::Error> {
            self.batches.lock().unwrap().push(batch.tokens());
            if batch.tokens() > self.most {
                return Err(model::Error::OutOfMemory("none left".into()));
            }
            Ok(batch.lengths().iter().flat_map(|&length| [length as f32; 8]).collect())
        }

        fn states(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, model::Error> {
            self.embed(batch)
        }

        fn share(&self) -> Result<Box<dyn Model>, model::Error> {
            Ok(Box::new(self.clone()))
        }
    }

    #[test]
    fn a_batch_for_which_there_is_no_memory_is_halved_and_a_text_for_which_there_is_none_is_refused() {
        let queue = Queue::new(POLICY);
        let lengths = [100usize, 90, 60, 60, 50, 40, 30];
        let (_, receivers) = submit(&queue, lengths.map(|length| vec![1; length])).unwrap();
        let batches = Arc::<Mutex<Vec<usize>>>::default();
        let model = Narrow { most: 95, batches: Arc::clone(&batches) };
        let on_batch: OnBatch = Arc::new(|_| {});
        let workers = Workers::start("narrow", vec![Box::new(model)], 8, &queue, ONE, &on_batch).unwrap();
        for (length, receiver) in lengths.into_iter().zip(receivers) {
            let expected = match length {
                100 => Err(Error::TooLarge { tokens: 100 }),
                _ => Ok(vec![length as f32; 8]),
            };
            assert_eq!(receiver.blocking_recv().unwrap(), expected);
        }
        stop(&queue, workers);
        let batches = batches.lock().unwrap();
        assert!(batches.len() < 2 * lengths.len(), "{batches:?}");
        assert!(
            batches.iter().any(|&tokens| tokens <= 95 && tokens > 60),
            "halves stay together: {batches:?}"
        );
    }

    /// Its device fails at the second batch.
    #[derive(Clone, Debug)]
    struct Fails(Arc<AtomicU64>);

    impl Model for Fails {
        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, model::Error> {
            if self.0.fetch_add(1, Ordering::Relaxed) > 0 {
                return Err(model::Error::DeviceFailed("an illegal memory access".into()));
            }
            Ok(vec![1.0; batch.len() * 8])
        }

        fn states(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, model::Error> {
            self.embed(batch)
        }

        fn share(&self) -> Result<Box<dyn Model>, model::Error> {
            Ok(Box::new(self.clone()))
        }
    }

    #[test]
    fn a_device_that_has_failed_is_not_asked_again_and_the_watchdog_tells() {
        let queue = Queue::new(POLICY);
        let forwards = Arc::<AtomicU64>::default();
        let on_batch: OnBatch = Arc::new(|_| {});
        let model = Fails(Arc::clone(&forwards));
        let workers = Workers::start("fails", vec![Box::new(model)], 8, &queue, ONE, &on_batch).unwrap();
        let ask = |texts: usize| {
            let receivers = submit(&queue, vec![vec![1, 2]; texts]).unwrap().1;
            receivers.into_iter().map(|receiver| receiver.blocking_recv().unwrap()).collect::<Vec<_>>()
        };
        assert!(ask(1)[0].is_ok());
        assert_eq!(workers.heartbeats().stuck(Instant::now(), Duration::from_secs(5)), None);
        let why = "the GPU has failed, and this process can use it no more: an illegal memory access";
        for texts in [3, 1] {
            assert_eq!(ask(texts), vec![Err(Error::Failed(why.into())); texts]);
            let stuck = workers.heartbeats().stuck(Instant::now(), Duration::from_secs(5));
            assert_eq!(stuck.unwrap(), "worker 0 has died, or its GPU has failed");
        }
        assert_eq!(forwards.load(Ordering::Relaxed), 2);
        stop(&queue, workers);
    }

    #[test]
    fn a_cancelled_request_costs_no_forward() {
        let fake = Fake::new(8);
        let queue = Queue::new(POLICY);
        let (request, receivers) = submit(&queue, [vec![1], vec![2]]).unwrap();
        drop(receivers);
        queue.cancel(request);
        assert_eq!(queue.waiting(), (0, 0));
        let workers = start(&fake, &queue, ONE);
        stop(&queue, workers);
        assert_eq!(fake.batches().load(Ordering::Relaxed), 0);
    }

    #[test]
    fn closing_answers_what_is_in_line_and_takes_nothing_new() {
        let fake = Fake::new(8);
        let queue = Queue::new(POLICY);
        let (_, receivers) = submit(&queue, (0..50).map(|id| vec![id; 100])).unwrap();
        queue.close();
        assert_eq!(submit(&queue, [vec![1]]).unwrap_err(), Error::Stopping);
        let workers = start(&fake, &queue, Threads { workers: 3, per_worker: 1 });
        workers.join();
        for receiver in receivers {
            assert!(receiver.blocking_recv().unwrap().is_ok());
        }
        assert!(fake.batches().load(Ordering::Relaxed) >= 5);
    }

    #[test]
    fn a_forward_past_its_deadline_is_stuck_and_an_idle_or_waiting_worker_is_not() {
        let heartbeats = Heartbeats::new(2);
        let start = heartbeats.epoch;
        let deadline = Duration::from_secs(10);
        assert_eq!(heartbeats.stuck(start + Duration::from_hours(1), deadline), None);
        heartbeats.set(1, 1);
        assert_eq!(heartbeats.stuck(start + Duration::from_secs(10), deadline), None);
        assert_eq!(
            heartbeats.stuck(start + Duration::from_secs(11), deadline).unwrap(),
            "a forward on worker 1 has been running for 11 s; the deadline is 10 s"
        );
        heartbeats.set(0, DEAD);
        assert_eq!(heartbeats.stuck(start, deadline).unwrap(), "worker 0 has died, or its GPU has failed");
    }
}
