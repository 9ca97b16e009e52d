//! Keeps the arrows between the rooms true (see the tour at the top of `src/lib.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Room by room: the rooms that it may name with `crate::`. Every room may name `domain`.
const ARROWS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("config", &[]),
    ("telemetry", &["config"]),
    ("imaging", &[]),
    ("text", &[]),
    ("fetch", &["config", "telemetry"]),
    ("cache", &["config", "telemetry"]),
    ("libtorch", &[]),
    ("model", &["config", "libtorch"]),
    ("runtime", &["config", "libtorch", "model", "telemetry"]),
    ("batch", &["config", "runtime", "telemetry"]),
    ("embedder", &["batch", "cache", "config", "fetch", "imaging", "runtime", "telemetry", "text"]),
    ("dialect", &[]),
    ("http", &["config", "dialect", "embedder", "telemetry"]),
    ("hub", &["config", "telemetry"]),
    ("bulk", &["cache", "config", "embedder", "fetch"]),
    ("app", &["config", "embedder", "fetch", "http", "hub", "imaging", "runtime", "shutdown", "telemetry"]),
    ("shutdown", &[]),
    ("load", &[]),
    (
        "cli",
        &[
            "app",
            "bulk",
            "cache",
            "config",
            "dialect",
            "hub",
            "imaging",
            "load",
            "model",
            "runtime",
            "shutdown",
            "telemetry",
            "text",
        ],
    ),
];

/// Crates that stay in one room: no other may name them.
const KEPT_IN: &[(&str, &[&str])] = &[
    ("actix_web", &["http", "app"]),
    ("actix_tls", &["http"]),
    ("tch", &["libtorch", "model", "runtime"]),
    ("reqwest", &["fetch", "hub", "load", "cli", "telemetry"]),
    ("hf_hub", &["hub"]),
    ("object_store", &["fetch"]),
    ("mozjpeg", &["imaging"]),
    ("re_rav1d", &["imaging"]),
    ("tokenizers", &["text"]),
    ("moka", &["cache"]),
    ("governor", &["http"]),
    ("redis", &["cache"]),
    ("parquet", &["cache"]),
    ("arrow_array", &["cache"]),
    ("arrow_schema", &["cache"]),
    ("opentelemetry", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
    ("opentelemetry_otlp", &["telemetry"]),
    ("tracing_opentelemetry", &["telemetry"]),
];

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("src is there") {
        let path = entry.expect("readable").path();
        match path.is_dir() {
            true => files.extend(rust_files(&path)),
            false if path.extension().is_some_and(|e| e == "rs") => files.push(path),
            false => {}
        }
    }
    files
}

/// The identifiers that follow `prefix` in code, comments left out; groups as in `crate::{a, b}` too.
fn named_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line_start in code.match_indices(prefix).map(|(at, _)| at + prefix.len()) {
        let rest = &code[line_start..];
        let ident = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match rest.strip_prefix('{') {
            None => {
                found.insert(ident(rest));
            }
            Some(group) => {
                // Top-level members of the group.
                let mut depth = 0;
                let mut at_start = true;
                for (i, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => at_start = true,
                        c if at_start && !c.is_whitespace() => {
                            found.insert(ident(&group[i..]));
                            at_start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found.remove("");
    found
}

fn rooms() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut rooms: BTreeMap<String, Vec<(PathBuf, String)>> = BTreeMap::new();
    for path in rust_files(&src) {
        let inside = path.strip_prefix(&src).expect("below src");
        let room = inside.components().next().expect("a name").as_os_str().to_string_lossy();
        let room = room.trim_end_matches(".rs").to_owned();
        if ["lib", "main"].contains(&room.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&path).expect("readable");
        let code: String = text
            .lines()
            .take_while(|line| !line.trim_start().starts_with("#[cfg(test)]"))
            .filter(|line| !line.trim_start().starts_with("//"))
            .flat_map(|line| [line, "\n"])
            .collect();
        rooms.entry(room).or_default().push((path, code));
    }
    rooms
}

#[test]
fn every_arrow_is_in_the_drawing() {
    let mut wrong = Vec::new();
    for (room, files) in rooms() {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == room) else {
            panic!("room `{room}` is not in the drawing");
        };
        for (path, code) in files {
            for target in named_after(&code, "crate::") {
                let is_room = ARROWS.iter().any(|(name, _)| *name == target);
                if is_room && target != room && target != "domain" && !allowed.contains(&target.as_str()) {
                    wrong.push(format!("{}: {room} -> {target}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that are not in the drawing:\n{}", wrong.join("\n"));
}

#[test]
fn engines_and_frameworks_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for (room, files) in rooms() {
        for (path, code) in files {
            for (name, homes) in KEPT_IN {
                let prefix = format!("{name}::");
                // `batch::` must not pass for `tch::`.
                let used = code.match_indices(&prefix).any(|(at, _)| {
                    !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                });
                if used && !homes.contains(&room.as_str()) {
                    wrong.push(format!("{}: uses {name}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "crates outside their rooms:\n{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_paths_sees_groups() {
    let code = "use crate::{config::{A, B}, domain::C,\n    fetch::Fetcher,\n}; crate::text::x()";
    let names: Vec<_> = named_after(code, "crate::").into_iter().collect();
    assert_eq!(names, ["config", "domain", "fetch", "text"]);
}
