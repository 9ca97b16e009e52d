//! What goes between a process that decodes and the one that asks it: a head in JSON and a body of bytes, each with
//! its length before it.

use std::borrow::Cow;
use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::{ImagingError, ImagingOptions};
use crate::domain::ImageSpec;

/// The most bytes of a head; they hold settings, sizes and messages.
const MAX_HEAD_BYTES: u32 = 64 << 10;

/// Said once, by a process that is ready.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready;

/// Asks for a picture; the body is the file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request<'a> {
    pub spec: Cow<'a, ImageSpec>,
    pub options: Cow<'a, ImagingOptions>,
}

/// Answers; the body is RGB8.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Response {
    /// Rows and columns.
    pub outcome: Result<[u32; 2], ImagingError>,
    /// Whether the process ends now.
    pub is_last: bool,
}

/// Writes a head and its body.
pub(super) fn send(wire: &mut impl Write, head: &impl Serialize, body: &[u8]) -> io::Result<()> {
    let head = serde_json::to_vec(head)?;
    let mut start = Vec::with_capacity(12 + head.len());
    start.extend((head.len() as u32).to_le_bytes());
    start.extend((body.len() as u64).to_le_bytes());
    start.extend(head);
    wire.write_all(&start)?;
    wire.write_all(body)
}

/// Reads a head, and how long its body is; none where the other side has closed.
pub(super) fn head<T: DeserializeOwned>(wire: &mut impl Read) -> io::Result<Option<(T, u64)>> {
    let mut length = [0; 4];
    match wire.read_exact(&mut length[..1]) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        first => first?,
    }
    wire.read_exact(&mut length[1..])?;
    let head_bytes = u32::from_le_bytes(length);
    let mut length = [0; 8];
    wire.read_exact(&mut length)?;
    if head_bytes > MAX_HEAD_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a head that is too long"));
    }
    let mut head = vec![0; head_bytes as usize];
    wire.read_exact(&mut head)?;
    Ok(Some((serde_json::from_slice(&head)?, u64::from_le_bytes(length))))
}

/// Reads a body.
pub(super) fn body(wire: &mut impl Read, bytes: u64) -> io::Result<Vec<u8>> {
    let mut body = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
    wire.read_exact(&mut body)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Interrupted before every byte.
    struct Interrupted(VecDeque<u8>, bool);

    impl Read for Interrupted {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 { Err(io::ErrorKind::Interrupted.into()) } else { self.0.read(&mut buf[..1]) }
        }
    }

    #[test]
    fn a_signal_is_no_end() {
        let mut sent = Vec::new();
        send(&mut sent, &Ready, b"file").unwrap();
        let mut wire = Interrupted(sent.into(), false);
        let (Ready, bytes) = head(&mut wire).unwrap().unwrap();
        assert_eq!(body(&mut wire, bytes).unwrap(), b"file");
        assert!(head::<Ready>(&mut wire).unwrap().is_none());
    }
}
