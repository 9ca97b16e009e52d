//! What the targets share. A target fails by panicking; the sanitizer watches the memory.

use libfuzzer_sys::Corpus;
use sidelens::{
    domain::{Background, Decode, Filter, Icc, ImageSpec, Resize},
    imaging::{self, ImagingOptions},
    model::weights::Format,
};

/// Small, so that a run sees many pictures rather than large ones.
const MAX_PIXELS: u64 = 1 << 18;
const MAX_MEMORY_BYTES: u64 = 64 << 20;
const EDGE: u32 = 24;

/// Prepares `encoded` if it begins as one of `signatures` says, by its place. What comes out must have the size
/// that the model asked for.
pub fn picture(signatures: &[(usize, &[u8])], encoded: &[u8]) -> Corpus {
    let begins =
        |(at, signature): &(usize, &[u8])| encoded.get(*at..).is_some_and(|rest| rest.starts_with(signature));
    if !signatures.iter().any(begins) {
        return Corpus::Reject;
    }
    // Every way through, chosen by something that the fuzzer can change and a decoder does not care about.
    let way = encoded.len();
    let resize = [Resize::ShortestEdge(EDGE), Resize::Exact { height: EDGE, width: EDGE }][way % 2];
    let spec = ImageSpec {
        resize,
        crop: (way / 2).is_multiple_of(2).then_some([EDGE, EDGE]),
        filter: Filter::Bicubic,
        rescale_factor: 1.0 / 255.0,
        mean: [0.0; 3],
        std: [1.0; 3],
    };
    let options = ImagingOptions {
        decode: [Decode::Fast, Decode::Exact][way / 4 % 2],
        background: [Background::WHITE, Background::None][way / 8 % 2],
        icc: [Icc::Ignore, Icc::Srgb][way / 16 % 2],
        max_pixels: MAX_PIXELS,
        max_memory_bytes: MAX_MEMORY_BYTES,
        ..ImagingOptions::REFERENCE
    };
    if let Ok(pixels) = imaging::prepare(encoded, &spec, &options)
        && (spec.crop.is_some() || matches!(resize, Resize::Exact { .. }))
    {
        assert_eq!((pixels.height, pixels.width), (EDGE, EDGE));
    }
    Corpus::Keep
}

/// Reads `bytes` as a file of weights. Whatever is found must lie in the file.
pub fn weights(format: Format, bytes: &[u8]) {
    for layout in format.read(bytes, "fuzzed").into_iter().flatten().map(|(_, layout)| layout) {
        let entry = layout.dtype.bitsize() / 8;
        assert!(layout.bytes.start <= layout.bytes.end && layout.bytes.end <= bytes.len(), "{layout:?}");
        assert_eq!(layout.shape.len(), layout.strides.len(), "{layout:?}");
        let reach = layout.shape.iter().zip(&layout.strides).try_fold(0_i64, |reach, (n, stride)| {
            assert!(*n >= 0 && *stride >= 0, "{layout:?}");
            reach.checked_add((n - 1).max(0).checked_mul(*stride)?)
        });
        let is_empty = layout.shape.contains(&0);
        let reach = reach.expect("the last entry has a place") as usize;
        assert!(is_empty || (reach + 1) * entry <= layout.bytes.len(), "{layout:?}");
    }
}
