//! Waiting for conditions. The deadline is for failures only: it is generous, and no test passes or
//! fails by how fast the machine is.

use std::time::{Duration, Instant};

/// A condition that does not hold after this long never will.
pub const DEADLINE: Duration = Duration::from_secs(90);

const INTERVAL: Duration = Duration::from_millis(10);

/// Asks again and again until there is an answer, and returns it.
///
/// # Panics
/// After [`DEADLINE`], saying `what` did not come about.
pub async fn until<T>(what: &str, condition: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, condition).await
}

/// [`until`] with a deadline of its own, for what takes long by itself.
///
/// # Panics
/// After it, saying `what` did not come about.
pub async fn until_within<T>(deadline: Duration, what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = condition().await {
            return answer;
        }
        assert!(begun.elapsed() < deadline, "waited {} s in vain: {what}", deadline.as_secs());
        tokio::time::sleep(INTERVAL).await;
    }
}
