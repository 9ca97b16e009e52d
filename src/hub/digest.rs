//! What an etag says of a file's content.
//!
//! The hub names a large file by its sha256, and a small one as git does: the sha1 of `blob SIZE\0` and the
//! content.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// The digest of the file at `path` in the form that `etag` has, in hex; `None` for an etag that is no digest,
/// as mirrors may have.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn digest_like(etag: &str, path: &Path) -> io::Result<Option<String>> {
    if !etag.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')) {
        return Ok(None);
    }
    let mut file = File::open(path)?;
    match etag.len() {
        64 => read_into(Sha256::new(), &mut file).map(Some),
        40 => {
            let header = format!("blob {}\0", file.metadata()?.len());
            read_into(Sha1::new_with_prefix(header), &mut file).map(Some)
        }
        _ => Ok(None),
    }
}

fn read_into(mut hasher: impl Digest, file: &mut File) -> io::Result<String> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            n => hasher.update(&chunk[..n]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_form_of_the_etag() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        // `git hash-object file` and `sha256sum file`.
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        for digest in [git, sha256] {
            assert_eq!(digest_like(digest, &path).unwrap().as_deref(), Some(digest));
        }
        for other in ["", "abc", "5d41402abc4b2a76b9719d911017c592-3", &git.to_uppercase()] {
            assert_eq!(digest_like(other, &path).unwrap(), None, "{other}");
        }
    }
}
