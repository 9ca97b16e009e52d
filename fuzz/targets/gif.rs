//! Pictures that begin as GIF.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|encoded: &[u8]| -> Corpus {
    sidelens_fuzz::picture(&[(0, b"GIF87a"), (0, b"GIF89a")], encoded)
});
