//! What Pillow shows beside a GIF's first frame, where the image crate shows nothing, and what it skips before it.
//!
//! Source: CompuServe, "Graphics Interchange Format, Version 89a".

use std::borrow::Cow;

/// Of the header and the size of the canvas.
const HEADER: usize = 13;

/// Without what stands before the first frame and begins no block, which Pillow skips.
pub(super) fn mended(encoded: &[u8]) -> Cow<'_, [u8]> {
    let mut copy: Option<Vec<u8>> = None;
    let Some((_, mut rest)) = split_header(encoded) else { return encoded.into() };
    loop {
        let behind = match rest {
            [b'!', _, blocks @ ..] => behind_blocks(blocks).unwrap_or_default(),
            [] | [b'!' | b',' | b';', ..] => break,
            [_stray, behind @ ..] => {
                copy.get_or_insert_with(|| encoded[..encoded.len() - rest.len()].to_vec());
                rest = behind;
                continue;
            }
        };
        if let Some(copy) = &mut copy {
            copy.extend(&rest[..rest.len() - behind.len()]);
        }
        rest = behind;
    }
    match copy {
        Some(copy) => [&copy, rest].concat().into(),
        None => encoded.into(),
    }
}

/// The colour of the canvas beside a first frame without transparency: the first of the palette, which is what an empty
/// canvas of indices has. None where it shows the background.
///
/// Source: Pillow 12 `src/PIL/GifImagePlugin.py`, `load_prepare`.
pub(super) fn canvas(encoded: &[u8]) -> Option<[u8; 3]> {
    let (mut palette, mut rest) = split_header(encoded)?;
    let mut is_transparent = false;
    loop {
        match rest {
            // A graphic control extension, and other extensions.
            [b'!', label, blocks @ ..] => {
                if let (0xf9, Some(flags)) = (label, blocks.get(1)) {
                    is_transparent = flags & 1 != 0;
                }
                rest = behind_blocks(blocks)?;
            }
            [b',', _, _, _, _, _, _, _, _, flags, behind @ ..] => {
                if flags & 128 != 0 {
                    (palette, _) = split_palette(*flags, behind)?;
                }
                return (!is_transparent).then(|| palette.unwrap_or_default());
            }
            _ => return None,
        }
    }
}

/// The first colour of the palette of all frames, if there is one, and what is behind it.
fn split_header(encoded: &[u8]) -> Option<(Option<[u8; 3]>, &[u8])> {
    let (header, rest) = encoded.split_at_checked(HEADER)?;
    if header[10] & 128 == 0 { Some((None, rest)) } else { split_palette(header[10], rest) }
}

/// The first colour of a palette, whose length is in these flags, and what is behind it.
fn split_palette(flags: u8, rest: &[u8]) -> Option<(Option<[u8; 3]>, &[u8])> {
    let (palette, behind) = rest.split_at_checked(3 << ((flags & 7) + 1))?;
    Some((palette.first_chunk().copied(), behind))
}

/// What is behind blocks that begin with their lengths, of which the last is 0.
fn behind_blocks(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        let (&length, behind) = rest.split_first()?;
        if length == 0 {
            return Some(behind);
        }
        rest = behind.get(usize::from(length)..)?;
    }
}
