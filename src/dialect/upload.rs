//! Pictures uploaded as `multipart/form-data` (RFC 7578), as browsers, `curl -F` and small image services send
//! them. Not what Meilisearch sends: for those who try the service, or index by themselves.
//!
//! A part with a file name, or called `file`, is a picture; one called `text` is a text; one called `model` chooses
//! the model. Others are ignored, as unknown keys of a JSON body are.

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, stream};
use multer::{Field, Multipart};

use super::{Answer, Call, MAX_INPUTS};
use crate::domain::{EmbedError, EmbedInput, EmbedRequest, ImageSource};

/// The boundary of a form, if `content_type` says that the body is one.
pub(super) fn boundary(content_type: &str) -> Option<String> {
    multer::parse_boundary(content_type).ok()
}

/// Reads a form: each picture and each text is an input, in the order of the parts.
///
/// # Errors
/// [`EmbedError::InvalidRequest`], never showing what the form holds.
pub(super) fn parse(boundary: &str, body: BytesMut) -> Result<Call, EmbedError> {
    let whole = stream::once(async move { Ok::<Bytes, std::io::Error>(body.freeze()) });
    let form = Multipart::new(Box::pin(whole), boundary);
    // All of the body is there, so that nothing is ever waited for.
    let request = read(form).now_or_never().unwrap_or_else(|| Err("the form breaks off".into()));
    let request = request.map_err(EmbedError::InvalidRequest)?;
    Ok(Call { request, answer: Answer::Plain })
}

async fn read(mut form: Multipart<'_>) -> Result<EmbedRequest, String> {
    let (mut model, mut inputs) = (None, Vec::new());
    // The library's messages quote the form.
    while let Some(field) = form.next_field().await.map_err(|_| broken(inputs.len()))? {
        let input = match kind(&field) {
            Kind::Picture => {
                let file = field.bytes().await.map_err(|_| broken(inputs.len()))?;
                EmbedInput::image(ImageSource::Bytes(file))
            }
            Kind::Text => EmbedInput::text(field.text().await.map_err(|_| broken(inputs.len()))?),
            Kind::Model => {
                model = Some(field.text().await.map_err(|_| broken(inputs.len()))?).filter(|m| !m.is_empty());
                continue;
            }
            Kind::Other => continue,
        };
        if inputs.len() == MAX_INPUTS {
            return Err(format!("the form has more than {MAX_INPUTS} inputs; send fewer"));
        }
        inputs.push(input);
    }
    if inputs.is_empty() {
        return Err("the form has neither a `file` nor a `text`".into());
    }
    Ok(EmbedRequest { model, dimensions: None, inputs })
}

enum Kind {
    Picture,
    Text,
    Model,
    Other,
}

fn kind(field: &Field<'_>) -> Kind {
    match field.name() {
        _ if field.file_name().is_some() => Kind::Picture,
        Some("file") => Kind::Picture,
        Some("text") => Kind::Text,
        Some("model") => Kind::Model,
        _ => Kind::Other,
    }
}

fn broken(n_inputs: usize) -> String {
    format!("the form breaks off, or its framing is wrong, after {n_inputs} inputs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(parts: &[(&str, &str)]) -> BytesMut {
        let part = |(head, body): &(&str, &str)| {
            format!("--edge\r\nContent-Disposition: form-data; {head}\r\n\r\n{body}\r\n")
        };
        let parts: String = parts.iter().map(part).collect();
        format!("{parts}--edge--\r\n").as_str().into()
    }

    fn picture(file: &'static str) -> EmbedInput {
        EmbedInput::image(ImageSource::Bytes(Bytes::from_static(file.as_bytes())))
    }

    #[test]
    fn reads_pictures_and_texts_in_order() {
        let body = form(&[
            (r#"name="file"; filename="a.jpg""#, "AAA"),
            (r#"name="note""#, "ignored"),
            (r#"name="file""#, "B\r\nB"),
            (r#"name="text""#, "a red house"),
            (r#"name="anything"; filename="c.png""#, ""),
            (r#"name="model""#, "clip"),
        ]);
        let call = parse("edge", body).unwrap();
        assert_eq!(call.answer, Answer::Plain);
        assert_eq!(call.request.model.as_deref(), Some("clip"));
        let expected = [picture("AAA"), picture("B\r\nB"), EmbedInput::text("a red house"), picture("")];
        assert_eq!(call.request.inputs, expected);
    }

    #[test]
    fn refuses_what_is_no_form_without_quoting_it() {
        let cut = form(&[(r#"name="file""#, "SECRET SECRET")]);
        for body in [
            BytesMut::new(),
            "SECRET".into(),
            form(&[]),
            form(&[("name=\"note\"", "SECRET")]),
            form(&[("SECRET\0: x", "SECRET")]),
            cut[..cut.len() - 12].into(),
        ] {
            let message = parse("edge", body.clone()).unwrap_err().to_string();
            assert!(message.starts_with("the form ") && !message.contains("SECRET"), "{body:?}: {message}");
        }
    }

    #[test]
    fn counts_the_inputs() {
        let body = form(&vec![(r#"name="text""#, "a"); MAX_INPUTS]);
        assert_eq!(parse("edge", body).unwrap().request.inputs.len(), MAX_INPUTS);
        let message = parse("edge", form(&vec![(r#"name="text""#, "a"); MAX_INPUTS + 1])).unwrap_err();
        assert!(message.to_string().contains("more than 2048"), "{message}");
    }

    #[test]
    fn only_forms_have_a_boundary() {
        assert_eq!(boundary("multipart/form-data; boundary=\"a b\"").as_deref(), Some("a b"));
        for other in ["application/json", "multipart/form-data", "multipart/mixed; boundary=a", ""] {
            assert_eq!(boundary(other), None, "{other}");
        }
    }
}
