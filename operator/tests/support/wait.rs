//! Waiting for what must come true.

use std::fmt::{Debug, Display};
use std::time::{Duration, Instant};

use kube::Api;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Short enough that no test is slow for it, long enough not to keep the API server busy.
const INTERVAL: Duration = Duration::from_millis(50);

/// Tries until `attempt` is `Ok` and gives what it holds. An `Err` holds what was seen instead;
/// when `patience` is over, the last one is in the panic's message.
pub async fn wait_for<T, E: Display>(
    what: &str,
    patience: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let started = Instant::now();
    let mut seen = String::from("nothing: the first look did not end");
    while let Some(left) = patience.checked_sub(started.elapsed()) {
        match tokio::time::timeout(left, attempt()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(other)) => seen = other.to_string(),
            Err(_) => break,
        }
        tokio::time::sleep(INTERVAL).await;
    }
    panic!("waited {patience:?} for {what}; last seen: {seen}");
}

/// Waits until the object is there and `is` holds for it.
pub async fn wait_for_object<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    patience: Duration,
    is: impl Fn(&K) -> bool,
) -> K
where
    K: Clone + Debug + DeserializeOwned + Serialize,
{
    wait_for(&format!("{name}: {what}"), patience, async || match api.get_opt(name).await {
        Ok(Some(object)) if is(&object) => Ok(object),
        Ok(Some(object)) => Err(serde_yaml::to_string(&object).expect("an object can be written as YAML")),
        Ok(None) => Err(format!("no {name}")),
        Err(error) => Err(error.to_string()),
    })
    .await
}

/// Waits until there is no such object any more.
pub async fn wait_until_gone<K>(api: &Api<K>, name: &str, patience: Duration)
where
    K: Clone + Debug + DeserializeOwned + Serialize,
{
    wait_for(&format!("{name} to be gone"), patience, async || match api.get_opt(name).await {
        Ok(None) => Ok(()),
        Ok(Some(object)) => Err(serde_yaml::to_string(&object).expect("an object can be written as YAML")),
        Err(error) => Err(error.to_string()),
    })
    .await;
}
