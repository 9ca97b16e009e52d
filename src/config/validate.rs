//! Ranges: what no type can say.

use std::{collections::BTreeSet, fmt::Display, net::SocketAddr};

use super::{
    BatchConfig, CacheConfig, Config, ConfigError, MAX_WORKERS, ModelConfig, ModelSource, RedisConfig,
    ServedModel,
    keys::{KeyFault, check_keys},
};

/// Threads of any pool; more is a typing error.
const MAX_THREADS: usize = 1024;
/// Ten years in seconds; the cache cannot count much further.
const MAX_TTL_S: u64 = 315_360_000;
/// An hour. The system counts no further than 25 days.
const MAX_CLIENT_TIMEOUT_MS: u64 = 3_600_000;
/// Largest batch: no device is faster with more, and the warm-up computes one.
const MAX_BATCH_SIZE: usize = 4096;
/// The same in tokens.
const MAX_BATCH_TOKENS: usize = 1 << 20;
/// Meilisearch hangs up after this.
const MEILISEARCH_TIMEOUT_MS: u64 = 30_000;

impl Config {
    /// Checks every range.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`] with the first key that is outside its own.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { server, hub, image, fetch, .. } = self;
        at_least("server.max_body_bytes", server.max_body_bytes, 1024)?;
        no_more_than(
            "server.max_body_bytes",
            server.max_body_bytes as u64,
            "server.max_inflight_body_bytes",
            server.max_inflight_body_bytes as u64,
        )?;
        at_least("server.max_inflight_bodies", server.max_inflight_bodies, 1)?;
        at_most("server.workers", server.workers, MAX_WORKERS)?;
        at_least("server.backlog", server.backlog, 1)?;
        at_most("server.shutdown_timeout_s", server.shutdown_timeout_s, 3600)?;

        self.validate_edge()?;
        self.validate_models()?;
        let token = hub.token.expose();
        if token == "***" || token.contains(|c: char| !c.is_ascii_graphic()) {
            let limit = "a token is visible ASCII, and `***` only stands for a hidden one";
            return Err(out_of_range("hub.token", "not one", limit.into()));
        }
        http_or_empty("hub.endpoint", &hub.endpoint, "hub.token")?;
        at_least("image.max_pixels", image.max_pixels, 1)?;
        at_least("image.max_memory_bytes", image.max_memory_bytes, 1 << 20)?;
        at_least("image.timeout_ms", image.timeout_ms, 1)?;
        at_most("image.threads", image.threads, MAX_THREADS)?;

        fetch.validate()?;
        self.traces.validate()?;

        self.validate_cache()
    }

    fn validate_cache(&self) -> Result<(), ConfigError> {
        let CacheConfig { max_bytes, ttl_s, idle_s, file, redis, .. } = &self.cache;
        if *max_bytes == 0 && !file.is_empty() {
            let limit = "keeps what memory holds: leave it out, or give memory some bytes".into();
            return Err(out_of_range("cache.file", "set beside `cache.max_bytes` 0", limit));
        }
        at_least("cache.ttl_s", *ttl_s, 1)?;
        at_most("cache.ttl_s", *ttl_s, MAX_TTL_S)?;
        at_most("cache.idle_s", *idle_s, MAX_TTL_S)?;
        at_least("cache.redis.ttl_s", redis.ttl_s, 1)?;
        at_most("cache.redis.ttl_s", redis.ttl_s, MAX_TTL_S)?;
        at_least("cache.redis.timeout_ms", redis.timeout_ms, 1)?;
        at_most("cache.redis.timeout_ms", redis.timeout_ms, 1000)?;
        let url = redis.url.expose();
        if redis.url_file.is_some() && !url.is_empty() {
            let limit = "must be left out then: give one of the two".into();
            return Err(out_of_range("cache.redis.url", "set beside `cache.redis.url_file`", limit));
        }
        if !url.is_empty() && !RedisConfig::is_url(url) {
            // Not shown: it may hold a password all the same.
            let limit = "must be redis://host:port/db, or rediss:// for TLS";
            return Err(out_of_range("cache.redis.url", "not one", limit.into()));
        }
        Ok(())
    }
}

