//! Base64 and data URIs. Where a plain decoder reads the text, the bytes must be the same.

#![no_main]

use base64::{
    Engine,
    engine::GeneralPurposeConfig,
    engine::{DecodePaddingMode, GeneralPurpose},
};
use bytes::BytesMut;
use futures_util::FutureExt;
use libfuzzer_sys::{Corpus, fuzz_target};
use sidelens::{
    config::{Config, DEFAULT_TOML},
    domain::ImageSource,
    fetch::Fetcher,
    telemetry::Metrics,
};
use std::sync::LazyLock;

static FETCHER: LazyLock<Fetcher> = LazyLock::new(|| {
    let config: Config = toml::from_str(DEFAULT_TOML).expect("the defaults are valid");
    Fetcher::new(&config.fetch, Metrics::new()).expect("a client")
});

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fuzz_target!(|text: &[u8]| -> Corpus {
    // Nothing that would be asked of a network.
    if text.contains(&b':') && !text.trim_ascii_start().to_ascii_lowercase().starts_with(b"data:") {
        return Corpus::Reject;
    }
    let source = ImageSource::Encoded(BytesMut::from(text));
    let fetched = FETCHER.fetch(source).now_or_never().expect("nothing to wait for");
    if let Ok(expected) = LENIENT.decode(text)
        && !expected.is_empty()
    {
        assert_eq!(fetched.as_deref(), Ok(&expected[..]));
    }
    Corpus::Keep
});
