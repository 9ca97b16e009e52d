//! Pictures inside the request: data URIs and bare base64.
//!
//! Source: RFC 2397 for the URI, RFC 4648 for both base64 alphabets; as lenient as the forgiving
//! decoding of <https://infra.spec.whatwg.org/#forgiving-base64>, and a little more, because what
//! arrives here went through templates and other people's encoders.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use percent_encoding::percent_decode_str;

use super::FetchError;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The bytes of a data URI, of which `rest` is what follows `data:`.
pub(super) fn decode_data_uri(rest: &str, max_bytes: usize) -> Result<Bytes, FetchError> {
    let (media_type, data) = rest.split_once(',').ok_or(FetchError::DataUri)?;
    let data: Cow<'_, [u8]> = percent_decode_str(data).into();
    let is_base64 =
        media_type.rsplit_once(';').is_some_and(|(_, last)| last.trim().eq_ignore_ascii_case("base64"));
    if is_base64 {
        decode_base64(&data, max_bytes)
    } else {
        checked(Bytes::from(data.into_owned()), max_bytes)
    }
}

/// The bytes behind base64 in the standard or the URL-safe alphabet, padded or not, with ASCII
/// whitespace anywhere.
pub(super) fn decode_base64(text: &[u8], max_bytes: usize) -> Result<Bytes, FetchError> {
    let mut symbols = Vec::with_capacity(text.len());
    symbols.extend(text.iter().filter(|byte| !byte.is_ascii_whitespace()).map(|byte| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => *other,
    }));
    // Each symbol holds six bits. Checked before decoding, so that nothing is allocated for a picture
    // that is refused anyway.
    let digits = symbols.len() - symbols.iter().rev().take_while(|byte| **byte == b'=').count();
    if digits / 4 * 3 + digits % 4 * 3 / 4 > max_bytes {
        return Err(FetchError::TooLarge { host: None, limit: max_bytes });
    }
    let bytes = LENIENT.decode(symbols).map_err(|error| {
        // The error's own text would echo a byte of the payload.
        FetchError::Base64(match error {
            base64::DecodeError::InvalidByte(..) => "it holds a character outside the alphabet",
            base64::DecodeError::InvalidPadding => "its padding is wrong",
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidLastSymbol(..) => {
                "it breaks off"
            }
        })
    })?;
    checked(Bytes::from(bytes), max_bytes)
}

/// `bytes`, if there are any and not too many.
pub(super) fn checked(bytes: Bytes, max_bytes: usize) -> Result<Bytes, FetchError> {
    if bytes.is_empty() {
        Err(FetchError::Empty)
    } else if bytes.len() > max_bytes {
        Err(FetchError::TooLarge { host: None, limit: max_bytes })
    } else {
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ItemErrorKind::{self, *};

    fn check(result: Result<Bytes, FetchError>, expected: Result<&[u8], ItemErrorKind>) {
        assert_eq!(result.as_deref().map_err(FetchError::kind), expected);
    }

    #[test]
    fn reads_every_base64_in_use() {
        let bytes: &[u8] = &[0xfb, 0xff, 0xfe, 0x01];
        for text in ["+//+AQ==", "-__-AQ==", "+//+AQ", "-__-AQ", "+//+AQ=", " +//+\r\n\tAQ = =\n", "-/_+AR"] {
            check(decode_base64(text.as_bytes(), 4), Ok(bytes));
        }
    }

    #[test]
    fn refuses_what_is_not_base64() {
        for text in ["A", "AAAAA", "AA=A", "A===", "====", "not a picture!", "<svg/>", "caf\u{e9}"] {
            check(decode_base64(text.as_bytes(), 100), Err(InvalidBase64));
        }
        for text in ["", "  \n"] {
            check(decode_base64(text.as_bytes(), 100), Err(EmptyImage));
        }
    }

    #[test]
    fn messages_do_not_echo_the_payload() {
        let error = decode_base64(b"c2VjcmV0!", 100).unwrap_err().to_string();
        assert!(error.ends_with("it holds a character outside the alphabet"), "{error}");
    }

    #[test]
    fn counts_decoded_bytes_against_the_cap() {
        for (text, n_bytes) in [("AAAA", 3), ("AAAAAA==", 4), ("AAAAAA", 4), ("AAAAAAA=", 5), ("A A\nAA", 3)]
        {
            check(decode_base64(text.as_bytes(), n_bytes), Ok(&[0; 8][..n_bytes]));
            check(decode_base64(text.as_bytes(), n_bytes - 1), Err(TooLarge));
        }
        check(decode_data_uri(",abc", 2), Err(TooLarge));
    }

    #[test]
    fn reads_data_uris() {
        for (rest, expected) in [
            ("image/png;base64,YWJj", Ok(&b"abc"[..])),
            ("image/png;name=a.png;BASE64,YWJj", Ok(b"abc")),
            ("image/png; base64,YWJj", Ok(b"abc")),
            (";base64,YWJj", Ok(b"abc")),
            ("image/png;base64,%59WJj", Ok(b"abc")),
            ("image/png;base64,-_%2D%2F", Ok(&[0xfb, 0xff, 0xbf])),
            (",a%62c", Ok(b"abc")),
            ("text/plain,a,b", Ok(b"a,b")),
            ("base64,YWJj", Ok(b"YWJj")),
            ("image/png;base64,", Err(EmptyImage)),
            (",", Err(EmptyImage)),
            ("", Err(InvalidBase64)),
            ("image/png;base64", Err(InvalidBase64)),
            ("image/png;base64,A", Err(InvalidBase64)),
        ] {
            check(decode_data_uri(rest, 100), expected);
        }
    }
}
