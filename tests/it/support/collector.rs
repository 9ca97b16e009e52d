//! A collector of traces on loopback.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread,
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, dev::ServerHandle, web};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message;

/// Takes what is exported by OTLP over HTTP.
pub struct Collector {
    address: SocketAddr,
    handle: ServerHandle,
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
    /// Listens on a free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let taken = Arc::<Mutex<Taken>>::default();
        let (send, receive) = std::sync::mpsc::channel();
        let data = web::Data::from(taken.clone());
        thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    App::new()
                        .app_data(data.clone())
                        .app_data(web::PayloadConfig::new(64 << 20))
                        .route("/v1/traces", web::post().to(take))
                })
                .workers(1)
                .disable_signals()
                .listen(listener)
                .expect("a listener")
                .run();
                send.send(server.handle()).expect("somebody waits");
                server.await
            })
        });
        Self { address, handle: receive.recv().expect("the server starts"), taken }
    }

    /// For `traces.endpoint`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came so far.
    pub fn taken(&self) -> Taken {
        self.taken.lock().expect("no panic").clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // The returned future only waits; the order is given already.
        drop(self.handle.stop(false));
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
