//! The tier that replicas share: a Redis server, asked in batches and never waited for.
//!
//! Lookups of a moment meet in one MGET, vectors in one pipeline of SET. Keys are `sl:{fingerprint}:{digest}`, whose
//! digest begins with the version of the values' format, so that replicas of two versions do not undo each other's
//! work; values are [`CachedVector::to_bytes`].

mod link;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, TlsCertificates, aio::MultiplexedConnection,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};

use self::link::{Connection, Link, Operation};
use super::{CacheKey, CacheSetupError, CachedVector, Tier, tier::Dropped, value};
use crate::{config::RedisConfig, telemetry::Metrics};

/// Keys of one MGET: a quarter of a megabyte of vectors.
const MAX_KEYS: usize = 128;
/// Values of one pipeline: lookups wait behind it on the same connection.
const MAX_VALUES: usize = 32;
/// Lookups that wait for their MGET; more are misses.
const MAX_LOOKUPS: usize = 4096;
/// Vectors that wait to be written, which share their memory with the tier before; more are not written.
const MAX_WRITES: usize = 4096;
/// The same of imports, which wait for room instead, and must leave that of the others alone.
const MAX_IMPORTS: usize = 1024;
/// For a pipeline, in times of a lookup's: nobody waits for it.
const WRITE_PATIENCE: u32 = 20;
/// For a connection with all that is said at its beginning.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The tier. Its tasks end with it.
pub(super) struct Redis {
    shared: Arc<Shared>,
    lookups: mpsc::Sender<Lookup>,
    writes: mpsc::UnboundedSender<Write>,
    /// For what waits to be written, or is.
    room: Arc<Semaphore>,
    /// For what of it is imported.
    import_room: Arc<Semaphore>,
    /// Vectors that were sent to be written.
    n_sent: AtomicU64,
    /// How many of them are, or were given up: in the order of their sending.
    n_done: watch::Receiver<u64>,
    _tasks: JoinSet<()>,
}

struct Shared {
    link: Link<MultiplexedConnection>,
    timeout: Duration,
    ttl_s: u64,
    metrics: Arc<Metrics>,
}

struct Lookup {
    key: CacheKey,
    reply: oneshot::Sender<Option<CachedVector>>,
}

struct Write {
    key: CacheKey,
    value: CachedVector,
    /// For who wants to know if it is not written.
    dropped: Option<Dropped>,
    _room: OwnedSemaphorePermit,
}

/// The tier, if the settings name a server. It need not be there yet. Needs a tokio runtime around it.
///
/// # Errors
/// [`CacheSetupError`] when its address or certificates cannot be used.
pub(super) fn tier(
    config: &RedisConfig,
    metrics: &Arc<Metrics>,
) -> Result<Option<Box<dyn Tier>>, CacheSetupError> {
    let url = match &config.url_file {
        Some(file) => address_in(file)?,
        None => config.url.expose().to_owned(),
    };
    if url.is_empty() {
        return Ok(None);
    }
    let redis = Redis::new(&url, config, metrics.clone()).map_err(|error| match (error, &config.url_file) {
        (CacheSetupError::RedisUrl(cause), Some(file)) => {
            CacheSetupError::UrlFile { file: file.display().to_string(), cause }
        }
        (error, _) => error,
    });
    Ok(Some(Box::new(redis?)))
}

/// The address that a file holds. Spaces and a line's end around it do not count.
fn address_in(file: &Path) -> Result<String, CacheSetupError> {
    let unusable = |cause: String| CacheSetupError::UrlFile { file: file.display().to_string(), cause };
    let content = fs::read_to_string(file).map_err(|error| unusable(error.to_string()))?;
    let url = content.trim();
    match RedisConfig::is_url(url) {
        true => Ok(url.to_owned()),
        false => Err(unusable("it begins with neither redis:// nor rediss://".into())),
    }
}

