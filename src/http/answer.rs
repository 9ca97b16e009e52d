//! Large answers: bounded all together, as bodies are. Fourteen kilobytes of texts ask for six megabytes of vectors, and a
//! caller that takes them slowly, or not at all, has them kept for it.

use std::{
    io::{self, ErrorKind},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{
    body::{Pace, units},
    room::{Claim, Place, Room},
};
use crate::{
    config::{BatchConfig, ServerConfig},
    domain::EmbedError,
};

/// Answers up to this size take no room: those to Meilisearch, of ten vectors, are far below it.
const SMALL: usize = 1024 * 1024;
/// There is as much room as for bodies, divided by this.
const SHARE: usize = 2;
/// Bytes that are handed on at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Holds answers within the limits of the settings. Clones share the room.
#[derive(Clone)]
pub(super) struct Answers {
    room: Room,
    deadline_ms: u64,
    pace: Pace,
}

/// What is left of an answer, and the room that it takes until this is dropped.
struct Large {
    rest: Bytes,
    n_taken: usize,
    started: Instant,
    pace: Pace,
    _place: Place,
}

impl Answers {
    pub(super) fn new(server: &ServerConfig, batch: &BatchConfig) -> Self {
        let room = units(server.max_inflight_body_bytes / SHARE).max(1);
        Self {
            room: Room::new(room, usize::MAX),
            deadline_ms: batch.deadline_ms,
            pace: Pace::of_callers(server),
        }
    }

    /// Room for an answer of at most so many bytes, for which its request may wait since its head came; none for a small one.
    /// Whoever has it waits for nobody that waits for it: the request has its body already.
    ///
    /// # Errors
    /// [`EmbedError::Deadline`] when it takes too long.
    ///
    /// # Cancel safety
    /// Dropping the future gives the room back.
    pub(super) async fn enter(&self, max_bytes: usize, since: Instant) -> Result<Option<Place>, EmbedError> {
        if max_bytes <= SMALL {
            return Ok(None);
        }
        // One that is larger than all the room waits until it is alone.
        let units = units(max_bytes).min(self.room.units());
        let place = self.room.enter(Claim { units, first: units, is_exact: true });
        let due = since + Duration::from_millis(self.deadline_ms);
        let late = |_| EmbedError::Deadline { deadline_ms: self.deadline_ms };
        timeout_at(due, place).await.map(Some).map_err(late)
    }

    /// An answer with its place, which is given back when all of it is taken, or when it is taken too slowly.
    pub(super) fn body(&self, answer: Vec<u8>, place: Option<Place>) -> BoxBody {
        match place {
            None => answer.boxed(),
            Some(place) => Large {
                rest: answer.into(),
                n_taken: 0,
                started: Instant::now(),
                pace: self.pace,
                _place: place,
            }
            .boxed(),
        }
    }
}

impl MessageBody for Large {
    type Error = io::Error;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.rest.len() as u64)
    }

    /// Asked for more when the last part has been taken; who takes nothing any more is for the system to end.
    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let Self { rest, n_taken, started, pace, .. } = self.get_mut();
        if rest.is_empty() {
            return Poll::Ready(None);
        }
        if Instant::now() > pace.due(*started, *n_taken) {
            let wrong = "the answer is taken more slowly than `server.min_body_bytes_per_s`";
            return Poll::Ready(Some(Err(io::Error::new(ErrorKind::TimedOut, wrong))));
        }
        let chunk = rest.split_to(CHUNK_BYTES.min(rest.len()));
        *n_taken += chunk.len();
        Poll::Ready(Some(Ok(chunk)))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;

    use super::*;
    use crate::config::{Config, DEFAULT_TOML};

    /// With room for eight megabytes.
    fn answers() -> Answers {
        let Config { server, batch, .. } = toml::from_str(DEFAULT_TOML).unwrap();
        Answers::new(&ServerConfig { max_inflight_body_bytes: 16 << 20, ..server }, &batch)
    }

    async fn next(body: &mut BoxBody) -> Option<Result<Bytes, String>> {
        poll_fn(|context| body.as_pin_mut().poll_next(context))
            .await
            .map(|chunk| chunk.map_err(|error| error.to_string()))
    }

    #[tokio::test(start_paused = true)]
    async fn large_ones_wait_for_each_other_and_small_ones_do_not() {
        let answers = answers();
        let since = Instant::now();
        let place = answers.enter(100 << 20, since).await.unwrap();
        assert!(answers.enter(SMALL, since).await.unwrap().is_none());
        let late = answers.enter(SMALL + 1, since).await.err().unwrap();
        assert!(matches!(late, EmbedError::Deadline { .. }), "{late}");
        assert_eq!(since.elapsed().as_millis(), u128::from(answers.deadline_ms));

        let mut body = answers.body(vec![7; 3 << 20], place);
        let since = Instant::now();
        let mut waits = Box::pin(answers.enter(SMALL + 1, since));
        assert_eq!(body.size(), BodySize::Sized(3 << 20));
        let mut n = 0;
        while let Some(chunk) = next(&mut body).await {
            n += chunk.unwrap().len();
            assert!(waits.as_mut().now_or_never().is_none());
        }
        assert_eq!(n, 3 << 20);
        drop(body);
        assert!(waits.now_or_never().unwrap().unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_one_too_slowly_loses_it() {
        let answers = answers();
        let place = answers.enter(2 << 20, Instant::now()).await.unwrap();
        let mut body = answers.body(vec![7; 2 << 20], place);
        // A second for each part, as `server.min_body_bytes_per_s` is.
        for _ in 0..16 {
            assert_eq!(next(&mut body).await.unwrap().unwrap().len(), CHUNK_BYTES);
            tokio::time::advance(Duration::from_millis(1000)).await;
        }
        tokio::time::advance(Duration::from_millis(answers.pace.pause.as_millis() as u64 + 1)).await;
        assert!(next(&mut body).await.unwrap().unwrap_err().contains("min_body_bytes_per_s"));
    }
}
