//! `/health`, `/ready`, `/info`, `/v1/models` and `/metrics`: no key, and quick.

use actix_web::{
    HttpResponse, guard,
    web::{self, ServiceConfig},
};
use serde_json::{Value, json};

use super::{HttpError, HttpState, Listener, with_slash};
use crate::{
    dialect::MAX_INPUTS,
    domain::{ImageSpec, Modality, ModelSpec},
    embedder::Embedder,
};

/// Registers those of a listener.
pub(super) fn configure(app: &mut ServiceConfig, listener: Listener) {
    let wrong_method = || web::to(|| async { HttpError::WrongMethod("GET or HEAD").response() });
    let resource = |path| web::resource(with_slash(path)).default_service(wrong_method());
    // Some probes ask for the head alone; actix leaves the body out of the answer then.
    let get = || web::route().guard(guard::Any(guard::Get()).or(guard::Head()));
    app.service(resource("/health").route(get().to(health)))
        .service(resource("/ready").route(get().to(ready)));
    if listener != Listener::Main {
        app.service(resource("/metrics").route(get().to(metrics)));
    }
    if listener != Listener::Admin {
        app.service(resource("/info").route(get().to(info)))
            .service(resource("/models/{model:.+}/info").route(get().to(model_info)))
            .service(resource("/v1/models").route(get().to(list_models)));
    }
}

/// The process lives.
async fn health() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "ok"}))
}

/// Every model is warmed up and its device is there.
async fn ready(state: web::Data<HttpState>) -> HttpResponse {
    if state.models.is_ready() {
        HttpResponse::Ok().json(json!({"status": "ready"}))
    } else {
        HttpResponse::ServiceUnavailable().json(json!({"status": "not ready"}))
    }
}

/// What a caller of the default model needs for its settings.
async fn info(state: web::Data<HttpState>) -> HttpResponse {
    HttpResponse::Ok().json(describe(&state, state.models.default_model()))
}

/// The same for any model.
async fn model_info(state: web::Data<HttpState>, name: web::Path<String>) -> HttpResponse {
    match state.models.named(&name) {
        Ok(embedder) => HttpResponse::Ok().json(describe(&state, embedder)),
        Err(error) => HttpError::from(error).response(),
    }
}

/// Every model, in the shape of OpenAI's list.
async fn list_models(state: web::Data<HttpState>) -> HttpResponse {
    let list: Vec<_> = state
        .models
        .iter()
        .enumerate()
        .map(|(i, embedder)| {
            let spec = &embedder.info().spec;
            json!({
                "id": spec.name, "object": "model", "created": 0, "owned_by": "sidelens",
                "family": spec.family, "dimensions": spec.dimensions, "modalities": modalities(spec),
                "default": i == 0, "ready": embedder.is_ready(),
            })
        })
        .collect();
    HttpResponse::Ok().json(json!({"object": "list", "data": list}))
}

async fn metrics(state: web::Data<HttpState>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(state.metrics.render())
}

fn modalities(spec: &ModelSpec) -> Vec<&'static str> {
    spec.modalities().into_iter().map(Modality::as_str).collect()
}

fn describe(state: &HttpState, embedder: &Embedder) -> Value {
    let info = embedder.info();
    let config = &state.config;
    let spec = &info.spec;
    let mut body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": spec.name,
        "family": spec.family,
        "dimensions": spec.dimensions,
        "modalities": modalities(spec),
        "pooling": spec.pooling,
        "device": info.device,
        "dtype": info.dtype,
        "fingerprint": info.fingerprint.to_string(),
        "ready": embedder.is_ready(),
        "on_item_error": config.on_item_error,
        "limits": {
            "max_body_bytes": config.server.max_body_bytes,
            "max_inputs": MAX_INPUTS,
            "max_queue_items": info.max_queue_items,
            "deadline_ms": info.deadline_ms,
            "max_image_bytes": config.fetch.max_bytes,
            "max_pixels": config.image.max_pixels,
            "max_text_tokens": spec.text.as_ref().map(|text| text.max_length),
            "image_size": spec.image.as_ref().map(ImageSpec::size),
        },
    });
    if spec.image.is_some() {
        body["pictures"] = json!({"schemes": config.fetch.schemes(), "formats": config.image.formats()});
    }
    if info.is_demo {
        let note = "this is the small demo model, made for drawn pictures; \
                    for photographs start with `--model org/name`, a model of the hub, or a directory";
        body["note"] = note.into();
    }
    body
}