fn client(url: &str, config: &RedisConfig) -> Result<Client, CacheSetupError> {
    // The kind alone: a message might repeat the address.
    let wrong = |error: RedisError| CacheSetupError::RedisUrl(error.category().to_owned());
    if url.starts_with("rediss://") {
        // The crate takes the process's provider, which cannot be guessed where two are built in. Refused where one
        // was chosen before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    if config.ca_file.is_empty() {
        return Client::open(url).map_err(wrong);
    }
    let unusable = |cause: String| CacheSetupError::CaFile { file: config.ca_file.clone(), cause };
    let root_cert = fs::read(&config.ca_file).map_err(|error| unusable(error.to_string()))?;
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(root_cert) };
    Client::build_with_tls(url, certificates).map_err(|error| unusable(error.category().to_owned()))
}

async fn connect(client: &Client) -> Result<MultiplexedConnection, RedisError> {
    // Time is kept here, by each caller.
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let connecting = async {
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        // A server that hangs takes connections all the same.
        redis::cmd("PING").exec_async(&mut connection).await?;
        Ok(connection)
    };
    let too_late = (ErrorKind::Io, "it did not answer within a second");
    timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(too_late.into()))
}

impl Redis {
    fn new(url: &str, config: &RedisConfig, metrics: Arc<Metrics>) -> Result<Self, CacheSetupError> {
        let client = client(url, config)?;
        // Without what stands before the host.
        let server = client.get_connection_info().addr().to_string();
        let shared = Arc::new(Shared {
            link: Link::new(server, metrics.redis_breaker_open.clone()),
            timeout: Duration::from_millis(config.timeout_ms),
            ttl_s: config.ttl_s,
            metrics,
        });
        let (lookups, asked) = mpsc::channel(MAX_LOOKUPS);
        let (writes, computed) = mpsc::unbounded_channel();
        let (done, n_done) = watch::channel(0);
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let shared = shared.clone();
            async move { shared.link.keep(|| connect(&client)).await }
        });
        tasks.spawn(answer(shared.clone(), asked));
        tasks.spawn(write(shared.clone(), computed, done));
        Ok(Self {
            shared,
            lookups,
            writes,
            room: Arc::new(Semaphore::new(MAX_WRITES)),
            import_room: Arc::new(Semaphore::new(MAX_IMPORTS)),
            n_sent: AtomicU64::new(0),
            n_done,
            _tasks: tasks,
        })
    }

    fn send(&self, write: Write) {
        self.n_sent.fetch_add(1, Ordering::SeqCst);
        // Received for as long as the tier lives.
        let _ = self.writes.send(write);
    }
}

impl Tier for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn get(&self, key: CacheKey) -> BoxFuture<'_, Option<CachedVector>> {
        async move {
            if self.shared.link.is_open() {
                return None;
            }
            let (reply, answer) = oneshot::channel();
            if self.lookups.try_send(Lookup { key, reply }).is_err() {
                self.shared.error("dropped");
                return None;
            }
            timeout(self.shared.timeout, answer).await.ok()?.ok()?
        }
        .boxed()
    }

    fn put(&self, key: CacheKey, value: CachedVector) -> BoxFuture<'_, ()> {
        if !self.shared.link.is_open() {
            match self.room.clone().try_acquire_owned() {
                Ok(room) => self.send(Write { key, value, dropped: None, _room: room }),
                Err(_) => self.shared.error("dropped"),
            }
        }
        std::future::ready(()).boxed()
    }

    fn put_patiently(&self, key: CacheKey, value: CachedVector, dropped: Dropped) -> BoxFuture<'_, ()> {
        async move {
            // Without a connection what waits is given up, so that there is room soon.
            let room = self.import_room.clone().acquire_owned().await.expect("the semaphore is never closed");
            if self.shared.link.is_open() {
                self.shared.error("dropped");
                dropped.count();
            } else {
                self.send(Write { key, value, dropped: Some(dropped), _room: room });
            }
        }
        .boxed()
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        let n_sent = self.n_sent.load(Ordering::SeqCst);
        // An error: nobody writes any more.
        async move { _ = self.n_done.clone().wait_for(|n_done| *n_done >= n_sent).await }.boxed()
    }
}

