//! Request bodies, in every dialect.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use sidelens::dialect::{DIALECTS, Failure, MAX_INPUTS, MAX_PARTS};

fuzz_target!(|body: &[u8]| {
    for dialect in DIALECTS {
        match dialect.parse(BytesMut::from(body)) {
            Ok(call) => {
                assert!(call.request.inputs.len() <= MAX_INPUTS);
                for input in &call.request.inputs {
                    assert!((1..=MAX_PARTS).contains(&input.parts.len()));
                    assert!(input.parts.iter().all(|part| part.weight.is_finite() && part.weight > 0.0));
                }
            }
            Err(error) => {
                assert!(dialect.render_error(&Failure::from(&error)).len() <= 2 * Failure::MAX_MESSAGE);
            }
        }
    }
});
