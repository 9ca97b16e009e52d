//! What one picture may cost: pixels and bytes, reckoned from its header, and CPU time.
//!
//! No decoder here can be interrupted, but all of them pull their input as they go: [`Paced`] hands it out in small
//! pieces and fails once the time is over.

use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::{ImagingError, ImagingOptions};

/// Bytes that a decoder gets between two looks at the clock. Few, since little can be long work: an empty scan of a
/// progressive JPEG has some hundred bytes and goes over the whole picture.
const PIECE: usize = 4096;
/// The same where any byte may be long work.
const SMALL_PIECE: u64 = 64;

/// The limits of one picture, and when it began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub max_pixels: u64,
    pub max_memory_bytes: u64,
    timeout_ms: u64,
    began: Duration,
}

impl Limits {
    /// Begins now, on this thread.
    pub fn begin(options: &ImagingOptions) -> Self {
        let &ImagingOptions { max_pixels, max_memory_bytes, timeout_ms, .. } = options;
        Self { max_pixels, max_memory_bytes, timeout_ms, began: cpu_time() }
    }

    /// Refuses a size that a header claims.
    pub fn check_size(&self, format: &'static str, width: u64, height: u64) -> Result<(), ImagingError> {
        match width.saturating_mul(height) {
            0 => Err(ImagingError::corrupt(format, format!("its size is {width}x{height}"))),
            pixels if pixels > self.max_pixels => {
                Err(ImagingError::TooManyPixels { width, height, limit: self.max_pixels })
            }
            _ => Ok(()),
        }
    }

    /// Refuses what would take too much memory.
    pub fn check_memory(&self, format: &'static str, needed: u64) -> Result<(), ImagingError> {
        let limit = self.max_memory_bytes;
        if needed > limit { Err(ImagingError::TooMuchMemory { format, needed, limit }) } else { Ok(()) }
    }

    /// What is said where a decoder ran out of memory by itself.
    pub fn too_much_memory(&self, format: &'static str) -> ImagingError {
        let limit = self.max_memory_bytes;
        ImagingError::TooMuchMemory { format, needed: limit.saturating_add(1), limit }
    }

    /// Refuses to go on once the time is over.
    pub fn check_time(&self, format: &'static str) -> Result<(), ImagingError> {
        if self.is_over() {
            return Err(ImagingError::TooSlow { format, limit_ms: self.timeout_ms });
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        cpu_time().saturating_sub(self.began) > Duration::from_millis(self.timeout_ms)
    }
}

/// What this thread has computed so far. Unlike the time of day it does not grow while others have the core, so the
/// verdict on a picture does not depend on who else was served.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// A file that is read piece by piece, and not after the time is over.
pub(super) struct Paced<'a> {
    file: Cursor<&'a [u8]>,
    /// Where the piece begins and ends.
    piece: std::ops::Range<u64>,
    piece_bytes: u64,
    limits: Limits,
}

impl<'a> Paced<'a> {
    pub fn new(file: &'a [u8], limits: Limits) -> Self {
        Self { file: Cursor::new(file), piece: 0..0, piece_bytes: PIECE as u64, limits }
    }

    /// For a decoder to which a byte may be a millisecond's work.
    pub fn in_small_pieces(file: &'a [u8], limits: Limits) -> Self {
        Self { piece_bytes: SMALL_PIECE, ..Self::new(file, limits) }
    }

    /// For work that the file's pixels bound: all of it is one piece, since decoders are slower near a piece's end.
    pub fn in_one_piece(file: &'a [u8], limits: Limits) -> Self {
        Self { piece_bytes: file.len() as u64, ..Self::new(file, limits) }
    }
}

impl BufRead for Paced<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let position = self.file.position();
        if !self.piece.contains(&position) {
            if self.limits.is_over() {
                return Err(io::Error::other("the time is over"));
            }
            self.piece = position..position.saturating_add(self.piece_bytes);
        }
        let rest = self.file.fill_buf()?;
        let length = (self.piece.end - position) as usize;
        Ok(&rest[..rest.len().min(length)])
    }

    fn consume(&mut self, n: usize) {
        self.file.consume(n);
    }
}

impl Read for Paced<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl Seek for Paced<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        // What was read once may be read again, a thousand times: another place is another piece.
        self.piece = 0..0;
        self.file.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_until_the_time_is_over() {
        let file: Vec<u8> = (0..3 * PIECE + 7).map(|i| i as u8).collect();
        let limits = Limits::begin(&ImagingOptions::REFERENCE);
        let mut whole = Vec::new();
        Paced::new(&file, limits).read_to_end(&mut whole).unwrap();
        assert_eq!(whole, file);

        let mut reader = Paced::new(&file, limits);
        reader.read_exact(&mut [0; 10]).unwrap();
        reader.limits = Limits::begin(&ImagingOptions { timeout_ms: 0, ..ImagingOptions::REFERENCE });
        while !reader.limits.is_over() {}
        // What is left of the piece, then nothing.
        let mut rest = Vec::new();
        assert!(reader.read_to_end(&mut rest).is_err());
        assert_eq!(rest, file[10..PIECE]);
        // A piece that was read before is none of those that are read again.
        for place in [SeekFrom::Start(2), SeekFrom::End(-1)] {
            reader.seek(place).unwrap();
            assert!(reader.read(&mut [0]).is_err(), "{place:?}");
        }
    }

    #[test]
    fn limits_are_the_last_that_pass() {
        let limits = Limits::begin(&ImagingOptions {
            max_pixels: 12,
            max_memory_bytes: 100,
            ..ImagingOptions::REFERENCE
        });
        assert!(limits.check_size("PNG", 3, 4).is_ok());
        assert!(matches!(limits.check_size("PNG", 13, 1), Err(ImagingError::TooManyPixels { .. })));
        assert!(limits.check_size("PNG", u64::MAX, u64::MAX).is_err());
        assert!(matches!(limits.check_size("PNG", 0, 4), Err(ImagingError::Corrupt { .. })));
        assert!(limits.check_memory("PNG", 100).is_ok());
        assert!(limits.check_memory("PNG", 101).is_err());
    }
}
