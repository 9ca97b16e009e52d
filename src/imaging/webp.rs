//! What the chunks of a WebP say beside its pixels, and what a lossless one may take, of which its header says nothing.
//!
//! That one may name 65,536 groups of Huffman codes, used or not, and the decoder makes tables of all of them: of a picture
//! of 16 pixels in six megabytes 2.4 gigabytes. Only the length of the file bounds them.
//!
//! Source: RFC 9649.

use std::borrow::Cow;

use image::metadata::Orientation;

use super::orient;

/// Flags of an extended file.
const ANIMATION: u8 = 2;
const XMP: u8 = 4;
const EXIF: u8 = 8;
const ALPHA: u8 = 16;

/// Where they are.
const FLAGS: usize = 20;

/// A flag of a frame.
const UNBLENDED: u8 = 2;

/// Bytes of tables that a byte of the file may become: a code that takes a table of 4 KiB has 84 bits at least.
const TABLES: u64 = 512;

/// Bytes for a pixel: the canvas, a frame and its planes, and what is made of these.
const PIXEL: u64 = 14;

/// Chunks begin with a name and a length, those of a frame behind the place of that frame.
const CHUNK_HEAD: usize = 8;
const FRAME_HEAD: usize = 16;

/// The most bytes that decoding takes if pixels, or their alpha, are lossless; none where they are not.
pub(super) fn most_bytes(encoded: &[u8]) -> Option<u64> {
    let file = encoded.get(12..)?;
    let lossless = longest_lossless(file).filter(|bytes| *bytes > 0)?;
    Some((TABLES * lossless as u64).saturating_add(PIXEL * pixels(file)?))
}

/// Whether its header says that it moves.
pub(super) fn is_animated(encoded: &[u8]) -> bool {
    flags(encoded).is_some_and(|flags| flags & ANIMATION != 0)
}

/// How it is to be turned.
pub(super) fn orientation(encoded: &[u8]) -> Orientation {
    let Some(flags) = flags(encoded) else { return Orientation::NoTransforms };
    let said = |flag, name: &[u8]| {
        let mut chunks = each_chunk(&encoded[12..]).filter(|_| flags & flag != 0);
        chunks.find_map(|(of_chunk, content)| (of_chunk == name).then_some(content))
    };
    orient::of(said(EXIF, b"EXIF"), said(XMP, b"XMP "))
}

/// The file with a header that says what is in it, since the image-webp crate takes its word for it, and with a first frame
/// that is not blended with the empty canvas, which the crate does less exactly than copying it.
pub(super) fn mended(encoded: &[u8]) -> Cow<'_, [u8]> {
    let Some(flags) = flags(encoded) else { return encoded.into() };
    let chunks = || each_chunk(&encoded[12..]);
    let has = |name: &[u8]| chunks().any(|(of_chunk, _)| of_chunk == name);
    let mut found = flags;
    for (flag, name) in [(EXIF, b"EXIF"), (XMP, b"XMP "), (ALPHA, b"ALPH")] {
        let is_in_frames = flag == ALPHA && flags & ANIMATION != 0;
        if !is_in_frames && !has(name) {
            found &= !flag;
        }
    }
    // The same bit of its header.
    let lossless = chunks().find(|(name, _)| name == b"VP8L");
    found |= lossless.and_then(|(_, content)| content.get(4)).map_or(0, |bits| bits & ALPHA);
    let mut mended = Cow::from(encoded);
    if found != flags {
        mended.to_mut()[FLAGS] = found;
    }
    let places = chunks().scan(12, |next, (name, content)| {
        let place = *next;
        *next += CHUNK_HEAD + content.len().next_multiple_of(2);
        Some((name, place))
    });
    let first_frame = places.filter(|_| flags & ANIMATION != 0).find(|(name, _)| name == b"ANMF");
    let how = first_frame.map(|(_, place)| place + CHUNK_HEAD + FRAME_HEAD - 1);
    if let Some(how) = how.filter(|how| encoded.get(*how).is_some_and(|how| how & UNBLENDED == 0)) {
        mended.to_mut()[how] |= UNBLENDED;
    }
    mended
}

