//! What the image crate asks of a BMP, and Pillow does not.
//!
//! Source: Microsoft, "Bitmap Storage".

use std::borrow::Cow;

/// With the bytes that fill the last row to whole words, where only they are missing.
pub(super) fn mended(encoded: &[u8]) -> Cow<'_, [u8]> {
    match missing_padding(encoded) {
        Some(n_bytes) => [encoded, &[0; 3][..n_bytes]].concat().into(),
        None => encoded.into(),
    }
}

/// How many of those bytes are missing, and nothing else.
fn missing_padding(encoded: &[u8]) -> Option<usize> {
    const OS2_HEADER: usize = 12;
    /// `biCompression`: runs of 8 and of 4 bits, which have no rows.
    const RUNS: [usize; 2] = [1, 2];
    let short = |at: usize| Some(usize::from(u16::from_le_bytes(*encoded.get(at..)?.first_chunk()?)));
    let long = |at: usize| Some(u32::from_le_bytes(*encoded.get(at..)?.first_chunk()?));
    let (pixels, header) = (long(10)? as usize, long(14)? as usize);
    let [width, height, bits] = if header == OS2_HEADER {
        [short(18)?, short(20)?, short(24)?]
    } else if RUNS.contains(&(long(30)? as usize)) {
        return None;
    } else {
        // From the top where it is negative.
        [long(18)? as usize, (long(22)? as i32).unsigned_abs() as usize, short(28)?]
    };
    let row = width.checked_mul(bits)?.div_ceil(8);
    let whole = row.next_multiple_of(4).checked_mul(height)?.checked_add(pixels)?;
    let missing = whole.checked_sub(encoded.len())?;
    (missing > 0 && missing <= row.next_multiple_of(4) - row).then_some(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_padding_is_made_up() {
        // Two rows of three pixels of three bytes, and so three of padding.
        let file = |height: i32, compression: u32| {
            let sizes = [54, 40, 3, height as u32, 1 | 24 << 16, compression].map(u32::to_le_bytes);
            [b"BM\0\0\0\0\0\0\0\0", &sizes.concat()[..], &[0; 20], &[9; 21], &[0; 3]].concat()
        };
        for height in [2, -2] {
            let whole = file(height, 0);
            for n_missing in 0..=3 {
                assert_eq!(mended(&whole[..whole.len() - n_missing]), whole, "{n_missing}");
            }
            for kept in [&whole[..whole.len() - 4], &[&whole[..], b"trailing"].concat(), &whole[..33], b"BM"]
            {
                assert_eq!(mended(kept), kept);
            }
        }
        let runs = &file(2, 1)[..76];
        assert_eq!(mended(runs), runs);
    }
}
