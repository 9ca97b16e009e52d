//! Joins the layers into one [`Config`], and says exactly which layer holds a mistake.
//!
//! `config/default.toml` names every key there is, so its tree is also the list of known keys and the
//! type of each: a variable or flag is read as what the default is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use figment::{
    Error, Figment, Metadata, Profile, Provider,
    error::Kind,
    providers::Env,
    util::nest,
    value::{Dict, Map, Value},
};

use super::{Config, DEFAULT_TOML};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file named by `--config` cannot be read.
    #[error("cannot read the config file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Not TOML.
    #[error("{origin}, line {line}: {message}")]
    Syntax {
        /// The layer.
        origin: String,
        /// From 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A key that no room has.
    #[error("{origin}: unknown key `{key}`{}", suggest(.suggestion))]
    UnknownKey {
        /// The layer.
        origin: String,
        /// The key, dots between its levels.
        key: String,
        /// The known key that looks most like it.
        suggestion: Option<String>,
    },
    /// A value of the wrong type or form.
    #[error("{origin}: `{key}`: {message}")]
    Invalid {
        /// The layer.
        origin: String,
        /// The key, dots between its levels.
        key: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A value outside its range.
    #[error("`{key}` is {value}, but {limit}")]
    OutOfRange {
        /// The key, dots between its levels.
        key: &'static str,
        /// Its value; never a secret.
        value: String,
        /// What it must be.
        limit: String,
    },
}

fn suggest(suggestion: &Option<String>) -> String {
    match suggestion {
        Some(key) => format!("; did you mean `{key}`?"),
        None => "; `sidelens config` prints every key".into(),
    }
}

impl Config {
    /// Reads every layer: the defaults, then `file`, then `SIDELENS_*` variables, then `sets` (dotted
    /// key and value, as flags give them; later ones win), and checks the ranges.
    ///
    /// # Errors
    /// [`ConfigError`], naming the layer and the key.
    pub fn load(file: Option<&Path>, sets: &[(String, String)]) -> Result<Self, ConfigError> {
        let defaults = parse_toml("config/default.toml", DEFAULT_TOML)?;
        let mut layers = Vec::new();
        if let Some(path) = file {
            let text =
                fs::read_to_string(path).map_err(|source| ConfigError::File { path: path.into(), source })?;
            let origin = format!("config file {}", path.display());
            layers.push(Layer { dict: parse_toml(&origin, &text)?, origin });
        }
        for (key, value) in Env::prefixed("SIDELENS_").split("__").iter() {
            let key = key.as_str();
            if !set_by_kubernetes(key) {
                let variable = key.to_uppercase().replace('.', "__");
                layers.push(Layer::setting(format!("variable SIDELENS_{variable}"), key, &value, &defaults));
            }
        }
        for (key, value) in sets {
            layers.push(Layer::setting("command line".into(), key, value, &defaults));
        }

        let mut figment =
            Figment::from(Layer { origin: "config/default.toml".into(), dict: defaults.clone() });
        for layer in layers {
            if let Some(key) = unknown_key(&layer.dict, &defaults, "") {
                let suggestion = closest(&key, &defaults);
                return Err(ConfigError::UnknownKey { origin: layer.origin, key, suggestion });
            }
            figment = figment.merge(layer);
        }
        let config: Self = figment.extract().map_err(invalid)?;
        config.validate()?;
        Ok(config)
    }
}

/// One source of settings.
#[derive(Debug)]
struct Layer {
    origin: String,
    dict: Dict,
}

impl Layer {
    fn setting(origin: String, key: &str, raw: &str, defaults: &Dict) -> Self {
        let text = Value::from("");
        let table = key.rsplit_once('.').and_then(|(table, _)| find(table, defaults));
        let default = if table.is_some_and(is_free) { Some(&text) } else { find(key, defaults) };
        let value = parse_value(raw, default);
        let dict = match nest(key, value) {
            Value::Dict(_, dict) => dict,
            // An empty key is an unknown key, and refused as one.
            value => Dict::from([(key.to_string(), value)]),
        };
        Self { origin, dict }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Map::from([(Profile::Default, self.dict.clone())]))
    }
}

/// A service named `sidelens` makes Kubernetes set `SIDELENS_SERVICE_HOST`, `SIDELENS_PORT_7800_TCP`
/// and more in every pod beside it; they are no settings.
fn set_by_kubernetes(key: &str) -> bool {
    key == "service_host" || key.starts_with("service_port") || key == "port" || key.starts_with("port_")
}

