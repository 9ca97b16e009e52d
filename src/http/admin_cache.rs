//! `/admin/cache`: the vectors in memory as a Parquet table (GET), and the vectors of one into the cache (POST).

use std::{
    io::{self, BufWriter, Read, Write},
    pin::pin,
};

use actix_web::{HttpResponse, Resource, web};
use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt, stream};
use serde_json::json;
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{HttpError, HttpState, with_slash};
use crate::domain::EmbedError;

/// The largest table that is taken; it is put on the disk first.
const MAX_TABLE_BYTES: u64 = 16 << 30;
/// Bytes that are sent at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks between the connection and the thread that reads or writes the table.
const CHUNKS: usize = 4;

type Chunk = io::Result<Bytes>;

/// The route, below `/admin` and its rule of access.
pub(super) fn resource() -> Resource {
    let wrong_method = web::to(|| async { HttpError::WrongMethod("GET or POST").response() });
    let resource = web::resource(with_slash("/cache"));
    resource.route(web::get().to(export)).route(web::post().to(import)).default_service(wrong_method)
}

/// Sends the table as it is written: it never stands in memory whole. When that fails half-way the connection is cut,
/// so that nobody takes the half for a table.
async fn export(state: web::Data<HttpState>) -> HttpResponse {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let models = state.models.clone();
    spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(CHUNK_BYTES, Sender(sender.clone()));
        let exported = models.export_vectors(&mut out).map_err(io::Error::other);
        match exported.and_then(|vectors| out.flush().map(|()| vectors)) {
            Ok(vectors) => tracing::info!(vectors, "cache exported"),
            Err(error) => {
                tracing::warn!(%error, "cache not exported");
                // Whoever asked may be the one who went away.
                let _ = sender.blocking_send(Err(error));
            }
        }
    });
    HttpResponse::Ok().content_type("application/vnd.apache.parquet").streaming(stream_of(receiver))
}

/// Takes a table whole, or refuses it.
async fn import(state: web::Data<HttpState>, payload: web::Payload) -> HttpResponse {
    let done = async {
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let models = state.models.clone();
        let importing = spawn_blocking(move || models.import_vectors(Receiver::new(receiver)));
        forward(payload, sender).await;
        let panicked = |_| Err(EmbedError::InvalidRequest("the table cannot be read: it is damaged".into()));
        let taken = importing.await.unwrap_or_else(panicked)?;
        tracing::info!(vectors = taken.rows, dropped = taken.dropped, "cache imported");
        Ok::<_, HttpError>(taken)
    };
    match done.await {
        Ok(taken) => HttpResponse::Ok().json(json!({"imported": taken.rows, "dropped": taken.dropped})),
        Err(error) => error.response(),
    }
}

/// Gives the body to the thread that reads it, until that has had enough.
async fn forward(payload: web::Payload, sender: mpsc::Sender<Chunk>) {
    let (mut payload, mut n_bytes) = (pin!(payload), 0);
    while let Some(chunk) = payload.next().await {
        let mut chunk = chunk.map_err(io::Error::other);
        n_bytes += chunk.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if n_bytes > MAX_TABLE_BYTES {
            chunk = Err(io::Error::other(format!("it is above {MAX_TABLE_BYTES} bytes")));
        }
        let is_last = chunk.is_err();
        if sender.send(chunk).await.is_err() || is_last {
            break;
        }
    }
}

fn stream_of(mut receiver: mpsc::Receiver<Chunk>) -> impl Stream<Item = Chunk> {
    stream::poll_fn(move |context| receiver.poll_recv(context))
}

/// The writing end of a body.
struct Sender(mpsc::Sender<Chunk>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The reading end of a body.
struct Receiver {
    chunks: mpsc::Receiver<Chunk>,
    rest: Bytes,
}

impl Receiver {
    fn new(chunks: mpsc::Receiver<Chunk>) -> Self {
        Self { chunks, rest: Bytes::new() }
    }
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.rest = chunk?,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}