impl Config {
    /// Listeners, connections and keys.
    fn validate_edge(&self) -> Result<(), ConfigError> {
        let Self { server, auth, .. } = self;
        if server.tls_cert.is_some() != server.tls_key.is_some() {
            let (key, limit) = ("server.tls_cert", "needs both".into());
            return Err(out_of_range(key, "set without `server.tls_key`, or the reverse", limit));
        }
        if let Some(admin_listen) = server.admin_listen.filter(|admin| overlap(*admin, server.listen)) {
            let limit = format!("must have another port than `server.listen` {}", server.listen);
            return Err(out_of_range("server.admin_listen", admin_listen, limit));
        }
        at_least("server.max_connections", server.max_connections, 1)?;
        at_least("server.client_timeout_ms", server.client_timeout_ms, 1)?;
        at_most("server.client_timeout_ms", server.client_timeout_ms, MAX_CLIENT_TIMEOUT_MS)?;
        at_most("server.keep_alive_s", server.keep_alive_s, 3600)?;
        at_least("auth.max_inputs_burst", auth.max_inputs_burst, 1)?;
        let wrong = |(i, fault): (usize, KeyFault)| {
            let n_unnamed = auth.api_keys.len();
            let (list, i) = if i < n_unnamed { ("auth.api_keys", i) } else { ("auth.keys", i - n_unnamed) };
            let place = format!("a list whose key number {} cannot be used", i + 1);
            out_of_range(list, place, fault.to_string())
        };
        check_keys(auth.listed()).map_err(wrong)
    }

    /// What holds for each model that is served.
    fn validate_models(&self) -> Result<(), ConfigError> {
        let wrong = |key, value: &str, limit: &str| Err(out_of_range(key, value, limit.into()));
        let ModelConfig { source, name, image, text, .. } = &self.model;
        let of_one = [
            ("model.source", *source != ModelSource::Demo),
            ("model.name", name.is_some()),
            ("model.image", image.is_some()),
            ("model.text", text.is_some()),
        ];
        for (key, is_set) in of_one {
            if is_set && !self.models.is_empty() {
                return wrong(key, "set beside `models`", "must be left out then: list the model there");
            }
        }
        for (i, entry) in self.models.iter().enumerate() {
            if entry.source.is_none() && (entry.image.is_none() || entry.text.is_none()) {
                let place = format!("a list whose entry {} has no `source`", i + 1);
                return wrong("models", &place, "each needs one, or both `image` and `text`");
            }
        }
        let mut names = BTreeSet::new();
        for ServedModel { model, batch } in self.served() {
            if model.image.is_some() != model.text.is_some() {
                return wrong("model.image", "set without `model.text`, or the reverse", "needs both");
            }
            if model.image.is_some() && model.source != ModelSource::Demo {
                return wrong("model.source", "set beside `model.image`", "must be left out then");
            }
            let is_named =
                |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_./@".contains(c));
            if let Some(name) = &model.name {
                if name.is_empty() || !is_named(name) {
                    return wrong("model.name", name, "must be letters, digits, `-`, `_`, `.`, `/` and `@`");
                }
                if !names.insert(name.clone()) {
                    return wrong("model.name", name, "must be another for each model");
                }
            }
            at_most("model.threads", model.threads, MAX_THREADS)?;
            at_most("model.replicas", model.replicas, MAX_THREADS)?;
            at_most("batch.max_batch_size", batch.max_batch_size, MAX_BATCH_SIZE)?;
            at_most("batch.max_batch_tokens", batch.max_batch_tokens, MAX_BATCH_TOKENS)?;
            at_least("batch.max_queue_items", batch.max_queue_items, 1)?;
            at_least("batch.deadline_ms", batch.deadline_ms, 1)?;
            at_most("batch.deadline_ms", batch.deadline_ms, MEILISEARCH_TIMEOUT_MS)?;
            let BatchConfig { max_queue_delay_ms, deadline_ms, .. } = batch;
            below("batch.max_queue_delay_ms", max_queue_delay_ms, "batch.deadline_ms", deadline_ms)?;
            below("fetch.timeout_ms", self.fetch.timeout_ms, "batch.deadline_ms", deadline_ms)?;
        }
        Ok(())
    }
}

pub(super) fn out_of_range(key: &'static str, value: impl Display, limit: String) -> ConfigError {
    ConfigError::OutOfRange { key, value: value.to_string(), limit }
}

/// For an address that is shown in messages and by `sidelens config`: what is secret belongs into `secrets`.
pub(super) fn http_or_empty(key: &'static str, address: &str, secrets: &str) -> Result<(), ConfigError> {
    if address.contains('@') {
        let limit = format!("must not hold a name or password: use `{secrets}`");
        return Err(out_of_range(key, "an address with an `@`", limit));
    }
    if !address.is_empty() && !address.starts_with("http://") && !address.starts_with("https://") {
        return Err(out_of_range(key, address, "must be an http(s) address".into()));
    }
    Ok(())
}

pub(super) fn at_least<T: PartialOrd + Display>(
    key: &'static str,
    value: T,
    limit: T,
) -> Result<(), ConfigError> {
    if value < limit {
        return Err(out_of_range(key, value, format!("must be {limit} or more")));
    }
    Ok(())
}

