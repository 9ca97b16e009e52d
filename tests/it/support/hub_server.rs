//! A stand-in for the hub on loopback, with one model, that misbehaves on request.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit that `main` and `v1` stand for.
pub const COMMIT: &str = "00112233445566778899aabbccddeeff00112233";
/// Opens a file of the storage for an hour, to whoever reads it.
pub const SIGNATURE: &str = "X-Amz-Signature=0123abcd";
/// What opens a gated model.
pub const TOKEN: &str = "hf_opensesame";

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Such as `GET`.
    pub method: String,
    /// From the slash on.
    pub path: String,
    /// In lower-case names.
    pub headers: BTreeMap<String, String>,
}

/// What goes wrong.
#[derive(Debug, Default, Clone)]
pub struct Faults {
    /// Files are given only to whoever has [`TOKEN`].
    pub gated: bool,
    /// Bodies end here, counted from the beginning of the file, for so many answers.
    pub cut: Option<(usize, usize)>,
    /// Bodies stop here, and the connection stays open.
    pub stall: Option<usize>,
    /// Pauses before each body.
    pub delay: Duration,
    /// `Range` is ignored.
    pub no_ranges: bool,
    /// The announced size of large files.
    pub size: Option<u64>,
    /// One byte of each large file is another.
    pub corrupt: bool,
    /// Listed, but answered 404.
    pub ghost: Option<String>,
    /// The storage answers 503.
    pub is_busy: bool,
    /// What the hub calls the commit instead.
    pub commit: Option<String>,
    /// The hub takes connections and says nothing.
    pub is_silent: bool,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<Faults>,
    asked: Mutex<Vec<Asked>>,
    address: SocketAddr,
}

/// The model `demo/clip`, known as `old/clip` before. Large files lie on another host, as on the real hub.
pub struct HubServer(Arc<State>);

impl HubServer {
    /// Serves the demo model, and `more` files beside it.
    pub fn start(more: &[(&str, &[u8])]) -> Self {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-model");
        let demo = fs::read_dir(demo).expect("readable").map(|entry| {
            let entry = entry.expect("readable");
            let name = entry.file_name().to_str().expect("UTF-8").to_owned();
            (name, fs::read(entry.path()).expect("readable"))
        });
        let more = more.iter().map(|(name, content)| (name.to_string(), content.to_vec()));
        Self::with(demo.chain(more).collect())
    }

    /// Serves these files only.
    pub fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State { files, faults: Mutex::default(), asked: Mutex::default(), address });
        let shared = state.clone();
        // Ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                // A client may leave at any byte, which some tests are about.
                thread::spawn(move || _ = answer(&state, stream));
            }
        });
        Self(state)
    }

    /// What `HF_ENDPOINT` is to be.
    pub fn url(&self) -> String {
        format!("http://{}", self.0.address)
    }

    /// Says what goes wrong from now on.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.0.faults.lock().expect("not poisoned")
    }

    /// Every request since the last call.
    pub fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.0.asked.lock().expect("not poisoned"))
    }

    /// A file's content.
    pub fn content(&self, file: &str) -> &[u8] {
        &self.0.files[file]
    }
}

