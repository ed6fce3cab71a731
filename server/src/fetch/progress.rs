//! Telling a person how far a download is: a bar on a terminal, lines in a log.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::{Error, Fetched};

/// How often [`Log`] writes a line at most.
const LOG_EVERY: Duration = Duration::from_secs(5);

const TEMPLATE: &str = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";

/// Hears what happens, in this order: `resolved`, then for each file that comes over
/// the network `started` and `advanced`, and for pickled weights `converting`, then
/// `finished`. `retrying` comes at any time. A model that is already here is only
/// `finished`; one that fails never is.
pub trait Progress: Send {
    /// It is known what to fetch.
    fn resolved(&mut self, commit: &str, files: usize, total_bytes: u64);
    /// A file begins, with `have` of its bytes already here. It begins anew
    /// when what was here turns out to be of no use.
    fn started(&mut self, file: &str, have: u64);
    /// `have` bytes of the file are here now.
    fn advanced(&mut self, file: &str, have: u64);
    /// Of what the file, which is here, becomes as safetensors, so many bytes are written.
    fn converting(&mut self, file: &str, done: u64, total: u64);
    /// Something failed that may pass: the same is tried again after `pause`.
    fn retrying(&mut self, what: &str, why: &Error, pause: Duration);
    /// The model is here.
    fn finished(&mut self, fetched: &Fetched);
}

/// A [`Bar`] if standard error is a terminal, else a [`Log`].
pub fn stderr_progress() -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() { Box::new(Bar::default()) } else { Box::new(Log::default()) }
}

/// A bar on standard error.
#[derive(Debug, Default)]
pub struct Bar {
    bar: Option<ProgressBar>,
    tally: Tally,
}

/// Lines in the log, at most one every five seconds.
#[derive(Debug, Default)]
pub struct Log {
    tally: Tally,
    meter: Option<Meter>,
    converting: Option<Meter>,
}

/// Adds files up. They come one after the other.
#[derive(Debug, Default)]
struct Tally {
    total: u64,
    done: u64,
    current: Option<(String, u64)>,
}

/// Decides when a line is due, and measures the speed since the last one.
#[derive(Debug)]
struct Meter {
    since: Instant,
    received: u64,
}

impl Tally {
    fn set(&mut self, file: &str, have: u64) {
        match &mut self.current {
            Some((current, at)) if current == file => *at = have,
            current => {
                let before = current.replace((file.to_owned(), have));
                self.done += before.map_or(0, |(_, at)| at);
            }
        }
    }

    /// Bytes of `file` that are here so far.
    fn of(&self, file: &str) -> u64 {
        match &self.current {
            Some((current, at)) if current == file => *at,
            _ => 0,
        }
    }

    fn here(&self) -> u64 {
        self.done + self.current.as_ref().map_or(0, |(_, at)| *at)
    }

    fn percent(&self) -> u64 {
        // An empty model is complete.
        (self.here() * 100).checked_div(self.total).unwrap_or(100)
    }
}

impl Meter {
    fn new(now: Instant) -> Self {
        Self { since: now, received: 0 }
    }

    /// The speed in MB/s, if a line is due.
    fn add(&mut self, bytes: u64, now: Instant) -> Option<f64> {
        self.received += bytes;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < LOG_EVERY {
            return None;
        }
        let speed = self.received as f64 / 1e6 / elapsed.as_secs_f64();
        *self = Self::new(now);
        Some(speed)
    }
}

fn new_bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
        bar.set_style(style);
    }
    bar
}

impl Progress for Bar {
    fn resolved(&mut self, commit: &str, files: usize, total_bytes: u64) {
        self.tally.total = total_bytes;
        let bar = new_bar(total_bytes);
        bar.println(format!("fetching {files} files of commit {commit}"));
        self.bar = Some(bar);
    }

