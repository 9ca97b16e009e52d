//! The boxes of a file, put as zenavif-parse takes them: it is stricter than libavif about what is around a picture, and knows
//! fewer names.
//!
//! Source: ISO/IEC 14496-12, 4.2.

use std::borrow::Cow;
use std::iter;
use std::ops::Range;

/// The names of transparency and of depth in HEIF, with the zero behind them.
const HEVC_ALPHA: &[u8] = b"urn:mpeg:hevc:2015:auxid:1\0";
const HEVC_DEPTH: &[u8] = b"urn:mpeg:hevc:2015:auxid:2\0";
/// The other name of depth.
const DEPTH: &[u8] = b"urn:mpeg:mpegB:cicp:systems:auxiliary:depth\0";
/// Bytes that begin the content of some boxes: version and flags.
const FULL: usize = 4;

/// A file as zenavif-parse takes it.
pub(super) struct Mended<'a> {
    pub file: Cow<'a, [u8]>,
    /// Whether its transparency is called depth here: the crate knows HEIF's name for the latter alone.
    pub is_alpha_depth: bool,
}

/// Without what stands behind the last box, with the length of a box that reaches to the end, and with the first brand and the
/// names that the crate knows.
pub(super) fn mended(file: &[u8]) -> Mended<'_> {
    let Extent { whole, has_meta, open } = extent(file);
    let mut file = Cow::from(whole);
    if let Some((start, length)) = open {
        file.to_mut()[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }
    if !matches!(file.get(8..12), None | Some(b"avif" | b"avis")) {
        file.to_mut()[8..12].copy_from_slice(if has_meta { b"avif" } else { b"avis" });
    }
    let named = |name: &[u8]| -> Vec<usize> {
        let starts =
            properties(&file).filter(|part| part.name == *b"auxC").map(|part| part.content.start + FULL);
        starts.filter(|&at| file.get(at..).is_some_and(|rest| rest.starts_with(name))).collect()
    };
    let alphas = named(HEVC_ALPHA);
    let is_alpha_depth = !alphas.is_empty();
    if is_alpha_depth {
        // Of several that are called depth the crate reads the first.
        for at in [named(HEVC_DEPTH), named(DEPTH)].concat() {
            file.to_mut()[at] = b'x';
        }
        for at in alphas {
            file.to_mut()[at..at + HEVC_DEPTH.len()].copy_from_slice(HEVC_DEPTH);
        }
    }
    Mended { file, is_alpha_depth }
}

/// A copy without descriptions of colours of these kinds, so that the crate finds what is behind them.
pub(super) fn without_colours(file: &[u8], kinds: &[&[u8; 4]]) -> Vec<u8> {
    let is_meant = |part: &Part| {
        let kind = file.get(part.content.clone()).and_then(|content| content.first_chunk());
        part.name == *b"colr" && kind.is_some_and(|kind| kinds.contains(&kind))
    };
    let mut copy = file.to_vec();
    for Part { start, .. } in properties(file).filter(is_meant) {
        copy[start + 4..start + 8].copy_from_slice(b"free");
    }
    copy
}

/// Whether a picture's colours are multiplied by its transparency, whatever that is called.
pub(super) fn is_premultiplied(file: &[u8]) -> bool {
    let references = meta(file).and_then(|meta| inside(file, meta, b"iref"));
    references
        .is_some_and(|Range { start, end }| parts(file, start + FULL..end).any(|part| part.name == *b"prem"))
}

/// What of a file are its boxes.
struct Extent<'a> {
    whole: &'a [u8],
    has_meta: bool,
    /// The start and the length of a box that has none, because it is the last.
    open: Option<(usize, u32)>,
}

fn extent(file: &[u8]) -> Extent<'_> {
    let (mut has_meta, mut has_tracks, mut has_data) = (false, false, false);
    let (mut end, mut open) = (0, None);
    for Part { start, name, content, is_open } in parts(file, 0..file.len()) {
        has_meta |= name == *b"meta";
        has_tracks |= name == *b"moov";
        has_data |= name == *b"mdat";
        end = content.end;
        open = u32::try_from(end - start).ok().filter(|_| is_open).map(|length| (start, length));
    }
    // What lacks one of these is no picture anyway, and said to be broken by those who read it.
    let whole = if (has_meta || has_tracks) && has_data { &file[..end] } else { file };
    Extent { whole, has_meta, open }
}

/// The properties that the pictures of a file may have.
fn properties(file: &[u8]) -> impl Iterator<Item = Part> {
    let list =
        meta(file).and_then(|meta| inside(file, meta, b"iprp")).and_then(|list| inside(file, list, b"ipco"));
    parts(file, list.unwrap_or_default())
}

/// The boxes that say what is in a file.
fn meta(file: &[u8]) -> Option<Range<usize>> {
    inside(file, 0..file.len(), b"meta").map(|content| content.start + FULL..content.end)
}

/// The content of the first box of this name.
fn inside(file: &[u8], within: Range<usize>, name: &[u8; 4]) -> Option<Range<usize>> {
    parts(file, within).find(|part| part.name == *name).map(|part| part.content)
}

/// A box.
struct Part {
    start: usize,
    name: [u8; 4],
    content: Range<usize>,
    /// Whether it has no length, and reaches to the end.
    is_open: bool,
}

