//! The list of inputs: one a line, read as they are worked on. Lines are objects (`line.rs`) in a list whose name ends in
//! `.jsonl` or `.ndjson`; `.gz` behind either name is unpacked.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use blake3::{Hash, Hasher};
use flate2::bufread::MultiGzDecoder;

use super::{Shard, line::Line};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// The lines of one shard.
pub(super) struct Lines {
    reader: Box<dyn BufRead + Send>,
    is_json: bool,
    /// Whether it may break off unseen, as a pipe does when its other end dies.
    may_break_off: bool,
    max_line_bytes: usize,
    shard: Shard,
    next: u64,
    /// Of the shard's lines before the next one.
    digest: Hasher,
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
    /// The lines of `shard`; `-` is standard input, whose lines are objects if `is_json`.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn open(
        path: &Path,
        shard: Shard,
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
        let may_break_off = total.is_none();
        let (digest, buffer) = (Hasher::new(), Vec::new());
        let lines = Self { reader, is_json, may_break_off, max_line_bytes, shard, next: 0, digest, buffer };
        Ok((lines, position))
    }

    /// Passes over the lines before line `start`, and gives the digest of the shard's among them.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn skip_to(&mut self, start: u64) -> io::Result<Hash> {
        while self.advance(start)?.is_some() {}
        Ok(self.digest.finalize())
    }

    /// Reads on to the next line of the shard that is not blank, and gives its number; none at the end of the list, or
    /// when line `end` is the next one.
    fn advance(&mut self, end: u64) -> io::Result<Option<u64>> {
        while self.next < end {
            let number = self.next;
            self.next += 1;
            if !self.shard.holds(number) {
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
            if self.is_too_long() {
                self.reader.skip_until(b'\n')?;
            }
            let text = text(number, &self.buffer);
            if !text.is_empty() {
                self.digest.update(text).update(b"\n");
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    fn next_line(&mut self) -> io::Result<Option<Line>> {
        let Some(number) = self.advance(u64::MAX)? else { return Ok(None) };
        let digest = self.digest.finalize();
        if self.is_too_long() {
            let reason = format!("the line is longer than {} bytes", self.max_line_bytes);
            return Ok(Some(Line::wrong(number, reason, digest)));
        }
        let line = Line::parse(number, text(number, &self.buffer), self.is_json, digest);
        let is_whole = self.buffer.ends_with(b"\n") || (self.is_json && line.content.is_ok());
        if self.may_break_off && !is_whole {
            let reason = format!(
                "line {number} has no end, as if the list broke off; the same command goes on, given the whole list"
            );
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
        }
        Ok(Some(line))
    }

    /// Whether the buffer holds but the beginning of a line.
    fn is_too_long(&self) -> bool {
        self.buffer.len() > self.max_line_bytes && !self.buffer.ends_with(b"\n")
    }
}

/// What line `number` says.
fn text(number: u64, line: &[u8]) -> &[u8] {
    let line = line.trim_ascii();
    // What some editors begin a file with.
    if number == 0 { line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line) } else { line }
}

impl Iterator for Lines {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_line().transpose()
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
    use crate::domain::{Content, ImageSource};

    const MAX: usize = 100;
    const ANY: Hash = Hash::from_bytes([0; 32]);

    fn lines(name: &str, content: &[u8], shard: &str, start: u64) -> Vec<Line> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        let (mut lines, position) = Lines::open(&path, shard.parse().unwrap(), false, MAX).unwrap();
        lines.skip_to(start).unwrap();
        let all = lines.by_ref().collect::<io::Result<Vec<_>>>().unwrap();
        assert_eq!(position.share(), (!content.is_empty()).then_some(1.0));
        all.into_iter().map(|line| Line { digest: ANY, ..line }).collect()
    }

    fn image(number: u64, image: &str) -> Line {
        let content = Ok(Content::Image(ImageSource::Url(image.into())));
        Line { number, id: number.to_string(), image: Some(image.into()), content, digest: ANY }
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
    fn the_digest_is_that_of_the_shards_lines_so_far() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        let read = |content: &str, start| {
            fs::write(&path, content).unwrap();
            let (mut lines, _) = Lines::open(&path, "0/2".parse().unwrap(), false, MAX).unwrap();
            let skipped = lines.skip_to(start).unwrap();
            (skipped, lines.map(|line| line.unwrap().digest).collect::<Vec<_>>())
        };
        let (none, all) = read("a\nb\nc\nd\ne", 0);
        assert_eq!(read("a\nb\nc\nd\ne\n", 3), (all[1], vec![all[2]]));
        assert_eq!(read("a\nB\nc", 3), (all[1], Vec::new()), "of another shard");
        assert_ne!(none, all[0]);
        for other in ["c\nb\na\nd\ne", "a\nb\nC", "a\nb", "a"] {
            assert_ne!(read(other, 3).0, all[1], "{other}");
        }
    }

    #[test]
    fn what_has_no_size_must_not_end_within_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, content: &str, expected: Option<&str>| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            let (mut lines, _) = Lines::open(&path, Shard::WHOLE, false, MAX).unwrap();
            lines.may_break_off = true;
            let failed = lines.find_map(Result::err).map(|error| error.to_string());
            assert_eq!(failed.as_deref().map(|error| &error[..22]), expected, "{content}");
        };
        check("a.txt", "a.jpg\nb.jpg\n", None);
        check("a.txt", "a.jpg\nb.j", Some("line 1 has no end, as "));
        check("a.jsonl", "{\"text\": \"a\"}", None);
        check("a.jsonl", "{\"text\": \"a", Some("line 0 has no end, as "));
    }
}