    fn started(&mut self, file: &str, have: u64) {
        self.tally.set(file, have);
        if let Some(bar) = &self.bar {
            bar.set_message(file.to_owned());
            bar.set_length(self.tally.total);
            bar.set_position(self.tally.here());
            // What was here already must not count as speed.
            bar.reset_eta();
        }
    }

    fn advanced(&mut self, file: &str, have: u64) {
        self.tally.set(file, have);
        if let Some(bar) = &self.bar {
            bar.set_position(self.tally.here());
        }
    }

    fn converting(&mut self, file: &str, done: u64, total: u64) {
        let bar = self.bar.get_or_insert_with(|| new_bar(total));
        // The next file that comes makes it the download's again.
        if bar.length() != Some(total) || bar.position() > done {
            bar.set_message(format!("converting {file}"));
            bar.set_length(total);
            bar.reset_eta();
        }
        bar.set_position(done);
    }

    fn retrying(&mut self, what: &str, why: &Error, pause: Duration) {
        let line = format!("{what}: {why}; trying again in {:.1} s", pause.as_secs_f64());
        if let Some(bar) = &self.bar {
            bar.println(line);
        } else {
            tracing::warn!("{line}");
        }
    }

    fn finished(&mut self, _fetched: &Fetched) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Log {
    fn resolved(&mut self, commit: &str, files: usize, total_bytes: u64) {
        self.tally.total = total_bytes;
        self.meter = Some(Meter::new(Instant::now()));
        tracing::info!(commit, files, total_bytes, "fetching model");
    }

    fn started(&mut self, file: &str, have: u64) {
        self.tally.set(file, have);
    }

    fn advanced(&mut self, file: &str, have: u64) {
        let new = have.saturating_sub(self.tally.of(file));
        self.tally.set(file, have);
        if let Some(meter) = &mut self.meter
            && let Some(speed) = meter.add(new, Instant::now())
        {
            tracing::info!(
                file,
                percent = self.tally.percent(),
                // By these names the operator knows them.
                bytes = self.tally.here(),
                total_bytes = self.tally.total,
                mb_per_s = (speed * 10.0).round() / 10.0,
                "fetching model"
            );
        }
    }

    fn converting(&mut self, file: &str, done: u64, total: u64) {
        let meter = self.converting.get_or_insert_with(|| Meter::new(Instant::now()));
        if meter.add(0, Instant::now()).is_some() {
            // Another message and another name of the size than a download's, which the operator follows.
            tracing::info!(file, percent = done * 100 / total.max(1), "converting weights to safetensors");
        }
    }

    fn retrying(&mut self, what: &str, why: &Error, pause: Duration) {
        tracing::warn!(
            what,
            error = why as &dyn std::error::Error,
            pause_s = pause.as_secs_f64(),
            "trying again"
        );
    }

    fn finished(&mut self, fetched: &Fetched) {
        tracing::info!(
            commit = fetched.commit,
            files = fetched.files,
            bytes = fetched.bytes,
            downloaded_bytes = fetched.downloaded_bytes,
            "model is here"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bars_template_is_one() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }

    #[test]
    fn files_add_up_and_a_file_that_begins_anew_counts_once() {
        let mut tally = Tally { total: 200, ..Tally::default() };
        tally.set("a", 0);
        tally.set("a", 50);
        tally.set("b", 30);
        tally.set("b", 100);
        assert_eq!((tally.here(), tally.percent()), (150, 75));
        tally.set("b", 0);
        tally.set("b", 150);
        assert_eq!((tally.here(), tally.percent()), (200, 100));
    }

    #[test]
    fn a_line_is_due_every_five_seconds_with_the_speed_since_the_last() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut meter = Meter::new(start);
        assert_eq!(meter.add(10_000_000, at(1)), None);
        assert_eq!(meter.add(10_000_000, at(4)), None);
        assert_eq!(meter.add(30_000_000, at(5)), Some(10.0));
        assert_eq!(meter.add(1, at(6)), None);
        assert_eq!(meter.add(99_999_999, at(15)), Some(10.0));
    }
}
