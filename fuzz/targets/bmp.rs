//! Pictures that begin as BMP.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|encoded: &[u8]| -> Corpus { sidelens_fuzz::picture(&[(0, b"BM")], encoded) });
