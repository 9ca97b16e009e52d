//! One picture from encoded bytes to the pixels of CLIP's image tower, on one core.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use sidelens::{
    domain::{Background, Filter, ImageSpec, Resize},
    imaging::{ImagingOptions, prepare},
};

/// Name, file.
const PICTURES: &[(&str, &[u8])] = &[
    ("jpeg 640x480, 55 KB", include_bytes!("../../src/load/photo.jpg")),
    ("jpeg, large", include_bytes!("../../tests/fixtures/images/photo_large.jpg")),
    ("png, rgba", include_bytes!("../../tests/fixtures/images/cutout_rgba.png")),
    ("webp, lossy", include_bytes!("../../tests/fixtures/images/photo_lossy.webp")),
];

/// CLIP's, 224 pixels.
pub fn clip() -> ImageSpec {
    ImageSpec {
        resize: Resize::ShortestEdge(224),
        crop: Some([224, 224]),
        filter: Filter::Bicubic,
        rescale_factor: 1.0 / 255.0,
        mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
        std: [0.268_629_54, 0.261_302_58, 0.275_777_11],
    }
}

pub fn bench(criterion: &mut Criterion) {
    let spec = clip();
    let options = ImagingOptions { background: Background::WHITE, max_pixels: 50_000_000 };
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    for (name, encoded) in PICTURES {
        group.bench_function(*name, |bencher| {
            bencher.iter(|| prepare(black_box(encoded), &spec, &options).expect("a readable picture"));
        });
    }
    group.finish();
}
