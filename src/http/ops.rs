//! `/health`, `/ready`, `/info` and `/metrics`: open to everybody, and quick.

use actix_web::{
    HttpResponse,
    web::{self, ServiceConfig},
};
use serde_json::{Value, json};

use super::{HttpError, HttpState, with_slash};
use crate::{
    config::ModelSource,
    dialect::MAX_INPUTS,
    domain::{ImageSpec, Modality, Resize},
};

/// Registers the four routes.
pub(super) fn configure(app: &mut ServiceConfig) {
    let wrong_method = || web::to(|| async { HttpError::WrongMethod("GET").response() });
    let resource = |path| web::resource(with_slash(path)).default_service(wrong_method());
    app.service(resource("/health").route(web::get().to(health)))
        .service(resource("/ready").route(web::get().to(ready)))
        .service(resource("/info").route(web::get().to(info)))
        .service(resource("/metrics").route(web::get().to(metrics)));
}

/// The process lives.
async fn health() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "ok"}))
}

/// The model is warmed up and its device is there.
async fn ready(state: web::Data<HttpState>) -> HttpResponse {
    if state.embedder.is_ready() {
        HttpResponse::Ok().json(json!({"status": "ready"}))
    } else {
        HttpResponse::ServiceUnavailable().json(json!({"status": "not ready"}))
    }
}

/// What a caller needs for its settings.
async fn info(state: web::Data<HttpState>) -> HttpResponse {
    HttpResponse::Ok().json(describe(&state))
}

async fn metrics(state: web::Data<HttpState>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(state.metrics.render())
}

fn describe(state: &HttpState) -> Value {
    let info = state.embedder.info();
    let config = &state.config;
    let spec = &info.spec;
    let mut modalities = Vec::new();
    if spec.text.is_some() {
        modalities.push(Modality::Text.as_str());
    }
    if spec.image.is_some() {
        modalities.push(Modality::Image.as_str());
    }
    let mut body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": spec.name,
        "family": spec.family,
        "dimensions": spec.dimensions,
        "modalities": modalities,
        "pooling": spec.pooling,
        "device": info.device,
        "dtype": info.dtype,
        "fingerprint": info.fingerprint,
        "ready": state.embedder.is_ready(),
        "on_item_error": config.on_item_error,
        "limits": {
            "max_body_bytes": config.server.max_body_bytes,
            "max_inputs": MAX_INPUTS,
            "max_queue_items": config.batch.max_queue_items,
            "deadline_ms": config.batch.deadline_ms,
            "max_image_bytes": config.fetch.max_bytes,
            "max_pixels": config.image.max_pixels,
            "max_text_tokens": spec.text.as_ref().map(|text| text.max_length),
            "image_size": spec.image.as_ref().map(input_size),
        },
    });
    if config.model.source == ModelSource::Demo {
        let note = "this is the small demo model, made for drawn pictures; \
                    for photographs start with `--model DIR`, a CLIP directory in Hugging Face layout";
        body["note"] = note.into();
    }
    body
}

/// `[height, width]` of the pictures that the model sees; `null` where the long side varies.
fn input_size(image: &ImageSpec) -> Option<[u32; 2]> {
    image.crop.or(match image.resize {
        Resize::Exact { height, width } => Some([height, width]),
        Resize::ShortestEdge(_) => None,
    })
}
