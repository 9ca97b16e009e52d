//! Weights as safetensors: a header of JSON, and offsets.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sidelens::model::weights::Format;

fuzz_target!(|bytes: &[u8]| sidelens_fuzz::weights(Format::Safetensors, bytes));
