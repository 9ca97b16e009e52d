//! The pickle of a checkpoint: a program for a stack machine, of which only the harmless part is run.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sidelens::model::weights::pickle;

fuzz_target!(|program: &[u8]| {
    let _ = pickle::read(program);
});
