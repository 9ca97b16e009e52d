//! Pictures inside the request: data URIs and bare base64.
//!
//! Source: RFC 2397 for the URI, RFC 4648 for both base64 alphabets; as lenient as the forgiving
//! decoding of <https://infra.spec.whatwg.org/#forgiving-base64>, and a little more, because what
//! arrives here went through templates and other people's encoders.

use base64_simd::{STANDARD_NO_PAD, forgiving_decode_inplace};
use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;
use percent_encoding::percent_decode;

use super::FetchError;

/// The bytes of a data URI, of which `rest` is what follows `data:`.
pub(super) fn decode_data_uri(mut rest: BytesMut, max_bytes: usize) -> Result<Bytes, FetchError> {
    let comma = rest.iter().position(|byte| *byte == b',').ok_or(FetchError::DataUri)?;
    let is_base64 = rest[..comma]
        .rsplit(|byte| *byte == b';')
        .next()
        .is_some_and(|last| last.len() < comma && last.trim_ascii().eq_ignore_ascii_case(b"base64"));
    rest.advance(comma + 1);
    if is_base64 {
        return decode_symbols(rest, max_bytes, true);
    }
    checked(without_escapes(rest).freeze(), max_bytes)
}

/// The bytes behind base64 in the standard or the URL-safe alphabet, padded or not, with ASCII
/// whitespace anywhere. They stand where the text stood: nothing is copied.
pub(super) fn decode_base64(text: BytesMut, max_bytes: usize) -> Result<Bytes, FetchError> {
    decode_symbols(text, max_bytes, false)
}

/// With what URIs write as `%2B`, if `is_uri`.
fn decode_symbols(mut text: BytesMut, max_bytes: usize, is_uri: bool) -> Result<Bytes, FetchError> {
    // Without a branch in it the pass over what needs no tidying costs next to nothing.
    let is_odd = |byte: u8| (byte <= b' ') | matches!(byte, b'-' | b'_' | b'%');
    if text.iter().fold(false, |odd, byte| odd | is_odd(*byte)) {
        if is_uri {
            text = without_escapes(text);
        }
        tidy(&mut text);
    }
    // Each symbol holds six bits.
    let digits = text.len() - text.iter().rev().take_while(|byte| **byte == b'=').count();
    if digits / 4 * 3 + digits % 4 * 3 / 4 > max_bytes {
        return Err(FetchError::TooLarge { host: None, limit: max_bytes });
    }
    match (digits, text.len() - digits) {
        (0, 1..) | (_, 3..) => return Err(FetchError::Base64("its padding is wrong")),
        _ if digits % 4 == 1 && text[..digits].iter().all(is_symbol) => {
            return Err(FetchError::Base64("it breaks off"));
        }
        _ => text.truncate(digits),
    }
    // The errors' own text says less.
    let outside = |_| FetchError::Base64("it holds a character outside the alphabet");
    // Forgiveness is for the bits that the last symbol has too many, and costs a pass over the whole.
    let start = digits / 4 * 4;
    let (whole, last) = text.split_at_mut(start);
    let n_bytes = STANDARD_NO_PAD.decode_inplace(whole).map_err(outside)?.len();
    let n_last = forgiving_decode_inplace(last).map_err(outside)?.len();
    text.copy_within(start..start + n_last, n_bytes);
    text.truncate(n_bytes + n_last);
    checked(text.freeze(), max_bytes)
}

/// Reads `%2B` as the byte that it stands for.
fn without_escapes(text: BytesMut) -> BytesMut {
    match memchr(b'%', &text) {
        Some(_) => percent_decode(&text).collect(),
        None => text,
    }
}

fn is_symbol(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/')
}

/// Takes whitespace out, and the URL-safe alphabet to the standard one.
fn tidy(text: &mut BytesMut) {
    let mut kept = 0;
    for i in 0..text.len() {
        let byte = text[i];
        text[kept] = match byte {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        };
        kept += usize::from(!byte.is_ascii_whitespace());
    }
    text.truncate(kept);
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
            check(decode_base64(text.into(), 4), Ok(bytes));
        }
    }

    #[test]
    fn every_length_is_decoded_where_it_stood() {
        let all: Vec<u8> = (0..200).map(|i| (i * 37) as u8).collect();
        for length in 1..all.len() {
            for padding in ["", "=", "=="] {
                let text = base64_simd::STANDARD_NO_PAD.encode_to_string(&all[..length]) + padding;
                let text = BytesMut::from(text.as_bytes());
                let place = text.as_ptr();
                let bytes = decode_base64(text, length).unwrap();
                assert_eq!(bytes, all[..length]);
                assert_eq!(bytes.as_ptr(), place, "it was copied");
            }
        }
    }

    #[test]
    fn refuses_what_is_not_base64() {
        for text in ["A", "AAAAA", "AA=A", "A===", "====", "not a picture!", "<svg/>", "caf\u{e9}"] {
            check(decode_base64(text.into(), 100), Err(InvalidBase64));
        }
        for text in ["", "  \n"] {
            check(decode_base64(text.into(), 100), Err(EmptyImage));
        }
    }

    #[test]
    fn messages_do_not_echo_the_payload() {
        let error = decode_base64("c2VjcmV0!".into(), 100).unwrap_err().to_string();
        assert!(error.ends_with("it holds a character outside the alphabet"), "{error}");
    }

    #[test]
    fn counts_decoded_bytes_against_the_cap() {
        for (text, n_bytes) in [("AAAA", 3), ("AAAAAA==", 4), ("AAAAAA", 4), ("AAAAAAA=", 5), ("A A\nAA", 3)]
        {
            check(decode_base64(text.into(), n_bytes), Ok(&[0; 8][..n_bytes]));
            check(decode_base64(text.into(), n_bytes - 1), Err(TooLarge));
        }
        check(decode_data_uri(",abc".into(), 2), Err(TooLarge));
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
            check(decode_data_uri(rest.into(), 100), expected);
        }
    }
}
