//! The list of inputs: one a line, read as they are worked on.
//!
//! A line is the address or path of a picture; in a list whose name ends in `.jsonl` or `.ndjson` it is an object with an
//! `image` or a `text`, and an `id` if the line's number is not to be it. `.gz` behind either name is unpacked.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;
use url::Url;

use super::Shard;
use crate::domain::{Content, ImageSource};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// A line of the list.
#[derive(Debug, PartialEq)]
pub(super) struct Line {
    /// From 0.
    pub number: u64,
    /// The object's `id`, or else the number.
    pub id: String,
    /// The picture as it stands in the list, but for credentials; not what is a picture itself.
    pub image: Option<String>,
    /// What is to be embedded, or what is wrong with the line.
    pub content: Result<Content, String>,
}

/// The lines of one shard.
pub(super) struct Lines {
    reader: Box<dyn BufRead + Send>,
    is_json: bool,
    max_line_bytes: usize,
    shard: Shard,
    next: u64,
    /// Lines before this one are done.
    start: u64,
    buffer: Vec<u8>,
}

/// How far a list has been read.
#[derive(Debug, Clone, Default)]
pub(super) struct Position {
    read: Arc<AtomicU64>,
    /// Bytes of the file; `None` for what has no end yet.
    pub total: Option<u64>,
}

impl Position {
    /// The share of the list that has been read, 0 to 1.
    pub fn share(&self) -> Option<f64> {
        let total = self.total.filter(|total| *total > 0)?;
        Some(self.read.load(Ordering::Relaxed) as f64 / total as f64)
    }
}

impl Lines {
    /// The lines of `shard` from line `start` on; `-` is standard input, whose lines are objects if `is_json`.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn open(
        path: &Path,
        shard: Shard,
        start: u64,
        is_json: bool,
        max_line_bytes: usize,
    ) -> io::Result<(Self, Position)> {
        let (input, total): (Box<dyn Read + Send>, _) = match path.as_os_str() == "-" {
            true => (Box::new(io::stdin()), None),
            false => {
                let file = File::open(path)?;
                let metadata = file.metadata()?;
                if metadata.is_dir() {
                    return Err(io::ErrorKind::IsADirectory.into());
                }
                // A pipe has no size.
                (Box::new(file), metadata.is_file().then_some(metadata.len()))
            }
        };
        let position = Position { read: Arc::default(), total };
        let input = BufReader::with_capacity(CHUNK_BYTES, Counted { input, read: position.read.clone() });
        let name = path.to_string_lossy().to_ascii_lowercase();
        let (reader, name): (Box<dyn BufRead + Send>, _) = match name.strip_suffix(".gz") {
            Some(name) => (Box::new(BufReader::with_capacity(CHUNK_BYTES, MultiGzDecoder::new(input))), name),
            None => (Box::new(input), name.as_str()),
        };
        let is_json = is_json || [".jsonl", ".ndjson"].iter().any(|suffix| name.ends_with(suffix));
        let buffer = Vec::new();
        Ok((Self { reader, is_json, max_line_bytes, shard, next: 0, start, buffer }, position))
    }

    /// The next line of the shard that is not blank.
    fn next_line(&mut self) -> io::Result<Option<Line>> {
        loop {
            let number = self.next;
            self.next += 1;
            if number < self.start || !self.shard.holds(number) {
                if self.reader.skip_until(b'\n')? == 0 {
                    return Ok(None);
                }
                continue;
            }
            self.buffer.clear();
            let limit = self.max_line_bytes as u64 + 1;
            if (&mut self.reader).take(limit).read_until(b'\n', &mut self.buffer)? == 0 {
                return Ok(None);
            }
            if self.buffer.len() > self.max_line_bytes && !self.buffer.ends_with(b"\n") {
                self.reader.skip_until(b'\n')?;
                let limit = self.max_line_bytes;
                return Ok(Some(Line::wrong(number, format!("the line is longer than {limit} bytes"))));
            }
            let text = self.buffer.trim_ascii();
            // What some editors begin a file with.
            let text =
                if number == 0 { text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text) } else { text };
            if !text.is_empty() {
                return Ok(Some(Line::parse(number, text, self.is_json)));
            }
        }
    }
}

impl Iterator for Lines {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_line().transpose()
    }
}

/// What an object may hold, among other things.
#[derive(Deserialize)]
struct Object {
    id: Option<Id>,
    image: Option<String>,
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(serde_json::Number),
}

impl Line {
    fn parse(number: u64, line: &[u8], is_json: bool) -> Self {
        let object = match (is_json, str::from_utf8(line)) {
            (true, _) => serde_json::from_slice(line).map_err(|error| error.to_string()),
            (false, Ok(line)) => Ok(Object { id: None, image: Some(line.into()), text: None }),
            (false, Err(_)) => Err("the line is no UTF-8".into()),
        };
        let Object { id, image, text } = match object {
            Ok(object) => object,
            Err(reason) => return Self::wrong(number, reason),
        };
        let id = match id {
            Some(Id::Text(id)) => id,
            Some(Id::Number(id)) => id.to_string(),
            None => number.to_string(),
        };
        let reference = image.as_deref().and_then(reference);
        let content = match (image, text) {
            (Some(image), None) => Ok(Content::Image(ImageSource::Url(image))),
            (None, Some(text)) => Ok(Content::Text(text)),
            (None, None) => Err("the object has neither `image` nor `text`".into()),
            (Some(_), Some(_)) => {
                Err("the object has `image` and `text`; give each a line of its own".into())
            }
        };
        Self { number, id, image: reference, content }
    }