/// The boxes in this part of a file, one after another, as long as they are whole.
fn parts(file: &[u8], within: Range<usize>) -> impl Iterator<Item = Part> {
    let mut rest = within;
    iter::from_fn(move || {
        let bytes = file.get(rest.clone())?;
        let (short, name) = (u32::from_be_bytes(*bytes.first_chunk()?), *bytes.get(4..)?.first_chunk()?);
        let (header, length) = match short {
            0 => (8, bytes.len()),
            1 => (16, usize::try_from(u64::from_be_bytes(*bytes.get(8..)?.first_chunk()?)).ok()?),
            length => (8, length as usize),
        };
        if !(header..=bytes.len()).contains(&length) {
            return None;
        }
        let start = rest.start;
        let content = start + header..start + length;
        rest.start = content.end;
        Some(Part { start, name, content, is_open: short == 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        [&(8 + content.len() as u32).to_be_bytes()[..], name, content].concat()
    }

    fn of(brand: &[u8; 4], index: &[u8; 4]) -> Vec<u8> {
        [part(b"ftyp", &[brand, &[0; 4][..], b"avif"].concat()), part(index, b"1234"), part(b"mdat", b"data")]
            .concat()
    }

    #[test]
    fn a_file_ends_with_its_last_box() {
        let whole = of(b"avif", b"meta");
        assert!(matches!(mended(&whole).file, Cow::Borrowed(file) if file == whole));
        for trailing in
            [&b"a"[..], b"\n\n\n\n\n\n\n", b"<!-- cached by a host -->", b"\0\0\0\x07free", &[0; 5]]
        {
            let long = [&whole, trailing].concat();
            assert!(matches!(mended(&long).file, Cow::Borrowed(file) if file == whole), "{trailing:?}");
        }
        let extended = [&whole[..], b"\0\0\0\x01free\0\0\0\0\0\0\0\x12xx"].concat();
        assert_eq!(mended(&extended).file, extended);
        // Without data, what is behind may be some that is cut off.
        let hollow = [&whole[..whole.len() - 12], b"\0\0\0\x0dmdatdata"].concat();
        assert_eq!(mended(&hollow).file, hollow);
    }

    #[test]
    fn a_last_box_gets_its_length() {
        let whole = of(b"avif", b"meta");
        let mut open = whole.clone();
        let start = whole.len() - 12;
        open[start..start + 4].fill(0);
        assert_eq!(mended(&open).file, whole);
        // One of zeros.
        assert_eq!(
            mended(&[&whole[..], &[0; 20]].concat()).file,
            [&whole[..], &[0, 0, 0, 20], &[0; 16]].concat()
        );
    }

    #[test]
    fn a_first_brand_is_one_of_avif() {
        for (brand, index, expected) in
            [(b"mif1", b"meta", b"avif"), (b"msf1", b"moov", b"avis"), (b"miaf", b"meta", b"avif")]
        {
            assert_eq!(mended(&of(brand, index)).file, of(expected, index));
        }
        for brand in [b"avif", b"avis"] {
            assert_eq!(mended(&of(brand, b"meta")).file, of(brand, b"meta"));
        }
    }

    #[test]
    fn descriptions_of_colours_are_taken_out_by_their_kind() {
        let long = |name: &[u8; 4], content: &[u8]| {
            [&[0, 0, 0, 1], &name[..], &(16 + content.len() as u64).to_be_bytes(), content].concat()
        };
        let with = |[profile, coding, other]: [&[u8; 4]; 3]| {
            // Lengths are written in either form.
            let colours = [
                part(profile, b"prof1"),
                part(coding, b"nclx2"),
                long(other, b"rICC3"),
                part(b"ispe", b"prof"),
            ];
            let properties = part(b"iprp", &part(b"ipco", &colours.concat()));
            let meta = [&[0; 4][..], &part(b"hdlr", b"pict"), &properties].concat();
            [part(b"ftyp", b"avif"), part(b"meta", &meta), part(b"mdat", b"data")].concat()
        };
        let file = with([b"colr"; 3]);
        assert_eq!(without_colours(&file, &[b"prof", b"rICC"]), with([b"free", b"colr", b"free"]));
        assert_eq!(without_colours(&file, &[b"nclx"]), with([b"colr", b"free", b"colr"]));
    }

    #[test]
    fn heifs_transparency_is_called_depth() {
        let with = |names: &[&[u8]]| {
            let auxiliaries = names.iter().flat_map(|name| part(b"auxC", &[&[0; 4], *name].concat()));
            let properties = part(b"iprp", &part(b"ipco", &auxiliaries.collect::<Vec<_>>()));
            let meta = [&[0; 4][..], &part(b"hdlr", b"pict"), &properties].concat();
            [part(b"ftyp", b"avif"), part(b"meta", &meta), part(b"mdat", b"data")].concat()
        };
        let alpha: &[u8] = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0";
        for (names, expected) in [
            (&[HEVC_ALPHA][..], Some(&[HEVC_DEPTH][..])),
            (&[HEVC_DEPTH, HEVC_ALPHA], Some(&[b"xrn:mpeg:hevc:2015:auxid:2\0", HEVC_DEPTH])),
            (&[alpha], None),
            (&[DEPTH], None),
            (&[HEVC_DEPTH, alpha], None),
            (&[b"urn:mpeg:hevc:2015:auxid:11\0"], None),
        ] {
            let file = with(names);
            let Mended { file, is_alpha_depth } = mended(&file);
            assert_eq!(is_alpha_depth, expected.is_some(), "{names:?}");
            assert_eq!(file, with(expected.unwrap_or(names)), "{names:?}");
        }
    }
}