fn parse_toml(origin: &str, text: &str) -> Result<Dict, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Syntax {
        origin: origin.into(),
        line: 1 + text[..error.span().map_or(0, |span| span.start.min(text.len()))].matches('\n').count(),
        // Not the whole error: that quotes the line, which may hold a key.
        message: error.message().to_string(),
    })
}

/// Reads a variable or flag as the type that the default has.
fn parse_value(raw: &str, default: Option<&Value>) -> Value {
    let raw = raw.trim();
    let as_toml =
        || toml::from_str::<Dict>(&format!("value = {raw}")).ok().and_then(|mut dict| dict.remove("value"));
    match default {
        // A path or key made of digits stays a string; quotes are taken off.
        Some(Value::String(..)) => match as_toml() {
            Some(value @ Value::String(..)) => value,
            _ => raw.into(),
        },
        Some(Value::Array(..)) if !raw.starts_with('[') => {
            raw.split(',').map(str::trim).filter(|item| !item.is_empty()).collect::<Vec<_>>().into()
        }
        _ => as_toml().unwrap_or_else(|| raw.into()),
    }
}

fn find<'a>(key: &str, dict: &'a Dict) -> Option<&'a Value> {
    match key.split_once('.') {
        None => dict.get(key),
        Some((head, rest)) => match dict.get(head)? {
            Value::Dict(_, inner) => find(rest, inner),
            _ => None,
        },
    }
}

/// Whether it is a table with keys of the reader's own, such as headers: its values are texts.
fn is_free(default: &Value) -> bool {
    matches!(default, Value::Dict(_, table) if table.is_empty())
}

fn unknown_key(dict: &Dict, known: &Dict, prefix: &str) -> Option<String> {
    dict.iter().find_map(|(key, value)| match (known.get(key), value) {
        (None, _) => Some(format!("{prefix}{key}")),
        (Some(default), _) if is_free(default) => None,
        (Some(Value::Dict(_, known)), Value::Dict(_, dict)) => {
            unknown_key(dict, known, &format!("{prefix}{key}."))
        }
        // A table where a value belongs, or the reverse, is a type error, which says more.
        _ => None,
    })
}

fn closest(key: &str, known: &Dict) -> Option<String> {
    let mut paths = Vec::new();
    collect_paths(known, "", &mut paths);
    let name = |path: &str| path.rsplit('.').next().map(str::to_string);
    // Right name, wrong or no section.
    if let Some(path) = paths.iter().find(|path| name(path) == name(key)) {
        return Some(path.clone());
    }
    paths
        .into_iter()
        .map(|path| (strsim::damerau_levenshtein(&path, key), path))
        .filter(|(distance, _)| *distance <= 3)
        .min()
        .map(|(_, path)| path)
}

fn collect_paths(dict: &Dict, prefix: &str, paths: &mut Vec<String>) {
    for (key, value) in dict {
        match value {
            Value::Dict(_, inner) => collect_paths(inner, &format!("{prefix}{key}."), paths),
            _ => paths.push(format!("{prefix}{key}")),
        }
    }
}

fn invalid(error: Error) -> ConfigError {
    let origin = error.metadata.as_ref().map_or_else(|| "settings".into(), |m| m.name.to_string());
    let key = error.path.join(".");
    let message = match &error.kind {
        // figment quotes what it found, and here that may be a secret.
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) if holds_secrets(&key) => {
            format!("expected {expected}")
        }
        kind => kind.to_string(),
    };
    ConfigError::Invalid { origin, key, message }
}