    fn wrong(number: u64, reason: String) -> Self {
        Self { number, id: number.to_string(), image: None, content: Err(reason) }
    }
}

/// What a row may say of its picture: as in the list, so that tables can be joined, without a user's name and password.
fn reference(image: &str) -> Option<String> {
    match Url::parse(image.trim()) {
        Ok(url) if url.scheme() == "data" => None,
        Ok(mut url) if !url.username().is_empty() || url.password().is_some() => {
            // Refused only by addresses that can have neither.
            let _ = (url.set_username(""), url.set_password(None));
            Some(url.into())
        }
        // Broken, so that nobody can tell what is secret in it.
        Err(_) if image.contains("://") && image.contains('@') => None,
        _ => Some(image.to_owned()),
    }
}

struct Counted {
    input: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    const MAX: usize = 100;

    fn lines(name: &str, content: &[u8], shard: &str, start: u64) -> Vec<Line> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        let (mut lines, position) = Lines::open(&path, shard.parse().unwrap(), start, false, MAX).unwrap();
        let all = lines.by_ref().collect::<io::Result<_>>().unwrap();
        assert_eq!(position.share(), (!content.is_empty()).then_some(1.0));
        all
    }

    fn image(number: u64, image: &str) -> Line {
        let content = Ok(Content::Image(ImageSource::Url(image.into())));
        Line { number, id: number.to_string(), image: Some(image.into()), content }
    }

    #[test]
    fn plain_lines_are_pictures_and_keep_their_numbers() {
        let content = b"\xef\xbb\xbfa.jpg\r\n\n  https://h/b c.jpg?x=1#y \ns3://k/c.png";
        let all = [image(0, "a.jpg"), image(2, "https://h/b c.jpg?x=1#y"), image(3, "s3://k/c.png")];
        assert_eq!(lines("list.txt", content, "0/1", 0), all);
        assert_eq!(lines("list.txt", content, "0/1", 1), all[1..]);
        assert_eq!(lines("list.txt", content, "1/2", 0), all[2..]);
        assert_eq!(lines("list.txt", content, "0/2", 1), all[1..2]);
        assert_eq!(lines("list.txt", b"", "0/1", 0), []);
    }

    #[test]
    fn objects_name_themselves() {
        let content = concat!(
            r#"{"id": "p1", "image": "a.jpg", "more": [1]}"#,
            "\n",
            r#"{"id": 7, "text": "a house", "image": null}"#,
            "\n",
            r#"{"text": ""}"#,
        );
        let mut zipped = GzEncoder::new(Vec::new(), Compression::fast());
        zipped.write_all(content.as_bytes()).unwrap();
        let zipped = zipped.finish().unwrap();
        for (name, content) in
            [("a.jsonl", content.as_bytes()), ("a.NDJSON", content.as_bytes()), ("a.jsonl.gz", &zipped)]
        {
            let lines = lines(name, content, "0/1", 0);
            assert_eq!(lines[0], Line { id: "p1".into(), ..image(0, "a.jpg") });
            let text = |text: &str| Ok(Content::Text(text.into()));
            assert_eq!((lines[1].id.as_str(), &lines[1].content), ("7", &text("a house")));
            assert_eq!((lines[2].id.as_str(), &lines[2].content), ("2", &text("")));
        }
    }

    #[test]
    fn a_wrong_line_is_told_of_and_passed() {
        let long = "a".repeat(MAX + 1);
        let content = [b"\xff", long.as_bytes(), b"a.jpg"].join(&b'\n');
        let read = lines("list", &content, "0/1", 0);
        assert_eq!(read[0].content, Err("the line is no UTF-8".into()));
        assert_eq!(read[1].content, Err("the line is longer than 100 bytes".into()));
        assert_eq!(read[2], image(2, "a.jpg"));
        let objects = b"{\n[]\n{\"id\": 1}\n{\"image\": \"a\", \"text\": \"b\"}\n{\"text\": \"b\"}";
        let wrong = lines("list.jsonl", objects, "0/1", 0);
        assert_eq!(wrong.iter().filter(|line| line.content.is_err()).count(), 4);
        assert_eq!(wrong[2].id, "1");
    }

    #[test]
    fn no_credentials_and_no_pictures_in_references() {
        let check = |image: &str, expected: Option<&str>| assert_eq!(reference(image).as_deref(), expected);
        check("https://user:secret@h/a.jpg?size=1", Some("https://h/a.jpg?size=1"));
        check("https://h/a b.jpg?x#y", Some("https://h/a b.jpg?x#y"));
        check("https://user:secret@no host/a.jpg", None);
        check("data:image/png;base64,AAAA", None);
        check("dir/a.jpg", Some("dir/a.jpg"));
    }
}
