//! A collector of traces on loopback.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use actix_web::{HttpRequest, HttpResponse, web};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message;

use super::actix_server::ActixServer;

/// Takes what is exported by OTLP over HTTP.
pub struct Collector {
    server: ActixServer,
    taken: Arc<Mutex<Taken>>,
}

/// What came, in its order.
#[derive(Default, Clone)]
pub struct Taken {
    /// All spans.
    pub spans: Vec<Span>,
    /// What the sender says of itself.
    pub resource: BTreeMap<String, String>,
    /// The headers of the last export.
    pub headers: BTreeMap<String, String>,
}

impl Collector {
    /// Nothing has come yet.
    pub fn start() -> Self {
        let taken = Arc::<Mutex<Taken>>::default();
        let data = web::Data::from(taken.clone());
        let server = ActixServer::start(move |config| {
            config
                .app_data(data.clone())
                .app_data(web::PayloadConfig::new(64 << 20))
                .route("/v1/traces", web::post().to(take));
        });
        Self { server, taken }
    }

    /// For `traces.endpoint`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// What came so far.
    pub fn taken(&self) -> Taken {
        self.taken.lock().expect("no panic").clone()
    }
}

async fn take(taken: web::Data<Mutex<Taken>>, request: HttpRequest, body: web::Bytes) -> HttpResponse {
    let export = ExportTraceServiceRequest::decode(body).expect("an export of traces");
    let mut taken = taken.lock().expect("no panic");
    let headers = request.headers().iter();
    taken.headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().expect("ASCII").to_owned())).collect();
    for spans in export.resource_spans {
        taken.resource = attributes(&spans.resource.expect("a resource").attributes);
        taken.spans.extend(spans.scope_spans.into_iter().flat_map(|scope| scope.spans));
    }
    HttpResponse::Ok()
        .content_type("application/x-protobuf")
        .body(ExportTraceServiceResponse::default().encode_to_vec())
}

/// Attributes by name, as text.
pub fn attributes(list: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pairs = list.iter().map(|pair| (pair.key.clone(), text(&pair.value)));
    let by_name: BTreeMap<_, _> = pairs.collect();
    assert_eq!(by_name.len(), list.len(), "an attribute comes twice: {list:?}");
    by_name
}
