//! Against a real `redis-server`, killed, stopped and restarted. Without one in the PATH they pass, and say so.

use std::{
    io::Write,
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{task::yield_now, time::sleep};

use super::{link::MAX_FAILURES, *};
use crate::{
    cache::{
        Lookup, Served, Taken, VectorCache,
        tests::{config, key},
        tier::contract,
    },
    config::CacheConfig,
    domain::Lane,
};

/// A server of our own.
struct Server {
    process: Child,
    port: u16,
    dir: TempDir,
}

impl Server {
    /// `None` where there is no `redis-server`.
    fn start() -> Option<Self> {
        // Free now, and hardly taken by another in a moment.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        match Self::spawn(port, &dir) {
            Ok(process) => Some(Self { process, port, dir }),
            Err(error) => {
                let skipped = "SKIPPED: no `redis-server` in the PATH, so nothing is tested against one";
                writeln!(std::io::stderr(), "{skipped} ({error})").unwrap();
                None
            }
        }
    }

    fn spawn(port: u16, dir: &TempDir) -> std::io::Result<Child> {
        Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn restart(&mut self) {
        self.process = Self::spawn(self.port, &self.dir).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    fn config(&self) -> CacheConfig {
        let defaults = config(1 << 24);
        // The machine that tests may be as busy as it likes.
        let redis = RedisConfig { url: self.url().as_str().into(), timeout_ms: 500, ..defaults.redis };
        CacheConfig { redis, ..defaults }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A cache of a replica's own, connected.
    async fn replica(&self) -> (VectorCache, Arc<Metrics>) {
        let metrics = Metrics::new();
        let cache = VectorCache::new(&self.config(), metrics.clone()).unwrap();
        until("connected", || metrics.redis_breaker_open.get() == 0).await;
        (cache, metrics)
    }

    async fn tier(&self) -> Redis {
        let config = self.config().redis;
        let redis = Redis::new(config.url.expose(), &config, Metrics::new()).unwrap();
        until("connected", || !redis.shared.link.is_open()).await;
        redis
    }

    /// Says something to the server, past the tier.
    async fn say<T: redis::FromRedisValue>(&self, command: &[&[u8]]) -> T {
        let mut connection = connect(&Client::open(self.url()).unwrap()).await.unwrap();
        let mut said = redis::cmd(str::from_utf8(command[0]).unwrap());
        command[1..].iter().for_each(|word| _ = said.arg(word));
        said.query_async(&mut connection).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only for a server that is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..4000 {
        if condition() {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("waited 20 s, in vain, until {what}");
}

fn errors(metrics: &Metrics, kind: &str) -> u64 {
    metrics.redis_errors.with_label_values(&[kind]).get()
}

fn redis_hits(metrics: &Metrics) -> u64 {
    metrics.cache_hits.with_label_values(&["redis"]).get()
}

fn lookup(key: CacheKey) -> Lookup {
    Lookup { key, dimensions: contract::value(1).embedding.dimensions(), lane: Lane::Bulk }
}

async fn compute() -> Result<CachedVector, String> {
    Ok(contract::value(1))
}

#[tokio::test]
async fn keeps_the_contract() {
    let Some(server) = Server::start() else { return };
    contract::check(&server.tier().await).await;
}

#[tokio::test]
async fn a_replica_finds_what_another_computed() {
    let Some(server) = Server::start() else { return };
    let (first, first_metrics) = server.replica().await;
    let value = first.get_or_compute(lookup(key("a")), |_| compute()).await.unwrap();
    until("it is written", || first_metrics.redis_seconds.with_label_values(&["set"]).get_sample_count() > 0)
        .await;

    let (second, metrics) = server.replica().await;
    let never = async { Err::<CachedVector, _>("it must not be computed") };
    assert_eq!(second.get_or_compute(lookup(key("a")), |_| never).await.unwrap(), value);
    assert_eq!((redis_hits(&metrics), metrics.cache_misses.get()), (1, 0));
    assert_eq!(second.peek(&key("a")).await, Some(value), "and keeps it nearer");

    let left: u64 = server.say(&[b"TTL", name(&key("a")).as_bytes()]).await;
    assert!(left > 0 && left <= server.config().redis.ttl_s, "{left}");
}

#[tokio::test]
async fn a_value_that_is_damaged_or_of_another_version_is_a_miss() {
    let Some(server) = Server::start() else { return };
    let (cache, metrics) = server.replica().await;
    let good = contract::value(1).to_bytes(&key("damaged"));
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let mut newer = contract::value(1).to_bytes(&key("newer"));
    newer[0] += 1;
    for (of, bytes) in [("damaged", damaged), ("newer", newer), ("other", good), ("empty", Vec::new())] {
        let () = server.say(&[b"SET", name(&key(of)).as_bytes(), &bytes]).await;
        cache.get_or_compute(lookup(key(of)), |_| compute()).await.unwrap();
    }
    assert_eq!((metrics.cache_misses.get(), redis_hits(&metrics), errors(&metrics, "corrupt")), (4, 0, 4));
    assert_eq!(metrics.redis_breaker_open.get(), 0, "no fault of the server's");
}

#[tokio::test]
async fn lookups_of_a_moment_are_one_question_and_a_full_queue_drops() {
    let Some(server) = Server::start() else { return };
    let tier = server.tier().await;
    let found = join_all((0..100).map(|i| tier.get(key(&i.to_string())))).await;
    assert!(found.iter().all(Option::is_none));
    let metrics = &tier.shared.metrics;
    assert_eq!(metrics.redis_seconds.with_label_values(&["get"]).get_sample_count(), 1);

    // The writer has no turn meanwhile, as nothing here waits.
    for i in 0..MAX_WRITES + 100 {
        tier.put(key(&i.to_string()), contract::value(1)).await;
    }
    assert_eq!(errors(metrics, "dropped"), 100);
}

#[tokio::test]
async fn what_waits_is_written_before_the_end() {
    let Some(server) = Server::start() else { return };
    let (cache, _) = server.replica().await;
    for i in 0..1000 {
        cache.put(key(&i.to_string()), contract::value(1), &Dropped::default()).await;
    }
    cache.flush().await;
    assert_eq!(server.say::<u64>(&[b"DBSIZE"]).await, 1000);
}

#[tokio::test]
async fn an_import_waits_for_room_and_tells_what_was_dropped() {
    let Some(mut server) = Server::start() else { return };
    let (cache, metrics) = server.replica().await;
    let n_rows = MAX_WRITES as u64 * 3;
    let mut table = Vec::new();
    // Without Redis, or they would be there already.
    let other = VectorCache::new(&config(1 << 28), Metrics::new()).unwrap();
    for i in 0..n_rows {
        other.put(key(&i.to_string()), contract::value(1), &Dropped::default()).await;
    }
    assert_eq!(other.export(&mut table).unwrap(), n_rows);
    let served = [Served { fingerprint: key("").fingerprint(), dimensions: 3 }];
    let import = async || {
        let (cache, table) = (cache.clone(), table.clone());
        let import = move || cache.import(&table[..], &served);
        tokio::task::spawn_blocking(import).await.unwrap().unwrap()
    };
    assert_eq!(import().await, Taken { rows: n_rows, of_others: 0, dropped: 0 });
    assert_eq!(server.say::<u64>(&[b"DBSIZE"]).await, n_rows);
    server.kill();
    assert_eq!(import().await, Taken { rows: n_rows, of_others: 0, dropped: n_rows });
    assert_eq!(errors(&metrics, "dropped"), n_rows);
}

#[tokio::test]
async fn an_import_takes_no_room_from_what_is_computed_meanwhile() {
    let Some(server) = Server::start() else { return };
    let tier = Arc::new(server.tier().await);
    let n_rows = MAX_WRITES * 2;
    server.signal(Signal::STOP);
    let import = tokio::spawn({
        let tier = tier.clone();
        async move {
            for i in 0..n_rows {
                tier.put_patiently(key(&i.to_string()), contract::value(1), Dropped::default()).await;
            }
            tier.flush().await;
        }
    });
    sleep(Duration::from_millis(300)).await;
    tier.put(key("computed"), contract::value(1)).await;
    assert_eq!(errors(&tier.shared.metrics, "dropped"), 0);
    server.signal(Signal::CONT);
    import.await.unwrap();
    assert_eq!(server.say::<u64>(&[b"DBSIZE"]).await, n_rows as u64 + 1);
}

#[tokio::test]
async fn a_server_that_is_not_there_costs_nothing_and_is_found_when_it_comes() {
    let Some(mut server) = Server::start() else { return };
    server.kill();
    let metrics = Metrics::new();
    let cache = VectorCache::new(&server.config(), metrics.clone()).unwrap();
    for i in 0..100 {
        cache.get_or_compute(lookup(key(&i.to_string())), |_| compute()).await.unwrap();
    }
    assert_eq!(metrics.redis_breaker_open.get(), 1);
    assert_eq!(metrics.redis_seconds.with_label_values(&["get"]).get_sample_count(), 0);
    server.restart();
    until("it is found", || metrics.redis_breaker_open.get() == 0).await;
}

#[tokio::test]
async fn killed_and_restarted_under_load_it_fails_no_lookup() {
    let Some(mut server) = Server::start() else { return };
    // Two replicas, so that what one computes the other may find.
    let replicas = [server.replica().await, server.replica().await];
    let (asked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..16)
        .map(|caller: usize| {
            let (cache, asked, stop) = (replicas[caller % 2].0.clone(), asked.clone(), stop.clone());
            tokio::spawn(async move {
                for i in 0.. {
                    if stop.load(Ordering::SeqCst) > 0 {
                        break;
                    }
                    let found =
                        cache.get_or_compute(lookup(key(&i.to_string())), |_| compute()).await.unwrap();
                    assert_eq!(found.embedding, contract::value(1).embedding);
                    asked.fetch_add(1, Ordering::SeqCst);
                    sleep(Duration::from_millis(1)).await;
                }
            })
        })
        .collect();
    let hits = || replicas.iter().map(|(_, metrics)| redis_hits(metrics)).sum::<u64>();
    let open = || replicas.iter().map(|(_, metrics)| metrics.redis_breaker_open.get()).sum::<i64>();
    for _ in 0..2 {
        let before = hits();
        until("one finds what the other computed", || hits() > before + 10).await;
        server.kill();
        until("both have noticed", || open() == 2).await;
        let before = asked.load(Ordering::SeqCst);
        until("both go on without it", || asked.load(Ordering::SeqCst) > before + 100).await;
        server.restart();
        until("both are back", || open() == 0).await;
    }
    let before = hits();
    until("it is of use again", || hits() > before + 10).await;
    stop.store(1, Ordering::SeqCst);
    for caller in load {
        caller.await.expect("no lookup fails");
    }
}

#[tokio::test]
async fn a_server_that_hangs_costs_a_few_timeouts_and_then_nothing() {
    let Some(server) = Server::start() else { return };
    let tier = {
        let config = RedisConfig { timeout_ms: 20, ..server.config().redis };
        Redis::new(config.url.expose(), &config, Metrics::new()).unwrap()
    };
    let metrics = &tier.shared.metrics;
    let asked = || metrics.redis_seconds.with_label_values(&["get"]).get_sample_count();
    until("connected", || !tier.shared.link.is_open()).await;
    tier.get(key("a")).await;
    server.signal(Signal::STOP);
    let before = asked();
    // One more than there are timeouts may be under way when the last of them ends.
    for _ in 0..=2 * MAX_FAILURES {
        assert_eq!(tier.get(key("a")).await, None);
    }
    assert!(tier.shared.link.is_open());
    assert!(errors(metrics, "timeout") <= MAX_FAILURES.into());
    assert!(asked() - before <= MAX_FAILURES.into());
    let before = asked();
    for _ in 0..1000 {
        assert_eq!(tier.get(key("a")).now_or_never(), Some(None), "at once");
        yield_now().await;
    }
    assert_eq!(asked(), before);
    server.signal(Signal::CONT);
    until("it is asked again", || !tier.shared.link.is_open()).await;
}

#[tokio::test]
async fn what_cannot_be_an_address_is_told_without_it() {
    for url in ["redis://:hunter2@host:port/db", "redis://:hunter2@host/seven", "redis://"] {
        let config = RedisConfig { url: url.into(), ..config(0).redis };
        let message = Redis::new(config.url.expose(), &config, Metrics::new()).err().unwrap().to_string();
        assert!(message.contains("cache.redis.url") && !message.contains("hunter2"), "{message}");
    }
    let defaults = config(0).redis;
    let config = RedisConfig { url: "rediss://host".into(), ca_file: "/nowhere/ca.pem".into(), ..defaults };
    let message = Redis::new(config.url.expose(), &config, Metrics::new()).err().unwrap().to_string();
    assert!(message.contains("/nowhere/ca.pem"), "{message}");
}

#[tokio::test]
async fn the_address_may_be_in_a_file_which_is_not_shown_either() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("url");
    let metrics = Metrics::new();
    let config = RedisConfig { url_file: Some(file.clone()), ..config(0).redis };
    for (content, is_good) in [
        (None, false),
        (Some(""), false),
        (Some("http://:hunter2@host"), false),
        (Some("redis://:hunter2@127.0.0.1:1/seven"), false),
        (Some(" redis://:hunter2@127.0.0.1:1/7\n"), true),
    ] {
        if let Some(content) = content {
            fs::write(&file, content).unwrap();
        }
        match tier(&config, &metrics) {
            Ok(found) => assert!(is_good && found.is_some(), "{content:?}"),
            Err(error) => {
                let message = error.to_string();
                let is_named = message.contains("`cache.redis.url_file`");
                assert!(!is_good && is_named && !message.contains("hunter2"), "{message}");
            }
        }
    }
}
