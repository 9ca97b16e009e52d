//! Weights as torch.save writes them: a zip with a pickle in it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sidelens::model::weights::Format;

fuzz_target!(|bytes: &[u8]| sidelens_fuzz::weights(Format::Torch, bytes));