pub(super) fn at_most<T: PartialOrd + Display>(
    key: &'static str,
    value: T,
    limit: T,
) -> Result<(), ConfigError> {
    if value > limit {
        return Err(out_of_range(key, value, format!("must be {limit} or less")));
    }
    Ok(())
}

pub(super) fn no_more_than(
    key: &'static str,
    value: u64,
    other: &str,
    limit: u64,
) -> Result<(), ConfigError> {
    if value > limit {
        return Err(out_of_range(key, value, format!("must not be above `{other}`, which is {limit}")));
    }
    Ok(())
}

/// Whether the second of two sockets could not listen: at one port, where either has the other's address, or all.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip(), other.ip());
    one.port() == other.port() && one.port() != 0 && (a == b || a.is_unspecified() || b.is_unspecified())
}

fn below(key: &'static str, value: u64, other: &str, limit: u64) -> Result<(), ConfigError> {
    if value >= limit {
        return Err(out_of_range(key, value, format!("must be below `{other}`, which is {limit}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DEFAULT_TOML, ModelEntry, NamedKey};

    fn check(tweak: impl FnOnce(&mut Config), expected: &str) {
        let mut config: Config = toml::from_str(DEFAULT_TOML).unwrap();
        config.validate().unwrap();
        tweak(&mut config);
        assert_eq!(config.validate().unwrap_err().to_string(), expected);
    }

    #[test]
    fn names_key_value_and_limit() {
        check(|c| c.batch.max_queue_items = 0, "`batch.max_queue_items` is 0, but must be 1 or more");
        check(|c| c.batch.deadline_ms = 60_000, "`batch.deadline_ms` is 60000, but must be 30000 or less");
        check(
            |c| c.fetch.timeout_ms = 25_000,
            "`fetch.timeout_ms` is 25000, but must be below `batch.deadline_ms`, which is 25000",
        );
        check(
            |c| c.fetch.connect_timeout_ms = 9000,
            "`fetch.connect_timeout_ms` is 9000, but must not be above `fetch.timeout_ms`, which is 8000",
        );
        check(|c| c.hub.endpoint = "hub".into(), "`hub.endpoint` is hub, but must be an http(s) address");
        check(|c| c.server.workers = 600, "`server.workers` is 600, but must be 512 or less");
        check(
            |c| c.server.client_timeout_ms = 1 << 31,
            "`server.client_timeout_ms` is 2147483648, but must be 3600000 or less",
        );
        let limit = "`batch.max_batch_size` is 4097, but must be 4096 or less";
        check(|c| c.batch.max_batch_size = 4097, limit);
        check(
            |c| {
                c.models = vec![ModelEntry { source: Some(ModelSource::Demo), ..ModelEntry::default() }];
                c.models[0].batch.max_batch_size = Some(4097);
            },
            limit,
        );
        check(
            |c| c.batch.max_batch_tokens = 1 << 40,
            "`batch.max_batch_tokens` is 1099511627776, but must be 1048576 or less",
        );
        check(
            |c| c.fetch.max_concurrent = 1 << 62,
            "`fetch.max_concurrent` is 4611686018427387904, but must be 65536 or less",
        );
        check(
            |c| c.fetch.max_concurrent_per_host = 1 << 62,
            "`fetch.max_concurrent_per_host` is 4611686018427387904, but must be 65536 or less",
        );
        check(
            |c| c.server.max_inflight_bodies = 0,
            "`server.max_inflight_bodies` is 0, but must be 1 or more",
        );
        check(
            |c| c.server.max_inflight_body_bytes = 5000,
            "`server.max_body_bytes` is 104857600, but must not be above `server.max_inflight_body_bytes`, which is 5000",
        );
    }

    #[test]
    fn buckets_are_named_with_what_is_wrong() {
        let with = |setting: &str| {
            let bucket = format!("url = \"gs://photos\"\n{setting}");
            move |c: &mut Config| c.fetch.buckets = vec![toml::from_str(&bucket).unwrap()]
        };
        check(
            with("endpoint = \"minio:9000\""),
            "`fetch.buckets.endpoint` is minio:9000, but must be an http(s) address",
        );
        check(
            with("endpoint = \"http://u:hunter2@minio:9000\""),
            "`fetch.buckets.endpoint` is an address with an `@`, but must not hold a name or password: \
             use `fetch.buckets.options`",
        );
        check(
            with("region = \"eu-central-1\""),
            "`fetch.buckets.region` is set for gs://photos, but is S3's alone",
        );
        check(
            with("options = {bearer_token = \"***\"}"),
            "`fetch.buckets.options` is a table with `***`, but that only stands for a hidden value",
        );
    }

    #[test]
    fn listeners_and_names_are_told_apart() {
        check(
            |c| c.server.tls_cert = Some("c.pem".into()),
            "`server.tls_cert` is set without `server.tls_key`, or the reverse, but needs both",
        );
        for (listen, admin_listen) in [
            ("127.0.0.1:7800", "127.0.0.1:7800"),
            ("127.0.0.1:7800", "0.0.0.0:7800"),
            ("[::]:7800", "127.0.0.1:7800"),
        ] {
            let set = |c: &mut Config| {
                c.server.listen = listen.parse().unwrap();
                c.server.admin_listen = Some(admin_listen.parse().unwrap());
            };
            let limit = format!("must have another port than `server.listen` {listen}");
            check(set, &format!("`server.admin_listen` is {admin_listen}, but {limit}"));
        }
        for (listen, admin_listen) in
            [("0.0.0.0:0", "0.0.0.0:0"), ("127.0.0.1:7800", "127.0.0.2:7800"), ("[::]:7800", "[::]:7801")]
        {
            let mut config: Config = toml::from_str(DEFAULT_TOML).unwrap();
            config.server.listen = listen.parse().unwrap();
            config.server.admin_listen = Some(admin_listen.parse().unwrap());
            config.validate().unwrap();
        }
        check(
            |c| {
                c.auth.api_keys = vec!["a".into()];
                c.auth.keys =
                    vec![NamedKey::new("x".into(), "b".into()), NamedKey::new("key-1".into(), "c".into())];
            },
            "`auth.keys` is a list whose key number 2 cannot be used, but its name is another key's",
        );
    }

    #[test]
    fn models_are_listed_whole_and_once() {
        let entry = |name: &str| ModelEntry {
            name: Some(name.into()),
            source: Some(ModelSource::Demo),
            ..ModelEntry::default()
        };
        check(
            |c| c.models = vec![entry("a"), entry("a")],
            "`model.name` is a, but must be another for each model",
        );
        check(
            |c| c.models = vec![entry("a b")],
            "`model.name` is a b, but must be letters, digits, `-`, `_`, `.`, `/` and `@`",
        );
        check(
            |c| c.models = vec![entry("a"), ModelEntry::default()],
            "`models` is a list whose entry 2 has no `source`, but each needs one, or both `image` and `text`",
        );
        check(
            |c| {
                c.models = vec![entry("a")];
                c.model.source = ModelSource::Directory("/b".into());
            },
            "`model.source` is set beside `models`, but must be left out then: list the model there",
        );
        check(
            |c| {
                c.models = vec![entry("a")];
                c.model.name = Some("b".into());
            },
            "`model.name` is set beside `models`, but must be left out then: list the model there",
        );
        check(
            |c| c.model.image = Some(ModelSource::Demo),
            "`model.image` is set without `model.text`, or the reverse, but needs both",
        );
        check(
            |c| {
                c.models = vec![entry("a"), entry("b")];
                c.models[1].batch.deadline_ms = Some(40_000);
            },
            "`batch.deadline_ms` is 40000, but must be 30000 or less",
        );
    }

    #[test]
    fn the_address_of_redis_is_not_shown() {
        for url in ["***", "http://:hunter2@host", ":hunter2@host:6379"] {
            let limit = "must be redis://host:port/db, or rediss:// for TLS";
            check(|c| c.cache.redis.url = url.into(), &format!("`cache.redis.url` is not one, but {limit}"));
        }
    }

    #[test]
    fn the_address_of_redis_is_given_once() {
        check(
            |c| {
                c.cache.redis.url = "redis://:hunter2@host".into();
                c.cache.redis.url_file = Some("url".into());
            },
            "`cache.redis.url` is set beside `cache.redis.url_file`, but must be left out then: give one of the two",
        );
    }

    #[test]
    fn refuses_keys_without_showing_them() {
        for key in ["", "two words", "***", "schlüssel"] {
            let mut config: Config = toml::from_str(DEFAULT_TOML).unwrap();
            config.auth.api_keys = vec!["good".into(), key.into()];
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains("key number 2"), "{message}");
            assert!(!message.contains("words") && !message.contains("schl"), "{message}");
        }
        check(
            |c| c.hub.endpoint = "https://me:hunter2@hub".into(),
            "`hub.endpoint` is an address with an `@`, but must not hold a name or password: use `hub.token`",
        );
        for token in ["two words", "***"] {
            let mut config: Config = toml::from_str(DEFAULT_TOML).unwrap();
            config.hub.token = token.into();
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with("`hub.token` is not one") && !message.contains("words"), "{message}");
        }
    }
}
