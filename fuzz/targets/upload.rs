//! Uploads: forms whose parts are divided by `--b`.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use sidelens::dialect::{MAX_INPUTS, Plain, Reader};

fuzz_target!(|body: &[u8]| {
    let reader = Reader::new(&Plain, ["multipart/form-data; boundary=b"].into_iter());
    match reader.parse(BytesMut::from(body)) {
        Ok(call) => assert!((1..=MAX_INPUTS).contains(&call.request.inputs.len())),
        Err(error) => assert!(error.to_string().starts_with("the form "), "{error}"),
    }
});
