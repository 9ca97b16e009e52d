//! The connection to a server that may be slow or gone: there to be used, or not there at all. This is the circuit
//! breaker too: while there is no connection, nobody asks, and one task alone tries whether the server answers again.

use std::{
    fmt::Display,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use prometheus::IntGauge;
use tokio::{sync::watch, time::sleep};

/// Failures in a row that cut a connection.
pub(super) const MAX_FAILURES: u32 = 5;
/// Between two tries to connect.
pub(super) const PAUSE: Duration = Duration::from_millis(500);

/// The connection, while there is one that works.
pub(super) struct Link<C> {
    current: watch::Sender<Option<Connection<C>>>,
    /// In a row.
    failures: AtomicU32,
    is_open: IntGauge,
}

/// A connection and its number: what becomes of an old one says nothing about the next.
#[derive(Clone)]
pub(super) struct Connection<C> {
    /// Which it is.
    pub number: u32,
    /// To send with.
    pub inner: C,
}

impl<C: Clone> Link<C> {
    /// None yet; `is_open` is kept at 1 while there is none, else at 0.
    pub fn new(is_open: IntGauge) -> Self {
        is_open.set(1);
        Self { current: watch::Sender::new(None), failures: AtomicU32::new(0), is_open }
    }

    /// The connection; `None` while the server is not to be asked.
    pub fn connection(&self) -> Option<Connection<C>> {
        self.current.borrow().clone()
    }

    /// Whether the server is not to be asked.
    pub fn is_open(&self) -> bool {
        self.current.borrow().is_none()
    }

    /// The server did as told on the connection `number`.
    pub fn succeeded(&self, number: u32) {
        if self.is_current(number) {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// The server was too slow, or refused.
    pub fn failed(&self, number: u32) {
        if self.is_current(number) && self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_FAILURES {
            self.cut();
        }
    }

    /// The connection broke. One that has worked is made anew at once: servers close idle ones.
    pub fn broke(&self, number: u32) {
        if self.is_current(number) {
            if self.failures.load(Ordering::Relaxed) > 0 {
                self.failures.store(MAX_FAILURES, Ordering::Relaxed);
            }
            self.cut();
        }
    }

    fn is_current(&self, number: u32) -> bool {
        self.current.borrow().as_ref().is_some_and(|current| current.number == number)
    }

    fn cut(&self) {
        if self.current.send_if_modified(|current| current.take().is_some()) {
            self.is_open.set(1);
        }
    }

    /// Connects, and again after every cut, for ever. `server` is what it is called in the log.
    pub async fn keep<E: Display, F: Future<Output = Result<C, E>>>(
        &self,
        server: &str,
        connect: impl Fn() -> F,
    ) {
        let mut watched = self.current.subscribe();
        let mut was_told = false;
        for number in 0.. {
            match connect().await {
                Ok(inner) => {
                    // On trial: the first failure cuts it, the first success trusts it.
                    self.failures.store(MAX_FAILURES - 1, Ordering::Relaxed);
                    self.current.send_replace(Some(Connection { number, inner }));
                    self.is_open.set(0);
                    tracing::info!(server, "Redis answers");
                    was_told = false;
                    // The sender is our own, so it is not closed.
                    drop(watched.wait_for(Option::is_none).await);
                    tracing::warn!(server, "Redis does not answer, or not in time; doing without it");
                    if self.failures.load(Ordering::Relaxed) < MAX_FAILURES {
                        continue;
                    }
                }
                Err(error) if !was_told => {
                    tracing::warn!(server, %error, "no connection to Redis; doing without it, and trying on");
                    was_told = true;
                }
                Err(_) => {}
            }
            sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::advance;

    use super::*;

    /// A link that fails to connect while `is_down` is not 0.
    struct Scene {
        link: Arc<Link<()>>,
        tries: Arc<AtomicU32>,
        is_down: Arc<AtomicU32>,
    }

    impl Scene {
        async fn new() -> Self {
            let link = Arc::new(Link::new(IntGauge::new("open", "open").unwrap()));
            let (tries, is_down) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
            let scene = Self { link: link.clone(), tries: tries.clone(), is_down: is_down.clone() };
            tokio::spawn(async move {
                let connect = || {
                    tries.fetch_add(1, Ordering::SeqCst);
                    let is_down = is_down.load(Ordering::SeqCst) > 0;
                    async move { if is_down { Err("refused") } else { Ok(()) } }
                };
                link.keep("test", connect).await;
            });
            scene
        }

        /// The number of the connection that there is after `time`, if there is one.
        async fn after(&self, time: Duration) -> Option<u32> {
            // The task has to fall asleep before the clock moves, and to wake up after it has.
            for time in [Duration::ZERO, time] {
                advance(time).await;
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
            }
            assert_eq!(self.link.is_open.get(), i64::from(self.link.is_open()));
            self.link.connection().map(|connection| connection.number)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_cut_it_until_the_pause_is_over() {
        let scene = Scene::new().await;
        assert_eq!(scene.after(Duration::ZERO).await, Some(0));
        for _ in 0..2 {
            scene.link.succeeded(0);
            (1..MAX_FAILURES).for_each(|_| scene.link.failed(0));
        }
        assert_eq!(scene.after(PAUSE).await, Some(0), "never that many in a row");
        scene.link.failed(0);
        assert_eq!(scene.after(PAUSE / 2).await, None);
        assert_eq!(scene.after(PAUSE / 2).await, Some(1));
        scene.link.failed(1);
        assert_eq!(scene.after(Duration::ZERO).await, None, "one failure is enough on trial");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_worked_is_made_anew_at_once() {
        let scene = Scene::new().await;
        assert_eq!(scene.after(Duration::ZERO).await, Some(0));
        scene.link.succeeded(0);
        scene.link.broke(0);
        assert_eq!(scene.after(Duration::ZERO).await, Some(1));
        scene.link.broke(0);
        assert_eq!(scene.after(Duration::ZERO).await, Some(1), "an old one says nothing about the next");
        scene.link.broke(1);
        assert_eq!(scene.after(Duration::ZERO).await, None, "one that never worked waits");
        assert_eq!(scene.after(PAUSE).await, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_gone_is_tried_once_a_pause() {
        let scene = Scene::new().await;
        scene.is_down.store(1, Ordering::SeqCst);
        for tries in 1..10 {
            assert_eq!(scene.after(if tries == 1 { Duration::ZERO } else { PAUSE }).await, None);
            assert_eq!(scene.tries.load(Ordering::SeqCst), tries);
        }
        scene.is_down.store(0, Ordering::SeqCst);
        assert!(scene.after(PAUSE).await.is_some());
    }
}
