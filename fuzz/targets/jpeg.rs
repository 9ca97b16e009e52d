//! Pictures that begin as JPEG: libjpeg's errors unwind through Rust.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|encoded: &[u8]| -> Corpus { sidelens_fuzz::picture(&[(0, b"\xff\xd8\xff")], encoded) });
