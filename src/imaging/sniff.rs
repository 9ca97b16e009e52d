//! Tells formats apart by their first bytes; what a server or a name says about them is not asked.

use image::ImageFormat;

use super::{avif, jpeg};

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// By libjpeg.
    Jpeg,
    /// By rav1d.
    Avif,
    /// By the `image` crate.
    Other(ImageFormat, &'static str),
}

impl Format {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => jpeg::FORMAT,
            Self::Avif => avif::FORMAT,
            Self::Other(_, name) => name,
        }
    }
}

/// The format, or what the bytes look like otherwise, with an article, so that the message helps.
pub(super) fn sniff(encoded: &[u8]) -> Result<Format, &'static str> {
    if encoded.get(4..8) == Some(b"ftyp") {
        return media_file(encoded);
    }
    match image::guess_format(encoded) {
        Ok(ImageFormat::Jpeg) => Ok(Format::Jpeg),
        Ok(ImageFormat::Png) => Ok(Format::Other(ImageFormat::Png, "PNG")),
        Ok(ImageFormat::Gif) => Ok(Format::Other(ImageFormat::Gif, "GIF")),
        Ok(ImageFormat::Bmp) => Ok(Format::Other(ImageFormat::Bmp, "BMP")),
        Ok(ImageFormat::WebP) => Ok(Format::Other(ImageFormat::WebP, "WebP")),
        Ok(ImageFormat::Tiff) if encoded.get(8..10) != Some(b"CR") => {
            Ok(Format::Other(ImageFormat::Tiff, "TIFF"))
        }
        _ => Err(name_of_other(encoded)),
    }
}

/// An ISO media file is what its brands say; the first of them counts most.
fn media_file(encoded: &[u8]) -> Result<Format, &'static str> {
    let length = u32::from_be_bytes(encoded[..4].try_into().expect("four bytes")) as usize;
    let brands = encoded[..length.clamp(8, 512).min(encoded.len())][8..].chunks_exact(4);
    for brand in brands {
        match brand {
            b"avif" | b"avis" => return Ok(Format::Avif),
            b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" | b"hevm" | b"hevs" => {
                return Err("a HEIC picture, which patents keep from being read: convert it first");
            }
            b"crx " => return Err("a camera's raw file: develop it first"),
            _ => {}
        }
    }
    Err("a video or another ISO media file")
}

fn name_of_other(encoded: &[u8]) -> &'static str {
    const SIGNATURES: &[(&[u8], &str)] = &[
        (b"%PDF", "a PDF document"),
        (b"8BPS", "a Photoshop document"),
        (b"\xff\x0a", "a JPEG XL picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
        (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
        (b"\0\0\x01\0", "a Windows icon"),
        (b"II*\0\x10\0\0\0CR", "a camera's raw file: develop it first"),
        (b"FUJIFILMCCD-RAW", "a camera's raw file: develop it first"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"PK\x03\x04", "a zip archive"),
        (b"gimp xcf", "a GIMP picture"),
        (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
        (b"II+\0", "a BigTIFF picture"),
        (b"MM\0+", "a BigTIFF picture"),
    ];
    if let Some((_, name)) = SIGNATURES.iter().find(|(start, _)| encoded.starts_with(start)) {
        return name;
    }
    let head = String::from_utf8_lossy(&encoded[..encoded.len().min(1024)]).to_ascii_lowercase();
    let head = head.trim_start_matches('\u{feff}').trim_start();
    if head.starts_with('<') && head.contains("<svg") {
        "an SVG drawing: draw it as a PNG first"
    } else if head.starts_with("<!doctype html") || head.starts_with("<html") {
        "an HTML page"
    } else if head.chars().all(|c| c != '\u{fffd}' && (!c.is_control() || c.is_whitespace())) {
        "text"
    } else {
        "not a picture, or one of an unknown format"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brands_decide_about_media_files() {
        for (file, expected) in [
            (&b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"[..], Ok(Format::Avif)),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", Ok(Format::Avif)),
            (b"\0\0\0\x14ftypmif1\0\0\0\0heic", Err("HEIC")),
            (b"\0\0\0\x14ftypmif1\0\0\0\0mif1avif", Err("ISO media")),
            (b"\0\0\0\x18ftypmp42\0\0\0\0isom", Err("video")),
            (b"\xff\xff\xff\xffftyp", Err("ISO media")),
            (b"\0\0\0\0ftypavif", Err("ISO media")),
            (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", Err("raw")),
        ] {
            match (sniff(file), expected) {
                (Ok(format), Ok(expected)) => assert_eq!(format, expected),
                (Err(name), Err(words)) => assert!(name.contains(words), "{name}"),
                (other, _) => panic!("{other:?} {file:?}"),
            }
        }
    }
}
