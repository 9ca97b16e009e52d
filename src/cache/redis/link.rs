//! The connection to a server that may be slow or gone: there to be used, or not there at all. This is the circuit
//! breaker too: while there is no connection, nobody asks, and one task alone tries whether the server answers again.

use std::{
    fmt::Display,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use prometheus::IntGauge;
use tokio::{sync::watch, time::sleep};

/// Failures in a row that cut a connection.
pub(super) const MAX_FAILURES: u32 = 5;
/// Between two tries to connect.
pub(super) const PAUSE: Duration = Duration::from_millis(500);

/// What a server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// For values: somebody waits.
    Get,
    /// To keep some: nobody waits, so that what is good enough for this says nothing about the other.
    Set,
}

impl Operation {
    /// As the metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set => "set",
        }
    }
}

/// The connection, while there is one that works.
pub(super) struct Link<C> {
    /// What the server is called in the log.
    server: String,
    current: watch::Sender<Option<Connection<C>>>,
    /// In a row, by operation.
    failures: [AtomicU32; 2],
    /// Whether it was of use: a server may take connections and refuse whatever else it is asked.
    is_trusted: AtomicBool,
    /// The last failure.
    cause: Mutex<String>,
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
    pub fn new(server: String, is_open: IntGauge) -> Self {
        is_open.set(1);
        Self {
            server,
            current: watch::Sender::new(None),
            failures: Default::default(),
            is_trusted: AtomicBool::new(false),
            cause: Mutex::default(),
            is_open,
        }
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
    pub fn succeeded(&self, number: u32, operation: Operation) {
        if !self.is_current(number) {
            return;
        }
        self.failures[operation as usize].store(0, Ordering::Relaxed);
        if operation == Operation::Get {
            self.failures[Operation::Set as usize].store(0, Ordering::Relaxed);
            if !self.is_trusted.swap(true, Ordering::Relaxed) {
                tracing::info!(server = self.server, "Redis answers");
            }
        }
    }

    /// The server was too slow, or refused.
    pub fn failed(&self, number: u32, operation: Operation, cause: impl Display) {
        if self.is_current(number) {
            let failures = &self.failures[operation as usize];
            if failures.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_FAILURES {
                self.cut(cause);
            }
        }
    }

    /// The connection broke. One that has worked is made anew at once: servers close idle ones.
    pub fn broke(&self, number: u32, cause: impl Display) {
        if self.is_current(number) {
            let of_get = &self.failures[Operation::Get as usize];
            if of_get.load(Ordering::Relaxed) > 0 {
                of_get.store(MAX_FAILURES, Ordering::Relaxed);
            }
            self.cut(cause);
        }
    }

    fn is_current(&self, number: u32) -> bool {
        self.current.borrow().as_ref().is_some_and(|current| current.number == number)
    }

    fn cut(&self, cause: impl Display) {
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = cause.to_string();
        if self.current.send_if_modified(|current| current.take().is_some()) {
            self.is_open.set(1);
        }
    }

    /// Whether it would be too early to ask again at once.
    fn has_failed(&self) -> bool {
        self.failures.iter().any(|failures| failures.load(Ordering::Relaxed) >= MAX_FAILURES)
    }

    /// Connects, and again after every cut, for ever. That it is in vain is told once, until the server is of use again.
    pub async fn keep<E: Display, F: Future<Output = Result<C, E>>>(&self, connect: impl Fn() -> F) {
        let mut watched = self.current.subscribe();
        let mut was_told = false;
        for number in 0.. {
            let (cause, is_news, may_go_on) = match connect().await {
                Ok(inner) => {
                    // On trial: the first failure cuts it, the first success trusts it.
                    self.failures
                        .iter()
                        .for_each(|failures| failures.store(MAX_FAILURES - 1, Ordering::Relaxed));
                    self.is_trusted.store(false, Ordering::Relaxed);
                    self.current.send_replace(Some(Connection { number, inner }));
                    self.is_open.set(0);
                    // The sender is our own, so it is not closed.
                    drop(watched.wait_for(Option::is_none).await);
                    let cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    (cause, self.is_trusted.load(Ordering::Relaxed), !self.has_failed())
                }
                Err(error) => (error.to_string(), false, false),
            };
            if is_news || !was_told {
                tracing::warn!(
                    server = self.server,
                    cause,
                    "Redis is of no use; doing without it, and trying on"
                );
                was_told = true;
            }
            if !may_go_on {
                sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use tokio::time::advance;

    use super::{
        Operation::{Get, Set},
        *,
    };

    /// A link that fails to connect while `is_down` is not 0.
    struct Scene {
        link: Arc<Link<()>>,
        tries: Arc<AtomicU32>,
        is_down: Arc<AtomicU32>,
    }

    impl Scene {
        async fn new() -> Self {
            let is_open = IntGauge::new("open", "open").unwrap();
            let link = Arc::new(Link::new("test".into(), is_open));
            let (tries, is_down) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
            let scene = Self { link: link.clone(), tries: tries.clone(), is_down: is_down.clone() };
            tokio::spawn(async move {
                let connect = || {
                    tries.fetch_add(1, Ordering::SeqCst);
                    let is_down = is_down.load(Ordering::SeqCst) > 0;
                    async move { if is_down { Err("refused") } else { Ok(()) } }
                };
                link.keep(connect).await;
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
            scene.link.succeeded(0, Get);
            (1..MAX_FAILURES).for_each(|_| scene.link.failed(0, Get, "late"));
        }
        assert_eq!(scene.after(PAUSE).await, Some(0), "never that many in a row");
        scene.link.failed(0, Get, "late");
        assert_eq!(scene.after(PAUSE / 2).await, None);
        assert_eq!(scene.after(PAUSE / 2).await, Some(1));
        scene.link.failed(1, Get, "late");
        assert_eq!(scene.after(Duration::ZERO).await, None, "one failure is enough on trial");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_good_enough_to_write_to_may_be_too_slow_to_ask() {
        let scene = Scene::new().await;
        assert_eq!(scene.after(Duration::ZERO).await, Some(0));
        scene.link.succeeded(0, Get);
        for _ in 0..MAX_FAILURES {
            scene.link.succeeded(0, Set);
            scene.link.failed(0, Get, "late");
        }
        assert_eq!(scene.after(PAUSE / 2).await, None);
        assert_eq!(scene.after(PAUSE / 2).await, Some(1));
        scene.link.succeeded(1, Set);
        scene.link.failed(1, Get, "late");
        assert_eq!(scene.after(Duration::ZERO).await, None, "still on trial");
        // A server that is full, or only to be read, is of use to whoever asks.
        assert_eq!(scene.after(PAUSE).await, Some(2));
        for _ in 0..2 * MAX_FAILURES {
            scene.link.succeeded(2, Get);
            scene.link.failed(2, Set, "full");
        }
        assert_eq!(scene.after(Duration::ZERO).await, Some(2));
        (0..MAX_FAILURES).for_each(|_| scene.link.failed(2, Set, "full"));
        assert_eq!(scene.after(Duration::ZERO).await, None, "but not if nobody asks");
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn count(&self, what: &str) -> usize {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().matches(what).count()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn that_it_is_of_no_use_is_told_once_and_why() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _logging = tracing::subscriber::set_default(subscriber);
        let scene = Scene::new().await;
        for number in 0..10 {
            assert_eq!(scene.after(PAUSE).await, Some(number), "it takes connections");
            scene.link.failed(number, Get, "NOPERM");
        }
        assert_eq!(scene.after(PAUSE).await, Some(10));
        assert_eq!([log.count("of no use"), log.count("NOPERM"), log.count("Redis answers")], [1, 1, 0]);
        scene.link.succeeded(10, Get);
        scene.link.succeeded(10, Get);
        assert_eq!([log.count("of no use"), log.count("Redis answers")], [1, 1]);
        scene.link.broke(10, "closed");
        scene.after(PAUSE).await;
        assert_eq!([log.count("of no use"), log.count("closed"), log.count("Redis answers")], [2, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_worked_is_made_anew_at_once() {
        let scene = Scene::new().await;
        assert_eq!(scene.after(Duration::ZERO).await, Some(0));
        scene.link.succeeded(0, Get);
        scene.link.broke(0, "closed");
        assert_eq!(scene.after(Duration::ZERO).await, Some(1));
        scene.link.broke(0, "closed");
        assert_eq!(scene.after(Duration::ZERO).await, Some(1), "an old one says nothing about the next");
        scene.link.broke(1, "closed");
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