fn answer(state: &State, mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut headers = BTreeMap::new();
    for line in lines.by_ref() {
        match line?.split_once(": ") {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let asked = Asked { method, path, headers };
    state.asked.lock().expect("not poisoned").push(asked.clone());
    let faults = state.faults.lock().expect("not poisoned").clone();

    if faults.is_silent {
        // Until the client leaves.
        return stream.read(&mut [0]).map(drop);
    }
    let path: Vec<_> = asked.path.split('?').next().unwrap_or_default().split('/').skip(1).collect();
    match path.as_slice() {
        ["api", "models", "old", "clip", ..] | ["old", "clip", ..] => {
            let target = asked.path.replace("old/clip", "demo/clip");
            head(&mut stream, "307 Moved", &[("location", target)], 0)
        }
        ["api", "models", "demo", "clip"] => listing(state, &faults, &mut stream),
        ["api", "models", "demo", "clip", "revision", "main" | "v1" | COMMIT] => {
            listing(state, &faults, &mut stream)
        }
        ["api", "models", "demo", "clip", "revision", _] => missing(&mut stream, "RevisionNotFound"),
        ["demo", "clip", "resolve", COMMIT, file @ ..] => {
            let file = file.join("/");
            let opened = asked.headers.get("authorization") == Some(&format!("Bearer {TOKEN}"));
            if faults.gated && !opened {
                return head(&mut stream, "401 Unauthorized", &[("x-error-code", "GatedRepo".into())], 0);
            }
            match state.files.get(&file).filter(|_| faults.ghost.as_ref() != Some(&file)) {
                None => missing(&mut stream, "EntryNotFound"),
                Some(content) if is_large(&file) => {
                    let size = faults.size.unwrap_or(content.len() as u64);
                    let etag = hex(Sha256::digest(content).as_slice());
                    // Another host than that of the hub, by its name.
                    let target =
                        format!("http://localhost:{}/storage/{file}?{SIGNATURE}", state.address.port());
                    let headers = [
                        ("location", target),
                        ("x-linked-etag", format!("\"{etag}\"")),
                        ("x-linked-size", size.to_string()),
                        ("x-repo-commit", COMMIT.into()),
                    ];
                    head(&mut stream, "302 Found", &headers, 0)
                }
                Some(content) => {
                    let mut git = format!("blob {}\0", content.len()).into_bytes();
                    git.extend(content);
                    let etag = ("etag", format!("\"{}\"", hex(Sha1::digest(git).as_slice())));
                    body(&mut stream, &asked, content, &Faults::default(), &[etag])
                }
            }
        }
        ["storage", ..] if faults.is_busy => head(&mut stream, "503 Busy", &[], 0),
        ["storage", file @ ..] => {
            let mut content = state.files[&file.join("/")].clone();
            if faults.corrupt {
                let middle = content.len() / 2;
                content[middle] ^= 1;
            }
            let sent = body(&mut stream, &asked, &content, &faults, &[("etag", "\"of-the-storage\"".into())]);
            if asked.method == "GET"
                && let Some((_, n)) = &mut state.faults.lock().expect("not poisoned").cut
            {
                *n = n.saturating_sub(1);
            }
            sent
        }
        _ => missing(&mut stream, "RepoNotFound"),
    }
}

fn is_large(file: &str) -> bool {
    [".safetensors", ".bin", ".pt", ".onnx", ".h5"].iter().any(|ending| file.ends_with(ending))
}

fn listing(state: &State, faults: &Faults, stream: &mut TcpStream) -> std::io::Result<()> {
    let siblings: Vec<_> = state.files.keys().map(|name| json!({ "rfilename": name })).collect();
    let commit = faults.commit.as_deref().unwrap_or(COMMIT);
    let listing = json!({ "_id": "1", "id": "demo/clip", "sha": commit, "siblings": siblings }).to_string();
    head(stream, "200 OK", &[("content-type", "application/json".into())], listing.len())?;
    stream.write_all(listing.as_bytes())
}

fn missing(stream: &mut TcpStream, code: &str) -> std::io::Result<()> {
    head(stream, "404 Not Found", &[("x-error-code", code.into())], 0)
}

fn body(
    stream: &mut TcpStream,
    asked: &Asked,
    content: &[u8],
    faults: &Faults,
    headers: &[(&str, String)],
) -> std::io::Result<()> {
    let range = asked.headers.get("range").filter(|_| !faults.no_ranges);
    let start = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')?.0.parse().ok());
    let mut headers = headers.to_vec();
    headers.push(("accept-ranges", "bytes".into()));
    let status = match start {
        Some(start) if start >= content.len() => return head(stream, "416 Unsatisfiable", &headers, 0),
        Some(start) => {
            let (last, len) = (content.len() - 1, content.len());
            headers.push(("content-range", format!("bytes {start}-{last}/{len}")));
            "206 Partial Content"
        }
        None => "200 OK",
    };
    let start = start.unwrap_or(0);
    head(stream, status, &headers, content.len() - start)?;
    if asked.method != "GET" {
        return Ok(());
    }
    thread::sleep(faults.delay);
    let cut = faults.cut.filter(|(_, n)| *n > 0).map(|(at, _)| at);
    let end = cut.or(faults.stall).unwrap_or(content.len()).max(start);
    stream.write_all(&content[start..end])?;
    stream.flush()?;
    if faults.stall.is_some() {
        // Until the client leaves.
        _ = stream.read(&mut [0]);
    }
    Ok(())
}

fn head(stream: &mut TcpStream, status: &str, headers: &[(&str, String)], len: usize) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {len}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{text}\r\n").as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