impl Shared {
    fn error(&self, kind: &str) {
        self.metrics.redis_errors.with_label_values(&[kind]).inc();
    }

    /// One exchange with the server, counted and timed; what comes of it decides whether it is asked again.
    async fn exchange<T>(
        &self,
        number: u32,
        operation: Operation,
        within: Duration,
        exchange: impl Future<Output = Result<T, RedisError>>,
    ) -> Option<T> {
        let timer = self.metrics.redis_seconds.with_label_values(&[operation.as_str()]).start_timer();
        let result = timeout(within, exchange).await;
        drop(timer);
        match result {
            Ok(Ok(answer)) => {
                self.link.succeeded(number, operation);
                return Some(answer);
            }
            Ok(Err(error)) if error.is_io_error() || error.is_unrecoverable_error() => {
                self.error("connection");
                self.link.broke(number, error);
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, operation = operation.as_str(), "Redis answers with an error");
                self.error("answer");
                self.link.failed(number, operation, error);
            }
            Err(_) => {
                self.error("timeout");
                self.link.failed(number, operation, format_args!("no answer within {within:?}"));
            }
        }
        None
    }

    /// The value of a key as the server gave it.
    fn value(&self, key: &CacheKey, bytes: &[u8]) -> Option<CachedVector> {
        let value = CachedVector::from_bytes(key, bytes);
        if value.is_none() {
            self.error("corrupt");
        }
        value
    }
}

/// Answers lookups, all that wait at once. A lookup that is dropped unanswered is a miss.
async fn answer(shared: Arc<Shared>, mut asked: mpsc::Receiver<Lookup>) {
    let mut lookups = Vec::new();
    while asked.recv_many(&mut lookups, MAX_KEYS).await > 0 {
        lookups.retain(|lookup| !lookup.reply.is_closed());
        let connection = shared.link.connection().filter(|_| !lookups.is_empty());
        if let Some(Connection { number, mut inner }) = connection {
            let mut command = redis::cmd("MGET");
            lookups.iter().for_each(|lookup| _ = command.arg(name(&lookup.key)));
            let mget = command.query_async::<Vec<Option<Vec<u8>>>>(&mut inner);
            let values =
                shared.exchange(number, Operation::Get, shared.timeout, mget).await.unwrap_or_default();
            for (Lookup { key, reply }, value) in lookups.drain(..).zip(values) {
                // Whoever does not wait any more does without.
                let _ = reply.send(value.and_then(|bytes| shared.value(&key, &bytes)));
            }
        }
        lookups.clear();
    }
}

/// Writes vectors, as many at once as wait, and counts them as `done`.
async fn write(shared: Arc<Shared>, mut computed: mpsc::UnboundedReceiver<Write>, done: watch::Sender<u64>) {
    let mut values = Vec::new();
    while computed.recv_many(&mut values, MAX_VALUES).await > 0 {
        let mut are_written = false;
        if let Some(Connection { number, mut inner }) = shared.link.connection() {
            let mut pipeline = redis::pipe();
            for Write { key, value, .. } in &values {
                pipeline.add_command(set(key, value, shared.ttl_s)).ignore();
            }
            let patience = shared.timeout * WRITE_PATIENCE;
            let exchanged =
                shared.exchange(number, Operation::Set, patience, pipeline.exec_async(&mut inner)).await;
            are_written = exchanged.is_some();
        }
        if !are_written {
            for Write { dropped, .. } in &values {
                shared.error("dropped");
                dropped.iter().for_each(Dropped::count);
            }
        }
        done.send_modify(|n_done| *n_done += values.len() as u64);
        values.clear();
    }
}

fn set(key: &CacheKey, value: &CachedVector, ttl_s: u64) -> Cmd {
    let mut command = redis::cmd("SET");
    command.arg(name(key)).arg(value.to_bytes(key)).arg("EX").arg(ttl_s);
    command
}

fn name(key: &CacheKey) -> String {
    format!("sl:{}:{:02x}{}", key.fingerprint(), value::FORMAT, key.digest_hex().as_ref())
}
