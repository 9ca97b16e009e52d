//! Pictures that begin as PNG.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|encoded: &[u8]| -> Corpus { sidelens_fuzz::picture(&[(0, b"\x89PNG\r\n\x1a\n")], encoded) });
