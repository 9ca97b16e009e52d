//! The one embed handler, shared by all dialects.

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse,
    body::BoxBody,
    http::header::{CONTENT_TYPE, ContentType},
    web,
};
use bytes::BytesMut;
use percent_encoding::percent_decode_str;
use tokio::time::Instant;
use tracing::Span;

use super::{HttpError, HttpState};
use crate::{
    dialect::{Call, Dialect, Reader},
    domain::EmbedError,
};

/// Larger bodies are parsed away from the event loop, where other connections wait. This one takes a quarter of
/// a millisecond; ten pictures of 55 KB are three quarters of it.
const PARSE_INLINE_BYTES: usize = 1024 * 1024;

/// Answers one embedding request.
///
/// # Cancel safety
/// actix drops this future when the caller goes away, and with it the wait for a vector and the body's room;
/// nothing is spawned that outlives it but the parsing of a large body, which ends on its own.
pub(super) async fn embed(
    dialect: &'static dyn Dialect,
    state: web::Data<HttpState>,
    request: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    match answer(dialect, &state, &request, payload).await {
        Ok(body) => HttpResponse::Ok().insert_header(ContentType::json()).body(body),
        Err(error) => error.response_in(dialect),
    }
}

async fn answer(
    dialect: &'static dyn Dialect,
    state: &HttpState,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<BoxBody, HttpError> {
    let since = Instant::now();
    let caller = state.edge.keys.get().identify(request)?;
    if !state.models.is_ready() {
        // At once, before the body: Meilisearch tries again, and its first call may block a worker of its own.
        return Err(HttpError::NotReady);
    }
    // Who is above the limit already need not send the body.
    caller.take(0, 1)?;
    let body = state.bodies.read(request, payload).await?;
    let _room = body.room;
    let types = request.headers().get_all(CONTENT_TYPE).filter_map(|value| value.to_str().ok());
    let call = parse(Reader::new(dialect, types), body.bytes).await?;
    request.extensions_mut().insert(call.request.lane());
    let n_inputs = call.request.inputs.len();
    caller.take(1, n_inputs)?;
    // The path is the clearer word: a body may carry the name that some template left in it.
    let embedder = match request.match_info().get("model") {
        Some(name) => state.models.named(&percent_decode_str(name).decode_utf8_lossy()),
        None => state.models.choose(call.request.model.as_deref()),
    }?;
    Span::current().record("sidelens.model", embedder.name()).record("sidelens.inputs", n_inputs);
    let max_bytes = call.answer.max_bytes(n_inputs, embedder.info().spec.dimensions);
    // What cannot be served waits for no room.
    embedder.check(&call.request)?;
    let place = state.answers.enter(max_bytes, since).await?;
    let response = embedder.embed(call.request, state.config.on_item_error, since).await?;
    if response.embeddings.len() != n_inputs {
        let found = response.embeddings.len();
        return Err(EmbedError::Internal(format!("{n_inputs} inputs gave {found} vectors")).into());
    }
    tracing::debug!(n_inputs, n_placeholders = response.errors.len(), "embedded");
    Ok(state.answers.body(dialect.render(&response, call.answer), place))
}

async fn parse(reader: Reader, body: BytesMut) -> Result<Call, EmbedError> {
    if body.len() <= PARSE_INLINE_BYTES {
        return reader.parse(body);
    }
    web::block(move || reader.parse(body))
        .await
        .unwrap_or_else(|_| Err(EmbedError::Internal("parsing the body was interrupted".into())))
}