fn holds_secrets(key: &str) -> bool {
    [
        "auth.api_keys",
        "auth.keys",
        "cache.redis.url",
        "fetch.buckets",
        "fetch.hosts",
        "fetch.proxy",
        "hub.token",
        "traces.headers",
    ]
    .iter()
    .any(|secret| key.starts_with(secret))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use figment::Jail;

    use super::*;
    use crate::config::{DeviceChoice, LogFormat, ModelSource};

    fn load(file: Option<&str>, sets: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let sets: Vec<_> = sets.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Config::load(file.map(Path::new), &sets)
    }

    fn refusal(file: Option<&str>, sets: &[(&str, &str)]) -> String {
        load(file, sets).expect_err("must be refused").to_string()
    }

    #[expect(clippy::result_large_err, reason = "figment's Jail fixes the type of the closure")]
    fn jailed(test: impl FnOnce(&mut Jail)) {
        Jail::expect_with(|jail| {
            jail.clear_env();
            test(jail);
            Ok(())
        });
    }

    #[test]
    fn every_default_is_documented() {
        jailed(|_| {
            load(None, &[]).unwrap();
        });
        let lines: Vec<_> = DEFAULT_TOML.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            if line.contains(" = ") && !line.starts_with('#') {
                assert!(i > 0 && lines[i - 1].starts_with("# "), "`{line}` has no comment above it");
            }
        }
    }

    #[test]
    fn later_layers_win() {
        jailed(|jail| {
            jail.create_file(
                "a.toml",
                "[batch]\nmax_batch_size = 8\nmax_queue_items = 100\n[log]\nlevel = \"debug\"",
            )
            .unwrap();
            jail.set_env("SIDELENS_BATCH__MAX_BATCH_SIZE", "16");
            jail.set_env("sidelens_log__format", "json");
            jail.set_env("SIDELENS_MODEL__SOURCE", "42");
            let config =
                load(Some("a.toml"), &[("batch.max_batch_size", "64"), ("model.device", "cuda:1")]).unwrap();
            assert_eq!(config.batch.max_batch_size, 64);
            assert_eq!(config.batch.max_queue_items, 100);
            assert_eq!(config.batch.deadline_ms, 25_000);
            assert_eq!(config.log.level, "debug");
            assert_eq!(config.log.format, LogFormat::Json);
            assert_eq!(config.model.source, ModelSource::Directory("42".into()));
            assert_eq!(config.model.device, DeviceChoice::Cuda(1));
        });
    }

    #[test]
    fn lists_may_be_toml_or_bare() {
        jailed(|jail| {
            jail.set_env("SIDELENS_AUTH__API_KEYS", "12345, second");
            jail.set_env("SIDELENS_FETCH__ALLOW_NETWORKS", r#"["10.0.0.0/8", "fc00::/7"]"#);
            let config = load(None, &[]).unwrap();
            assert_eq!(config.auth.api_keys, ["12345".into(), "second".into()]);
            assert_eq!(config.fetch.allow_networks.len(), 2);
            let config = load(None, &[("fetch.allow_networks", "")]).unwrap();
            assert!(config.fetch.allow_networks.is_empty());
        });
    }

    #[test]
    fn a_table_of_ones_own_takes_any_text() {
        jailed(|jail| {
            jail.create_file("a.toml", "[traces]\nheaders = {X-Scope = \"file\"}").unwrap();
            jail.set_env("SIDELENS_TRACES__HEADERS__AUTHORIZATION", "Bearer hunter2");
            let config = load(Some("a.toml"), &[("traces.headers.X-Tenant", "42424242")]).unwrap();
            let headers: Vec<_> =
                config.traces.headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
            assert_eq!(
                headers,
                [("X-Scope", "file"), ("X-Tenant", "42424242"), ("authorization", "Bearer hunter2")]
            );
            let shown = toml::to_string(&config).unwrap();
            assert!(!shown.contains("hunter2") && !shown.contains("4242"), "{shown}");
            jail.create_file("number.toml", "[traces]\nheaders = {X-Tenant = 42424242}").unwrap();
            assert!(!refusal(Some("number.toml"), &[]).contains("4242"));
        });
    }

    #[test]
    fn unknown_keys_are_named_with_the_one_meant() {
        jailed(|jail| {
            jail.create_file("a.toml", "[batch]\nmax_batch_sise = 8").unwrap();
            assert_eq!(
                refusal(Some("a.toml"), &[]),
                "config file a.toml: unknown key `batch.max_batch_sise`; did you mean `batch.max_batch_size`?"
            );
            assert_eq!(
                refusal(None, &[("max_pixels", "1")]),
                "command line: unknown key `max_pixels`; did you mean `image.max_pixels`?"
            );
            assert_eq!(
                refusal(None, &[("colour", "red")]),
                "command line: unknown key `colour`; `sidelens config` prints every key"
            );
            jail.set_env("SIDELENS_BATCH__SPEED", "1");
            assert!(
                refusal(None, &[]).starts_with("variable SIDELENS_BATCH__SPEED: unknown key `batch.speed`")
            );
        });
    }

    #[test]
    fn variables_of_a_kubernetes_service_are_no_settings() {
        jailed(|jail| {
            jail.set_env("SIDELENS_SERVICE_HOST", "10.0.0.1");
            jail.set_env("SIDELENS_SERVICE_PORT_HTTP", "7800");
            jail.set_env("SIDELENS_PORT", "tcp://10.0.0.1:7800");
            jail.set_env("SIDELENS_PORT_7800_TCP_ADDR", "10.0.0.1");
            load(None, &[]).unwrap();
        });
    }

    #[test]
    fn mistakes_name_their_layer() {
        jailed(|jail| {
            assert!(refusal(Some("gone.toml"), &[]).starts_with("cannot read the config file gone.toml: "));
            jail.create_file("a.toml", "[batch]\nmax_batch_size = = 8").unwrap();
            assert!(refusal(Some("a.toml"), &[]).starts_with("config file a.toml, line 2: "));
            jail.set_env("SIDELENS_BATCH__MAX_BATCH_SIZE", "many");
            let message = refusal(None, &[]);
            assert!(
                message.starts_with("variable SIDELENS_BATCH__MAX_BATCH_SIZE: `batch.max_batch_size`: ")
                    && message.contains("many"),
                "{message}"
            );
            let message = refusal(None, &[("batch.max_batch_size", "1"), ("model.device", "gpu")]);
            assert!(message.contains("command line: `model.device`: unknown device `gpu`"), "{message}");
        });
    }

    #[test]
    fn secrets_stay_out_of_errors_and_output() {
        jailed(|jail| {
            jail.create_file("type.toml", "[auth]\napi_keys = \"hunter2\"").unwrap();
            jail.create_file("syntax.toml", "[auth]\napi_keys = [\"hunter2\"").unwrap();
            jail.create_file("number.toml", "[hub]\ntoken = 42424242").unwrap();
            assert!(!refusal(Some("number.toml"), &[]).contains("4242"));
            jail.create_file(
                "header.toml",
                "[[fetch.hosts]]\nhost = \"a.example\"\nheaders = {X-Key = 42424242}",
            )
            .unwrap();
            assert!(!refusal(Some("header.toml"), &[]).contains("4242"));
            for hosts in
                ["[{host = 'a.example', headers = {X = 'hunter2}", "hunter2", "[{headers = 'hunter2'}]"]
            {
                let message = refusal(None, &[("fetch.hosts", hosts)]);
                assert!(!message.contains("hunter2"), "{message}");
            }
            jail.create_file("keys.toml", "[[auth.keys]]\nname = \"a\"\nkey = [\"hunter2\"]").unwrap();
            jail.create_file("list.toml", "[auth]\nkeys = [\"hunter2\"]").unwrap();
            for file in ["type.toml", "syntax.toml", "keys.toml", "list.toml"] {
                let error = load(Some(file), &[]).expect_err(file);
                assert!(!error.to_string().contains("hunter2") && !format!("{error:?}").contains("hunter2"));
            }
            let bucket = |value: &str| {
                format!("[[fetch.buckets]]\nurl = \"s3://photos\"\noptions = {{secret_access_key = {value}}}")
            };
            jail.create_file("secret.toml", &bucket("42424242")).unwrap();
            assert!(!refusal(Some("secret.toml"), &[]).contains("4242"));
            jail.create_file("bucket.toml", &bucket("\"hunter2\"")).unwrap();
            let shown = toml::to_string(&load(Some("bucket.toml"), &[]).unwrap()).unwrap();
            assert!(shown.contains("secret_access_key = \"***\"") && !shown.contains("hunter2"), "{shown}");
            let config = load(None, &[("auth.api_keys", "hunter2"), ("hub.token", "hunter2")]).unwrap();
            assert_eq!(config.auth.api_keys[0].expose(), "hunter2");
            let shown = toml::to_string(&config).unwrap();
            assert!(shown.contains("api_keys = [\"***\"]") && !shown.contains("hunter2"), "{shown}");
            let config =
                load(None, &[("auth.keys", r#"[{name = "a", key = "hunter2", admin = true}]"#)]).unwrap();
            assert!(config.auth.keys[0].admin && config.auth.keys[0].key.expose() == "hunter2");
            let shown = toml::to_string(&config).unwrap();
            assert!(shown.contains("name = \"a\"\nkey = \"***\"") && !shown.contains("hunter2"), "{shown}");
        });
    }
}
