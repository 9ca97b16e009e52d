//! Pictures that begin as TIFF, in either byte order.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|encoded: &[u8]| -> Corpus { sidelens_fuzz::picture(&[(0, b"II*\0"), (0, b"MM\0*")], encoded) });
