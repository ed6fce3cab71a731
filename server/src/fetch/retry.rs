//! When to try again, and when to give up.

use std::time::Duration;

use super::{Error, Hub, Progress};

/// The pause before the try that follows the `failure`th failure in a row.
///
/// Twice as long each time, up to `max`, and between half and all of that by
/// `jitter` (0 to 1), so that many servers that started together do not come
/// back together. A wish of the other side (`asked`) is followed up to `max`.
pub(super) fn pause(
    failure: u32,
    base: Duration,
    max: Duration,
    jitter: f64,
    asked: Option<Duration>,
) -> Duration {
    if let Some(asked) = asked {
        return asked.min(max);
    }
    let doublings = failure.saturating_sub(1).min(31);
    let full = base.saturating_mul(1 << doublings).min(max);
    full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// Failures in a row without getting any further.
pub(super) struct Patience<'a> {
    hub: &'a Hub,
    failures: u32,
}

impl<'a> Patience<'a> {
    pub(super) fn new(hub: &'a Hub) -> Self {
        Self { hub, failures: 0 }
    }

    /// Something new came in: the count starts again.
    pub(super) fn got_further(&mut self) {
        self.failures = 0;
    }

    /// Waits before the next try, or gives `error` back when there is none.
    pub(super) async fn next_try(
        &mut self,
        what: &str,
        error: Error,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        if !error.is_passing() || self.failures >= self.hub.retries {
            return Err(error);
        }
        self.failures += 1;
        let pause = pause(
            self.failures,
            self.hub.backoff_base,
            self.hub.backoff_max,
            rand::random(),
            error.retry_after(),
        );
        progress.retrying(what, &error, pause);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_bound_and_jitter_stays_in_the_upper_half() {
        let ms = Duration::from_millis;
        let table = [
            // (failure, jitter, asked, pause)
            (1, 1.0, None, ms(500)),
            (1, 0.0, None, ms(250)),
            (2, 1.0, None, ms(1_000)),
            (3, 1.0, None, ms(2_000)),
            (3, 0.5, None, ms(1_500)),
            (7, 1.0, None, ms(32_000)),
            (8, 1.0, None, ms(60_000)),
            (8, 0.0, None, ms(30_000)),
            (u32::MAX, 1.0, None, ms(60_000)),
            (1, 0.0, Some(ms(7_000)), ms(7_000)),
            (5, 1.0, Some(ms(0)), ms(0)),
            (1, 1.0, Some(ms(3_600_000)), ms(60_000)),
        ];
        for (failure, jitter, asked, expected) in table {
            assert_eq!(
                pause(failure, ms(500), ms(60_000), jitter, asked),
                expected,
                "failure {failure}, jitter {jitter}, asked {asked:?}"
            );
        }
    }
}
