//! Pictures and texts that no server has seen before, at the price of a few bytes each.
//!
//! A picture is a JPEG file with a comment of 12 bytes behind its start marker, which no decoder looks at and
//! which makes it another file to every cache. The start, the comment's header and the comment fill whole base64
//! groups, so only 16 characters differ between two pictures and the rest is encoded once.

use std::sync::atomic::{AtomicU64, Ordering};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use fastrand::Rng;

/// Start of image, then a comment segment of 14 bytes, its length included.
const HEAD: [u8; 6] = [0xff, 0xd8, 0xff, 0xfe, 0, 14];
const MEDIA_TYPE: &str = "data:image/jpeg;base64,";
/// Words of a product text.
const PRODUCT_WORDS: usize = 40;
/// Words of a query, beside its number.
const QUERY_WORDS: usize = 3;
const WORDS: [&str; 32] = [
    "red", "blue", "green", "black", "white", "small", "large", "light", "warm", "soft", "cotton", "leather",
    "wooden", "steel", "vintage", "modern", "shoe", "jacket", "chair", "table", "lamp", "bag", "watch",
    "house", "tree", "garden", "kitchen", "summer", "winter", "for", "with", "and",
];

/// A JPEG file, of which any number of unlike copies can be had.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Everything behind the start marker, as it is and in base64.
    rest: Bytes,
    rest_base64: Bytes,
}

impl Picture {
    /// Takes a JPEG file; `None` if it does not begin as one.
    pub fn from_jpeg(file: &[u8]) -> Option<Self> {
        let rest = file.strip_prefix(&HEAD[..2])?;
        Some(Self { rest_base64: BASE64_STANDARD.encode(rest).into(), rest: Bytes::copy_from_slice(rest) })
    }

    /// The standard picture: a photo of 640 x 480 pixels, 55 KB.
    pub fn photo() -> Self {
        Self::from_jpeg(include_bytes!("photo.jpg")).expect("it is a JPEG file")
    }
}

/// How long a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// A few words, as people search.
    Query,
    /// About 250 characters, as a product's title and description.
    Product,
}

/// An endless supply of pictures and texts, shared by all connections.
///
/// Each is named by an id. Ids count up from a number drawn at random, so that two runs against one server
/// have none in common.
#[derive(Debug)]
pub struct Inputs {
    first: u64,
    n_drawn: AtomicU64,
    n_distinct: u64,
    pictures: Vec<Picture>,
}

impl Inputs {
    /// Copies of `pictures` in turn. With `repeat`, so many distinct pictures and texts come again and again.
    ///
    /// # Panics
    /// Without a picture, or with a `repeat` of 0.
    pub fn new(pictures: Vec<Picture>, repeat: Option<u64>) -> Self {
        let n_distinct = repeat.unwrap_or(u64::MAX);
        assert!(!pictures.is_empty() && n_distinct > 0, "something must be sent");
        Self { first: fastrand::u64(..), n_drawn: AtomicU64::new(0), n_distinct, pictures }
    }

    /// How many distinct inputs come again and again, if any do.
    pub fn repeat(&self) -> Option<u64> {
        (self.n_distinct < u64::MAX).then_some(self.n_distinct)
    }

    /// The next id.
    pub(super) fn draw(&self) -> u64 {
        let n = self.n_drawn.fetch_add(1, Ordering::Relaxed) % self.n_distinct;
        self.first.wrapping_add(n)
    }

    /// A picture in base64, whose pieces follow one another.
    pub(super) fn base64(&self, id: u64) -> [Bytes; 3] {
        // The base64 of HEAD; a test holds the two together.
        [Bytes::from_static(b"/9j//gAO"), comment(id).into(), self.picture(id).rest_base64.clone()]
    }

    /// A picture as a data URI.
    pub(super) fn data_uri(&self, id: u64) -> [Bytes; 4] {
        let [head, comment, rest] = self.base64(id);
        [Bytes::from_static(MEDIA_TYPE.as_bytes()), head, comment, rest]
    }

    /// A picture as a file.
    pub(super) fn file(&self, id: u64) -> [Bytes; 3] {
        let comment = BASE64_STANDARD.decode(comment(id)).expect("hexadecimal digits are base64");
        [Bytes::from_static(&HEAD), comment.into(), self.picture(id).rest.clone()]
    }

    /// A text without characters that JSON escapes.
    pub(super) fn text(&self, id: u64, length: Length) -> String {
        let n_words = match length {
            Length::Query => QUERY_WORDS,
            Length::Product => PRODUCT_WORDS,
        };
        let mut rng = Rng::with_seed(id);
        let mut text = String::new();
        for _ in 0..n_words {
            text.push_str(rng.choice(WORDS).expect("there are words"));
            text.push(' ');
        }
        // Tells apart what the words do not: ids of one run are neighbours.
        text + &(id % 1_000_000).to_string()
    }

    fn picture(&self, id: u64) -> &Picture {
        &self.pictures[(id % self.pictures.len() as u64) as usize]
    }
}

/// Sixteen characters of base64, twelve bytes.
fn comment(id: u64) -> String {
    format!("{id:016x}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn joined(pieces: &[Bytes]) -> Vec<u8> {
        pieces.concat()
    }

    #[test]
    fn every_picture_is_another_file_of_the_same_pixels() {
        let inputs = Inputs::new(vec![Picture::photo()], None);
        let mut files = HashSet::new();
        for id in [inputs.draw(), inputs.draw(), 0, u64::MAX] {
            let file = joined(&inputs.file(id));
            assert_eq!(joined(&inputs.base64(id)), BASE64_STANDARD.encode(&file).into_bytes());
            let uri = joined(&inputs.data_uri(id));
            assert_eq!(uri.strip_prefix(MEDIA_TYPE.as_bytes()), Some(&*joined(&inputs.base64(id))));
            assert!(file[18..] == include_bytes!("photo.jpg")[2..], "the rest is the photo's");
            files.insert(file);
        }
        assert_eq!(files.len(), 4);
    }

    #[test]
    fn repeated_inputs_come_round_and_others_do_not() {
        let ids = |repeat| {
            let inputs = Inputs::new(vec![Picture::photo()], repeat);
            (0..9).map(|_| inputs.draw()).collect::<Vec<_>>()
        };
        let repeated = ids(Some(4));
        assert_eq!(repeated[..4], repeated[4..8]);
        assert_eq!(HashSet::<u64>::from_iter(repeated).len(), 4);
        assert_eq!(HashSet::<u64>::from_iter(ids(None)).len(), 9);
    }

    #[test]
    fn texts_differ_and_need_no_escape() {
        let inputs = Inputs::new(vec![Picture::photo()], None);
        for length in [Length::Query, Length::Product] {
            let texts: HashSet<_> = (0..1000).map(|_| inputs.text(inputs.draw(), length)).collect();
            assert_eq!(texts.len(), 1000);
            assert!(texts.iter().all(|text| serde_json::to_string(text).unwrap().len() == text.len() + 2));
        }
    }

    #[test]
    fn only_jpeg_files_are_taken() {
        assert!(Picture::from_jpeg(b"\x89PNG\r\n\x1a\n").is_none());
    }
}
