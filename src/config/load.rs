//! Joins the layers into one [`Config`], and says exactly which layer holds a mistake.
//!
//! `config/default.toml` names every key there is, so its tree is also the list of known keys and the
//! type of each: a variable or flag is read as what the default is.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use figment::{
    Error, Figment, Metadata, Profile, Provider,
    error::{Actual, Kind, OneOf},
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
        let variables = variables();
        let services: Vec<_> =
            variables.iter().filter_map(|variable| variable.key.strip_suffix(SERVICE_HOST)).collect();
        for Variable { name, key, value } in &variables {
            if !set_by_kubernetes(key, &services) {
                layers.push(Layer::setting(format!("variable {name}"), key, value, &defaults)?);
            }
        }
        for (key, value) in sets {
            layers.push(Layer::setting("command line".into(), key, value, &defaults)?);
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
        let config: Self = figment.extract().map_err(|error| invalid(error, &defaults))?;
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
    fn setting(origin: String, key: &str, raw: &str, defaults: &Dict) -> Result<Self, ConfigError> {
        // `nest` would take what stands before an empty part for the whole key.
        if key.split('.').any(str::is_empty) {
            let suggestion = closest(key, defaults);
            return Err(ConfigError::UnknownKey { origin, key: key.into(), suggestion });
        }
        let text = Value::from("");
        let table = key.rsplit_once('.').and_then(|(table, _)| find(table, defaults));
        let default = if table.is_some_and(is_free) { Some(&text) } else { find(key, defaults) };
        let value = parse_value(raw, default);
        let dict = nest(key, value).into_dict().expect("a key has a part at least");
        Ok(Self { origin, dict })
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

/// A variable `SIDELENS_...`.
struct Variable {
    name: String,
    /// Dots between its levels.
    key: String,
    value: String,
}

fn variables() -> Vec<Variable> {
    let variable = |(name, value): (OsString, OsString)| {
        let (name, value) = (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned());
        let key = name.to_lowercase().strip_prefix("sidelens_")?.replace("__", ".");
        Some(Variable { name, key, value })
    };
    env::vars_os().filter_map(variable).collect()
}

/// What the first of the variables of a service ends in.
const SERVICE_HOST: &str = "service_host";

/// A service named `sidelens-gpu` makes Kubernetes set `SIDELENS_GPU_SERVICE_HOST`,
/// `SIDELENS_GPU_PORT_7800_TCP` and more in every pod beside it; they are no settings. `services` are what
/// stands before [`SERVICE_HOST`], so that without a service such a name is still a mistake.
fn set_by_kubernetes(key: &str, services: &[&str]) -> bool {
    let of_service = |end: &str| {
        end == SERVICE_HOST || end.starts_with("service_port") || end == "port" || end.starts_with("port_")
    };
    services.iter().any(|service| key.strip_prefix(service).is_some_and(of_service))
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
            let items: Vec<_> = raw.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
            // Nothing is no list: a variable that is not there gives it, and without a key everybody may call.
            if items.is_empty() { raw.into() } else { items.into() }
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

fn invalid(error: Error, defaults: &Dict) -> ConfigError {
    let origin = error.metadata.as_ref().map_or_else(|| "settings".into(), |m| m.name.to_string());
    let key = error.path.join(".");
    let form = FORMS.iter().find(|(prefix, _)| key.starts_with(prefix));
    let message = match &error.kind {
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            let mut message = format!("expected {}", plain(expected));
            // What was found may be a secret itself.
            if !holds_secrets(&key) {
                message = format!("found {}, {message}", shown(found));
            }
            if let Some(Value::Dict(..)) = find(&key, defaults) {
                message += &format!("; its keys are set one by one, as `{key}.KEY`");
            }
            message
        }
        Kind::UnknownVariant(found, known) => format!("found `{found}`, expected {}", OneOf(known)),
        Kind::UnknownField(_, known) => format!("there is no such key; expected {}", OneOf(known)),
        // The parser's own words do not say what it parses.
        Kind::Message(said) => form.map_or_else(|| said.clone(), |(_, form)| format!("write it as {form}")),
        kind => kind.to_string(),
    };
    ConfigError::Invalid { origin, key, message }
}

/// How values are written whose types say only that they are not.
const FORMS: [(&str, &str); 4] = [
    ("server.listen", "ADDRESS:PORT, such as 127.0.0.1:7800 or [::]:7800; names are not looked up"),
    ("server.admin_listen", "ADDRESS:PORT, such as 127.0.0.1:7801 or [::]:7801; names are not looked up"),
    ("fetch.allow_networks", "a network such as 10.0.0.0/8, and a single address as 127.0.0.1/32"),
    ("fetch.deny_networks", "a network such as 10.0.0.0/8, and a single address as 127.0.0.1/32"),
];

/// What was expected, where serde tells it by a type of Rust.
fn plain(expected: &str) -> &str {
    match expected {
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list as in TOML, with `=` in its tables; `[]` is an empty one",
        "a map" => "a table",
        _ if expected.starts_with("struct ") => "a table",
        other => other,
    }
}

/// What was found, where figment tells it by a type of its own.
fn shown(found: &Actual) -> String {
    match found {
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(value) => value.to_string(),
        Actual::Signed(value) => value.to_string(),
        Actual::Float(value) => value.to_string(),
        Actual::Seq => "a list".into(),
        Actual::Map => "a table".into(),
        other => other.to_string(),
    }
}

/// Whether what stands at `key` may be a secret: in one of these places, below it, or where their table belongs.
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
    .any(|secret| secret.split('.').zip(key.split('.')).all(|(secret, part)| secret == part))
}

#[cfg(test)]
mod tests;
