//! The layers of settings: which wins, and what a mistake is told.

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
    });
}

#[test]
fn an_empty_list_is_written_as_one() {
    jailed(|_| {
        for key in ["auth.api_keys", "auth.keys", "fetch.allow_hosts", "fetch.allow_networks"] {
            load(None, &[(key, "[]")]).unwrap();
            // As `"$KEY"` and `"$A,$B"` give it without these variables.
            for nothing in ["", " ", ",", " , "] {
                let message = refusal(None, &[(key, nothing)]);
                assert!(message.contains(&format!("`{key}`: ")) && message.contains("`[]`"), "{message}");
            }
        }
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
        assert!(refusal(None, &[]).starts_with("variable SIDELENS_BATCH__SPEED: unknown key `batch.speed`"));
    });
}

#[test]
fn a_name_with_an_empty_part_is_unknown() {
    jailed(|jail| {
        for (name, key) in [
            ("SIDELENS_SERVER__LISTEN__", "server.listen."),
            ("SIDELENS_SERVER____LISTEN", "server..listen"),
            ("SIDELENS_SERVER__", "server."),
            ("SIDELENS_TRACES__HEADERS__", "traces.headers."),
            ("SIDELENS_", ""),
        ] {
            jail.clear_env();
            jail.set_env(name, "127.0.0.1:7802");
            let message = refusal(None, &[]);
            assert!(message.starts_with(&format!("variable {name}: unknown key `{key}`; ")), "{message}");
            jail.clear_env();
            let message = refusal(None, &[(key, "127.0.0.1:7802")]);
            assert!(message.starts_with(&format!("command line: unknown key `{key}`; ")), "{message}");
        }
        let message = refusal(None, &[("server.listen.", "127.0.0.1:7802")]);
        assert!(message.ends_with("; did you mean `server.listen`?"), "{message}");
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
        // Of services named `sidelens-gpu`, `sidelens--old` and `sidelens-gpu--old`.
        for name in ["GPU", "_OLD", "GPU__OLD"] {
            for (end, value) in [
                ("SERVICE_HOST", "10.0.0.2"),
                ("SERVICE_PORT", "7800"),
                ("SERVICE_PORT_HTTP", "7800"),
                ("PORT", "tcp://10.0.0.2:7800"),
                ("PORT_7800_TCP", "tcp://10.0.0.2:7800"),
                ("PORT_7800_TCP_PROTO", "tcp"),
                ("PORT_7800_TCP_PORT", "7800"),
                ("PORT_7800_TCP_ADDR", "10.0.0.2"),
            ] {
                jail.set_env(format!("SIDELENS_{name}_{end}"), value);
            }
        }
        load(None, &[]).unwrap();
        // A mistake that looks like one of them is of no service.
        for key in ["SIDELENS_SERVER_PORT", "SIDELENS_GPU_DEVICE", "SIDELENS_BATCH__MAX_BATCHSIZE"] {
            jail.clear_env();
            jail.set_env("SIDELENS_GPU_SERVICE_HOST", "10.0.0.2");
            jail.set_env(key, "1");
            assert!(refusal(None, &[]).starts_with(&format!("variable {key}: unknown key")), "{key}");
        }
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
fn mistakes_are_told_without_types_of_rust() {
    let check = |key: &str, value: &str, expected: &str| {
        let message = refusal(None, &[(key, value)]);
        assert!(message.starts_with("command line: ") && message.contains(expected), "{message}");
        assert!(!["struct", "u64", "usize", "syntax"].iter().any(|word| message.contains(word)), "{message}");
    };
    jailed(|_| {
        check("model", "openai/clip", "expected a table; its keys are set one by one, as `model.KEY`");
        check(
            "batch.deadline_ms",
            "soon",
            "`batch.deadline_ms`: found string \"soon\", expected a whole number",
        );
        check("batch.max_batch_size", "-1", "a whole number");
        check("models", "clip", "expected a table");
        check("fetch.hosts", "cdn.example.com", "expected a table");
        for network in ["127.0.0.1", "10.0.0.0/33"] {
            check(
                "fetch.allow_networks",
                network,
                "`fetch.allow_networks.0`: write it as a network such as 10.0.0.0/8",
            );
            check("fetch.deny_networks", network, "127.0.0.1/32");
        }
        for address in ["localhost:7800", ":7800", "0.0.0.0", ""] {
            check("server.listen", address, "`server.listen`: write it as ADDRESS:PORT");
        }
        check("server.admin_listen", "7801", "`server.admin_listen`: write it as ADDRESS:PORT");
        check(
            "server.backlog",
            "4294967296",
            "`server.backlog`: found 4294967296, expected a whole number from 0 to 4294967295",
        );
        check("server.backlog", "-1", ": found -1, expected a whole number from 0");
        check("hub.offline", "1", "`hub.offline`: found 1, expected true or false");
        check("log.format", "xml", "`log.format`: found `xml`, expected `pretty` or `json`");
        check(
            "model.dtype",
            "fp64",
            "`model.dtype`: found `fp64`, expected one of `auto`, `fp32`, `bf16`, `fp16`",
        );
        check(
            "models",
            "[{source = \"demo\", colour = \"red\"}]",
            "`models.0.colour`: there is no such key; expected one of `name`, `source`, ",
        );
        for key in ["models", "fetch.hosts", "fetch.buckets", "auth.keys"] {
            check(
                key,
                r#"[{"name": "a"}]"#,
                "expected a list as in TOML, with `=` in its tables; `[]` is an empty one",
            );
        }
    });
}

#[test]
fn a_secret_in_the_place_of_its_table_is_not_shown() {
    jailed(|jail| {
        jail.create_file("redis.toml", "[cache]\nredis = \"redis://:hunter2@host\"").unwrap();
        assert_eq!(
            refusal(Some("redis.toml"), &[]),
            "config file redis.toml: `cache.redis`: expected a table; its keys are set one by one, as `cache.redis.KEY`"
        );
        for key in ["auth", "cache", "cache.redis", "fetch", "hub", "traces", "traces.headers"] {
            let name = format!("SIDELENS_{}", key.to_uppercase().replace('.', "__"));
            for value in ["hunter2", "redis://hunter2@x", r#"{"key": "hunter2"}"#, "42424242"] {
                jail.clear_env();
                jail.set_env(&name, value);
                let hint = format!("expected a table; its keys are set one by one, as `{key}.KEY`");
                assert_eq!(refusal(None, &[]), format!("variable {name}: `{key}`: {hint}"));
            }
        }
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
        for hosts in ["[{host = 'a.example', headers = {X = 'hunter2}", "hunter2", "[{headers = 'hunter2'}]"]
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
