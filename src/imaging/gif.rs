//! What Pillow shows beside a GIF's first frame, where the image crate shows nothing.
//!
//! Source: CompuServe, "Graphics Interchange Format, Version 89a".

/// The colour of the canvas beside a first frame without transparency: the first of the palette, which is what an empty
/// canvas of indices has. None where it shows the background.
///
/// Source: Pillow 12 `src/PIL/GifImagePlugin.py`, `load_prepare`.
pub(super) fn canvas(encoded: &[u8]) -> Option<[u8; 3]> {
    const HEADER: usize = 13;
    let (header, mut rest) = encoded.split_at_checked(HEADER)?;
    let (mut palette, mut is_transparent) = (None, false);
    if header[10] & 128 != 0 {
        (palette, rest) = split_palette(header[10], rest)?;
    }
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
