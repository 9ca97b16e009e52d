//! Pictures that begin as WebP.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|encoded: &[u8]| -> Corpus { sidelens_fuzz::picture(&[(8, b"WEBP")], encoded) });
