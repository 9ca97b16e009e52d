//! One picture from encoded bytes to the pixels of CLIP's image tower, on one core.

use std::{hint::black_box, process::Command, sync::Arc, time::Duration};

use criterion::{Criterion, Throughput};
use image::{Rgb, RgbImage};
use prometheus::IntCounter;
use sidelens::{
    domain::{Decode, Filter, ImageSpec, Resize},
    imaging::{ImagingOptions, Workers, prepare},
};

const LARGE: &[u8] = include_bytes!("../../tests/fixtures/images/photo_large.jpg");

/// Name, file.
const PICTURES: &[(&str, &[u8])] = &[
    ("jpeg 640x480, 55 KB", include_bytes!("../../src/load/photo.jpg")),
    ("jpeg 1600x1200", LARGE),
    ("png, rgba", include_bytes!("../../tests/fixtures/images/cutout_rgba.png")),
    ("webp, lossy", include_bytes!("../../tests/fixtures/images/photo_lossy.webp")),
];

/// The same, decoded here and in a process of its own.
const AVIF: &[(&str, &[u8])] = &[
    ("avif 37x23", include_bytes!("../../tests/fixtures/formats/420_full.avif")),
    ("avif 1600x1200", include_bytes!("../../tests/fixtures/formats/large.avif")),
];

/// Name, columns, rows of the photographs that are drawn.
const DRAWN: &[(&str, u32, u32)] = &[("jpeg 2000x1500", 2000, 1500), ("jpeg 4000x3000", 4000, 3000)];

/// CLIP's, 224 pixels.
pub fn clip() -> ImageSpec {
    ImageSpec {
        resize: Resize::ShortestEdge(224),
        crop: Some([224, 224]),
        filter: Filter::Bicubic,
        rescale_factor: 1.0 / 255.0,
        mean: [0.481_454_7, 0.457_827_5, 0.408_210_7],
        std: [0.268_629_5, 0.261_302_6, 0.275_777_1],
    }
}

/// The large photograph, mirrored until it fills the size: as much detail to a pixel as it has.
fn photograph(width: u32, height: u32) -> Vec<u8> {
    let mut decoder = mozjpeg::Decompress::new_mem(LARGE).and_then(|decoder| decoder.rgb()).expect("a JPEG");
    let (w, h) = (decoder.width() as u32, decoder.height() as u32);
    let tile = RgbImage::from_raw(w, h, decoder.read_scanlines().expect("readable")).expect("whole");
    let mirrored = |x: u32, n: u32| if (x / n).is_multiple_of(2) { x % n } else { n - 1 - x % n };
    let drawn: RgbImage = RgbImage::from_fn(width, height, |x, y| -> Rgb<u8> {
        *tile.get_pixel(mirrored(x, w), mirrored(y, h))
    });
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    encoder.set_fastest_defaults();
    encoder.set_size(width as usize, height as usize);
    encoder.set_quality(85.0);
    let mut encoder = encoder.start_compress(Vec::new()).expect("writes to memory");
    encoder.write_scanlines(&drawn).expect("writes to memory");
    encoder.finish().expect("writes to memory")
}

pub fn bench(criterion: &mut Criterion) {
    let spec = clip();
    let drawn: Vec<_> = DRAWN.iter().map(|&(name, w, h)| (name, photograph(w, h))).collect();
    let pictures =
        PICTURES.iter().copied().chain(drawn.iter().map(|(name, encoded)| (*name, encoded.as_slice())));
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    for (name, encoded) in pictures {
        for decode in [Decode::Fast, Decode::Exact] {
            let options = ImagingOptions { decode, ..ImagingOptions::REFERENCE };
            group.bench_function(format!("{name}, {}", decode.as_str()), |bencher| {
                bencher.iter(|| prepare(black_box(encoded), &spec, &options).expect("a readable picture"));
            });
        }
    }
    let lost = IntCounter::new("lost", "Lost.").expect("a name");
    let workers = Arc::new(Workers::new(decode_worker, Duration::from_secs(60), lost));
    for (name, encoded) in AVIF {
        for (place, workers) in [("here", None), ("worker", Some(workers.clone()))] {
            let options = ImagingOptions { workers, ..ImagingOptions::REFERENCE };
            group.bench_function(format!("{name}, {place}"), |bencher| {
                bencher.iter(|| prepare(black_box(encoded), &spec, &options).expect("a readable picture"));
            });
        }
    }
    group.finish();
}

/// The program, which decodes AVIF.
pub fn decode_worker() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidelens"));
    command.arg("decode-worker");
    command
}
