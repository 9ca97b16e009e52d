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
    ("runtime", &["config", "libtorch", "model"]),
    ("batch", &["config", "runtime", "telemetry"]),
    ("embedder", &["batch", "cache", "config", "fetch", "imaging", "runtime", "telemetry", "text"]),
    ("dialect", &[]),
    ("http", &["config", "dialect", "embedder", "telemetry"]),
    ("hub", &["config"]),
    ("bulk", &["cache", "config", "embedder", "fetch"]),
    ("app", &["config", "embedder", "fetch", "http", "hub", "imaging", "runtime", "telemetry"]),
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
    ("actix_http", &["http"]),
    ("actix_server", &["http"]),
    ("actix_service", &["http"]),
    ("actix_tls", &["http"]),
    ("actix_web", &["http"]),
    ("tracing_actix_web", &["http"]),
    ("governor", &["http"]),
    ("multer", &["dialect"]),
    ("tch", &["libtorch", "model", "runtime"]),
    ("reqwest", &["fetch", "hub", "load", "cli", "telemetry"]),
    ("hf_hub", &["hub"]),
    ("object_store", &["fetch"]),
    ("mozjpeg", &["imaging"]),
    ("zune_jpeg", &["imaging"]),
    ("tiff", &["imaging"]),
    ("re_rav1d", &["imaging"]),
    ("zenavif_parse", &["imaging"]),
    ("moxcms", &["imaging"]),
    ("tokenizers", &["text"]),
    ("prost", &["text"]),
    ("safetensors", &["model"]),
    ("zip", &["model"]),
    ("moka", &["cache"]),
    ("redis", &["cache"]),
    ("parquet", &["cache"]),
    ("arrow_array", &["cache"]),
    ("arrow_schema", &["cache"]),
    ("opentelemetry", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
    ("opentelemetry_http", &["telemetry"]),
    ("opentelemetry_otlp", &["telemetry"]),
    ("tracing_opentelemetry", &["telemetry"]),
    ("tracing_subscriber", &["telemetry"]),
    ("figment", &["config"]),
    ("clap", &["cli"]),
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

/// Whether `code` names a crate: `batch::` must not pass for `tch::`.
fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(&format!("{name}::"))
        .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
}

/// Whether a line says that what follows it is for tests alone.
fn is_for_tests(line: &str) -> bool {
    let line = line.trim_start();
    let has_test = |list: &str| list.split([',', ')']).any(|condition| condition.trim() == "test");
    line.starts_with("#[cfg(test)]") || line.strip_prefix("#[cfg(all(").is_some_and(has_test)
}

/// Without comments, and without the items that are for tests alone. An item ends as rustfmt has it: on its first line, or
/// with the next brace or semicolon that stands as far to the left as that.
fn without_tests(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    while let Some(line) = lines.next() {
        if !is_for_tests(line) {
            code.extend([line, "\n"]);
            continue;
        }
        let indent = |line: &str| line.len() - line.trim_start().len();
        let mut item = lines.by_ref().skip_while(|line| line.trim_start().starts_with("#["));
        let first = item.next().unwrap_or_default();
        if !first.ends_with([';', '}']) {
            let is_last = |line: &&str| {
                indent(line) == indent(first) && (line.trim_start().starts_with('}') || line.ends_with(';'))
            };
            item.find(is_last);
        }
    }
    code
}

/// Whether a file is for tests alone, by its name.
fn is_test_file(path: &Path) -> bool {
    let stem = path.file_stem().expect("a name").to_string_lossy();
    stem == "tests" || stem.ends_with("_tests") || stem.starts_with("test_")
}

fn rooms() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut rooms: BTreeMap<String, Vec<(PathBuf, String)>> = BTreeMap::new();
    for path in rust_files(&src) {
        let inside = path.strip_prefix(&src).expect("below src");
        let room = inside.components().next().expect("a name").as_os_str().to_string_lossy();
        let room = room.trim_end_matches(".rs").to_owned();
        if ["lib", "main"].contains(&room.as_str()) || is_test_file(&path) {
            continue;
        }
        let text = fs::read_to_string(&path).expect("readable");
        rooms.entry(room).or_default().push((path, without_tests(&text)));
    }
    rooms
}

#[test]
fn the_arrows_are_those_of_the_drawing() {
    let mut wrong = Vec::new();
    let mut unused: BTreeSet<_> = ARROWS
        .iter()
        .flat_map(|(room, targets)| targets.iter().map(move |target| (*room, *target)))
        .collect();
    for (room, files) in rooms() {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == room) else {
            panic!("room `{room}` is not in the drawing");
        };
        for (path, code) in files {
            for target in named_after(&code, "crate::") {
                unused.retain(|arrow| *arrow != (room.as_str(), target.as_str()));
                let is_room = ARROWS.iter().any(|(name, _)| *name == target);
                if is_room && target != room && target != "domain" && !allowed.contains(&target.as_str()) {
                    wrong.push(format!("{}: {room} -> {target}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that are not in the drawing:\n{}", wrong.join("\n"));
    assert!(unused.is_empty(), "arrows of the drawing that nobody uses: {unused:?}");
}

#[test]
fn engines_and_frameworks_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    let mut unused: BTreeSet<_> =
        KEPT_IN.iter().flat_map(|(name, homes)| homes.iter().map(move |home| (*name, *home))).collect();
    for (room, files) in rooms() {
        for (path, code) in files {
            for (name, homes) in KEPT_IN.iter().filter(|(name, _)| names_crate(&code, name)) {
                unused.retain(|home| *home != (*name, room.as_str()));
                if !homes.contains(&room.as_str()) {
                    wrong.push(format!("{}: uses {name}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "crates outside their rooms:\n{}", wrong.join("\n"));
    assert!(unused.is_empty(), "rooms that may use a crate and do not: {unused:?}");
}

#[test]
fn the_reader_of_paths_sees_groups() {
    let code = "use crate::{config::{A, B}, domain::C,\n    fetch::Fetcher,\n}; crate::text::x()";
    let names: Vec<_> = named_after(code, "crate::").into_iter().collect();
    assert_eq!(names, ["config", "domain", "fetch", "text"]);
}

#[test]
fn the_reader_of_files_skips_tests_and_nothing_else() {
    let code = without_tests(
        "#[cfg(test)]\nmod tests;\nuse crate::http::X;\n#[cfg(test)]\n#[path = \"a.rs\"]\nmod others;\n\
         impl X {\n    #[cfg(all(test, feature = \"torch\"))]\n    fn check(\n        self,\n    ) -> Y {\n        \
         crate::cli::z()\n    }\n\n    fn run() -> crate::hub::Z {}\n}\n\
         #[cfg(any(test, feature = \"torch\"))]\nuse crate::text::T;\n// crate::load\n\
         #[cfg(test)]\nuse crate::{\n    app::A,\n};\n#[cfg(test)]\nmod tests {\n    use crate::bulk;\n}\n",
    );
    let names: Vec<_> = named_after(&code, "crate::").into_iter().collect();
    assert_eq!(names, ["http", "hub", "text"], "{code}");
}
