//! Pictures that begin as AVIF: a panic inside its decoder cannot be caught, so that none may be found.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|encoded: &[u8]| -> Corpus {
    sidelens_fuzz::picture(&[(4, b"ftypavif"), (4, b"ftypavis")], encoded)
});
