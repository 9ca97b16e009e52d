//! `sidelens config`, and mistakes in settings, as the program itself treats them.

use std::process::{Command, Output};

use sidelens::config::{Config, DEFAULT_TOML};

use crate::support::sidelens;

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn refusal(args: &[&str]) -> String {
    let output = sidelens(args).output().expect("runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty());
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(message.lines().count(), 1, "one sentence: {message}");
    message
}

#[test]
fn prints_the_defaults() {
    let printed: Config = toml::from_str(&stdout(&sidelens(&["config"]).output().unwrap())).unwrap();
    assert_eq!(printed, toml::from_str(DEFAULT_TOML).unwrap());
}

/// `cargo run` hands the variables of build.rs to the program, as `cargo test` hands them to its tests.
#[test]
fn cargo_hands_over_nothing_that_reads_as_a_setting() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidelens"));
    for of_the_tests in ["SIDELENS_MINILM", "SIDELENS_PARITY_DEVICE"] {
        command.env_remove(of_the_tests);
    }
    stdout(&command.arg("config").output().unwrap());
}

#[test]
fn prints_what_flags_and_variables_say_but_no_secret() {
    let output = sidelens(&["config", "--model", "/models/clip", "--set", "batch.max_batch_size=7"])
        .env("SIDELENS_AUTH__API_KEYS", "hunter2,hunter3")
        .env("SIDELENS_FETCH__MAX_REDIRECTS", "1")
        .output()
        .unwrap();
    let text = stdout(&output);
    assert!(!text.contains("hunter"), "{text}");
    assert!(text.contains(r#"api_keys = ["***", "***"]"#), "{text}");
    assert!(text.contains(r#"source = "/models/clip""#) && text.contains("max_batch_size = 7"), "{text}");
    assert!(text.contains("max_redirects = 1"), "{text}");
}

#[test]
fn output_that_nobody_takes_is_no_panic() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = sidelens(&["config"]).stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    #[cfg(target_os = "linux")]
    for command in ["config", "--version"] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = sidelens(&[command]).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.starts_with("sidelens: cannot write to standard output: "), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn a_mistake_is_one_sentence_and_exit_status_1() {
    let message = refusal(&["--set", "batch.max_batchsize=7"]);
    assert!(message.contains("did you mean `batch.max_batch_size`?"), "{message}");
    assert!(refusal(&["--config", "/nowhere/s.toml"]).contains("/nowhere/s.toml"));
    assert!(refusal(&["--set", "batch.max_queue_items=0"]).contains("must be 1 or more"));
    assert!(refusal(&["--set", "log.level=sidelens=loud"]).contains("log.level"));
    assert!(refusal(&["--device", "gpu"]).contains("cuda:N"));
}

#[test]
fn a_busy_port_fails_before_a_model_is_read() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let args = ["--model", "/nowhere", "--set", "log.level=off"];
    let message = refusal(&[&["--listen", &address], &args[..]].concat());
    assert!(message.contains(&address) && message.contains("`--listen`"), "{message}");
    let admin = format!("server.admin_listen={address}");
    let message = refusal(&[&["--listen", "127.0.0.1:0", "--set", &admin], &args[..]].concat());
    assert!(message.contains(&address) && message.contains("`--set server.admin_listen="), "{message}");
}

#[test]
fn a_file_that_could_not_be_written_at_the_stop_fails_before_a_model_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |file: &str| {
        let set = format!("cache.file={file}");
        refusal(&["--listen", "127.0.0.1:0", "--model", "/nowhere", "--set", "log.level=off", "--set", &set])
    };
    let (there, missing) = (dir.path().to_str().unwrap(), dir.path().join("no/such.parquet"));
    for (file, reason) in [(there, "no regular file"), (missing.to_str().unwrap(), "No such file")] {
        let message = refused(file);
        assert!(["`cache.file`", file, reason].iter().all(|word| message.contains(word)), "{message}");
    }
    // A good one is not there before there is something to keep.
    let good = dir.path().join("vectors.parquet");
    assert!(refused(good.to_str().unwrap()).contains("/nowhere"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(refusal(&["--set", "cache.max_bytes=0", "--set", "cache.file=/tmp/x"]).contains("`cache.file`"));
}

#[test]
fn other_files_are_missed_before_a_model_is_read() {
    let model = ["--listen", "127.0.0.1:0", "--model", "/nowhere/model", "--set", "log.level=off"];
    for key in ["auth.keys_file", "fetch.files_root", "cache.redis.url_file"] {
        let file = format!("{key}=/nowhere/file");
        let message = refusal(&[&model[..], &["--set", &file]].concat());
        assert!(message.contains(&format!("`{key}`")) && message.contains("/nowhere/file"), "{message}");
    }
    let tls = ["--set", "server.tls_cert=/nowhere/file", "--set", "server.tls_key=/nowhere/key"];
    let message = refusal(&[&model[..], &tls].concat());
    assert!(message.contains("`server.tls_cert` /nowhere/file cannot be read"), "{message}");
    let list = ["embed", "--input", "/nowhere/list", "--output", "/nowhere/out", "--model", "/nowhere/model"];
    let message = refusal(&list);
    assert!(message.contains("the list /nowhere/list cannot be read"), "{message}");
}

#[test]
fn says_what_it_is_built_from() {
    let text = stdout(&sidelens(&["--version"]).output().unwrap());
    assert!(text.starts_with(concat!("sidelens ", env!("CARGO_PKG_VERSION"), "\n")), "{text}");
    for fact in ["libtorch: ", "cores", "cuda: "] {
        assert!(text.contains(fact), "{text}");
    }
}