/// What the header of an extended file says that there is.
fn flags(encoded: &[u8]) -> Option<u8> {
    (encoded.get(12..16)? == b"VP8X").then(|| encoded.get(FLAGS).copied())?
}

/// Bytes of the longest chunk that is lossless; of an animation only one is decoded.
fn longest_lossless(chunks: &[u8]) -> Option<usize> {
    let of_chunk = |(name, content): (&[u8], &[u8])| match name {
        b"VP8L" => Some(content.len()),
        b"ALPH" if content.first()? & 3 == 1 => Some(content.len()),
        b"ANMF" => longest_lossless(content.get(FRAME_HEAD..)?),
        _ => None,
    };
    each_chunk(chunks).filter_map(of_chunk).max()
}

fn each_chunk(mut rest: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (head, behind) = rest.split_at_checked(CHUNK_HEAD)?;
        let (name, length) = head.split_at(4);
        let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        let content = &behind[..length.min(behind.len())];
        // Even lengths alone, by a byte behind it.
        rest = behind.get(length.saturating_add(length % 2)..).unwrap_or_default();
        Some((name, content))
    })
}

/// Of the canvas, by the first chunk.
fn pixels(file: &[u8]) -> Option<u64> {
    let (name, content) = each_chunk(file).next()?;
    let [width, height] = match name {
        b"VP8X" => [4, 7].map(|at| content.get(at..)?.first_chunk::<3>()).map(|bytes| {
            let [a, b, c] = *bytes?;
            Some(u32::from_le_bytes([a, b, c, 0]))
        }),
        b"VP8L" => {
            let bits = u32::from_le_bytes(*content.get(1..)?.first_chunk()?);
            [Some(bits & 0x3fff), Some(bits >> 14 & 0x3fff)]
        }
        _ => return None,
    };
    Some((u64::from(width?) + 1) * (u64::from(height?) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn riff(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
        for (name, content) in chunks {
            file.extend(*name);
            file.extend((content.len() as u32).to_le_bytes());
            file.extend(*content);
            file.extend(&[0][..content.len() % 2]);
        }
        let length = file.len() as u32 - 8;
        file[4..8].copy_from_slice(&length.to_le_bytes());
        file
    }

    #[test]
    fn what_is_lossless_or_moves_is_found() {
        let canvas = [0, 0, 0, 0, 99, 0, 0, 49, 0, 0];
        let pixels = PIXEL * 100 * 50;
        let frame = [&[0; 16][..], &riff(&[(b"ALPH", &[1; 30]), (b"VP8 ", &[0; 99])])[12..]].concat();
        for (chunks, expected) in [
            (&[(b"VP8 ", &[0; 99][..])][..], None),
            (&[(b"VP8X", &canvas), (b"ALPH", &[0; 30]), (b"VP8 ", &[0; 99])], None),
            (&[(b"VP8X", &canvas), (b"ALPH", &[1; 31]), (b"VP8 ", &[0; 99])], Some(31 * TABLES + pixels)),
            (&[(b"VP8X", &canvas), (b"ICCP", &[0; 7]), (b"VP8L", &[0; 20])], Some(20 * TABLES + pixels)),
            (&[(b"VP8X", &canvas), (b"ANMF", &frame)], Some(30 * TABLES + pixels)),
        ] {
            assert_eq!(most_bytes(&riff(chunks)), expected, "{chunks:?}");
        }
        assert!(is_animated(&riff(&[(b"VP8X", &[2, 0, 0, 0, 99, 0, 0, 49, 0, 0])])));
        for still in [&riff(&[(b"VP8X", &canvas)]), &riff(&[(b"VP8L", &[0x2f; 20])])] {
            assert!(!is_animated(still));
        }
        for end in 0..40 {
            // Whatever is cut off, and lengths that lead nowhere.
            let file = riff(&[(b"VP8X", &canvas), (b"VP8L", &[0xff; 20])]);
            most_bytes(&file[..end]);
        }
        most_bytes(b"RIFF\xff\xff\xff\xffWEBPANMF\xff\xff\xff\xff\0\0\0\0");
    }
}
