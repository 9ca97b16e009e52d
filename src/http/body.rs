//! Bodies: read whole, bounded one by one and all together.
//!
//! One body may be a hundred megabytes and Meilisearch has 40 in flight, so memory is bounded by waiting for
//! room rather than by 413, which is final for Meilisearch. Room is taken as a body comes: what is announced and not sent
//! keeps nobody waiting.

use std::{sync::Arc, time::Duration};

use actix_web::{HttpRequest, http::header::CONTENT_LENGTH, web::Payload};
use bytes::BytesMut;
use futures_util::{FutureExt, StreamExt};
use tokio::{
    sync::Semaphore,
    task::yield_now,
    time::{Instant, timeout, timeout_at},
};

use super::{
    HttpError,
    room::{Claim, Place, Room},
    socket::Intake,
};
use crate::{
    config::{BatchConfig, ServerConfig},
    domain::EmbedError,
};

/// Room is counted in units of this many bytes.
const UNIT: usize = 1024;
/// Bodies up to this size take no room: they fit into the connection's own buffers, and a search must not
/// wait behind bulky pictures.
const SMALL: usize = 16 * 1024;
/// A body takes its room in steps of this many bytes, most take one. Smaller ones would fill the room with halves of bodies.
const STEP: usize = 1024 * 1024;
/// The share of the room that is kept, on top of it, for bodies of at most a 32nd part of the share: a search by
/// picture must not wait behind bulky ones either.
const RESERVE: u32 = 8;
const RESERVE_PARTS: u32 = 32;
/// Requests that may wait for room, above `server.max_connections` as it is by default. Each takes some 32 KB; one that is
/// refused at once may come again at once, which costs more.
const MAX_WAITING: usize = 1024;
/// For so long the room that a body will take is kept for it. At a lower pace than the one after that, even the largest
/// would be late, so others come first.
const PROMISE: Pace = Pace { pause: Duration::from_millis(500), bytes_per_s: 4 << 20 };
/// What a body without Content-Length starts with.
const FIRST_CHUNK: usize = 64 * 1024;

/// How fast something must come.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// It may stop for so long.
    pub(super) pause: Duration,
    /// 0 for any speed, but for the pauses.
    bytes_per_s: usize,
}

impl Pace {
    /// The one that callers have to keep.
    pub(super) fn of_callers(server: &ServerConfig) -> Self {
        Self {
            pause: Duration::from_millis(server.client_timeout_ms),
            bytes_per_s: server.min_body_bytes_per_s,
        }
    }

    /// When the next part is due, where `received` bytes have come since `started`, the last ones now.
    pub(super) fn due(&self, started: Instant, received: usize) -> Instant {
        let due = Instant::now() + self.pause;
        if self.bytes_per_s == 0 {
            return due;
        }
        let earned = Duration::from_secs_f64(received as f64 / self.bytes_per_s as f64);
        due.min(started + self.pause + earned)
    }
}

/// Reads bodies within the limits of the settings. Clones share the room.
#[derive(Clone)]
pub(super) struct Bodies {
    room: Room,
    reserve: Room,
    waiting: Arc<Semaphore>,
    max_bytes: usize,
    deadline_ms: u64,
    /// A caller that sends a byte now and then would hold the room of all it has sent.
    pace: Pace,
}

/// A body, and the room that it takes until this is dropped: parsed pictures are parts of the body, so keep
/// it until the answer is there.
pub(super) struct Body {
    pub(super) bytes: BytesMut,
    pub(super) room: Option<Place>,
}

impl Bodies {
    pub(super) fn new(server: &ServerConfig, batch: &BatchConfig) -> Self {
        let units = u32::try_from(server.max_inflight_body_bytes / UNIT).unwrap_or(u32::MAX).max(1);
        Self {
            room: Room::new(units, server.max_inflight_bodies),
            reserve: Room::new(units / RESERVE, usize::MAX),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            max_bytes: server.max_body_bytes,
            deadline_ms: batch.deadline_ms,
            pace: Pace::of_callers(server),
        }
    }

    /// Reads the body, waiting for room where there is too little.
    ///
    /// # Errors
    /// [`HttpError::BodyTooLarge`], before reading where Content-Length tells; [`EmbedError::Deadline`] when
    /// room or body take too long; [`HttpError::NoBodyRoom`] when too many wait for room;
    /// [`HttpError::SlowBody`] when the body stops or crawls; [`EmbedError::InvalidRequest`] when it breaks off, or goes on.
    ///
    /// # Cancel safety
    /// Dropping the future gives the room back.
    pub(super) async fn read(&self, request: &HttpRequest, payload: Payload) -> Result<Body, HttpError> {
        let length = declared_length(request);
        if length.is_some_and(|length| length > self.max_bytes) {
            return Err(HttpError::BodyTooLarge { limit: self.max_bytes });
        }
        let late = || Err(EmbedError::Deadline { deadline_ms: self.deadline_ms }.into());
        let read = self.collect(length, payload, Intake::of(request));
        timeout(Duration::from_millis(self.deadline_ms), read).await.unwrap_or_else(|_| late())
    }

    /// The first step for a body of so many bytes, or of at most as many as any may have.
    async fn enter(&self, length: Option<usize>) -> Result<Place, HttpError> {
        // A body larger than all the room waits until it is alone.
        let most = units(length.unwrap_or(self.max_bytes)).min(self.room.units());
        let claim = Claim { units: most, first: most.min(units(STEP)), is_exact: length.is_some() };
        let may_use_reserve = most <= self.room.units() / RESERVE / RESERVE_PARTS;
        let reserved = || may_use_reserve.then(|| self.reserve.try_enter(claim)).flatten();
        if let Some(place) = self.room.try_enter(claim).or_else(reserved) {
            return Ok(place);
        }
        let _turn = self.waiting.try_acquire().map_err(|_| HttpError::NoBodyRoom { waiting: MAX_WAITING })?;
        Ok(tokio::select! {
            place = self.room.enter(claim) => place,
            place = self.reserve.enter(claim), if may_use_reserve => place,
        })
    }

    async fn collect(
        &self,
        length: Option<usize>,
        mut payload: Payload,
        intake: Option<&Intake>,
    ) -> Result<Body, HttpError> {
        // What waits for room stays with its sender.
        let pause = || intake.map(Intake::pause);
        // Before the first byte where it is known to take room, so that what waits holds next to nothing here.
        let mut room = match length {
            Some(bytes) if bytes > SMALL => {
                let _paused = pause();
                Some(self.enter(length).await?)
            }
            _ => None,
        };
        let mut covered = if room.is_some() { STEP } else { SMALL };
        // With Content-Length the buffer never grows; untouched pages cost nothing.
        let mut bytes = BytesMut::with_capacity(length.unwrap_or(FIRST_CHUNK).min(self.max_bytes));
        let mut started = Instant::now();
        // To its length and no further: actix reads what has `Upgrade: websocket` to the end of the connection. For any other
        // body the end is there with the last byte.
        while length != Some(bytes.len()) {
            let due = self.pace.due(started, bytes.len());
            let promised = PROMISE.due(started, bytes.len()).min(due);
            let mut chunk = timeout_at(promised, payload.next()).await.ok();
            if chunk.is_none() {
                room.iter().for_each(Place::step_aside);
                chunk = timeout_at(due, payload.next()).await.ok();
            }
            if chunk.is_none() {
                // After a pause of the process what has come meanwhile is read first.
                yield_now().await;
                chunk = payload.next().now_or_never();
            }
            let chunk = chunk.ok_or(HttpError::SlowBody {
                received: bytes.len(),
                client_timeout_ms: self.pace.pause.as_millis() as u64,
                min_bytes_per_s: self.pace.bytes_per_s,
            })?;
            // What is read after it was due came while the process stood still. That time is not the caller's.
            started += Instant::now().saturating_duration_since(due);
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|_| {
                EmbedError::InvalidRequest(format!("the body broke off after {} bytes", bytes.len()))
            })?;
            let received = bytes.len() + chunk.len();
            // The room was asked for by this.
            if let Some(length) = length.filter(|length| received > *length) {
                let wrong = format!("the body is longer than its Content-Length of {length} bytes");
                return Err(EmbedError::InvalidRequest(wrong).into());
            }
            if received > self.max_bytes {
                return Err(HttpError::BodyTooLarge { limit: self.max_bytes });
            }
            let asked = Instant::now();
            let _paused = (received > covered).then(pause);
            while received > covered {
                match &room {
                    Some(place) => {
                        place.grow(units(STEP)).await;
                        covered += STEP;
                    }
                    None => {
                        room = Some(self.enter(length).await?);
                        covered = STEP;
                    }
                }
            }
            // The wait for room is not the caller's.
            started += asked.elapsed();
            bytes.extend_from_slice(&chunk);
        }
        // What has come short of its claim, as a body of unknown length does, gives the rest to others.
        if let Some(place) = &room {
            place.settle(units(bytes.len()));
        }
        Ok(Body { bytes, room })
    }
}

pub(super) fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

fn declared_length(request: &HttpRequest) -> Option<usize> {
    request.headers().get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use actix_web::{App, HttpResponse, test, web};

    use super::*;
    use crate::config::{Config, DEFAULT_TOML};

    fn bodies(max_body_bytes: usize, max_inflight_body_bytes: usize) -> Bodies {
        let Config { server, mut batch, .. } = toml::from_str(DEFAULT_TOML).unwrap();
        batch.deadline_ms = 200;
        Bodies::new(&ServerConfig { max_body_bytes, max_inflight_body_bytes, ..server }, &batch)
    }

    /// Answers with the length of the body.
    async fn status_and_body(bodies: Bodies, request: test::TestRequest) -> (u16, String) {
        let handler = move |request: HttpRequest, payload: Payload| {
            let bodies = bodies.clone();
            async move {
                match bodies.read(&request, payload).await {
                    Ok(body) => HttpResponse::Ok().body(body.bytes.len().to_string()),
                    Err(error) => error.response(),
                }
            }
        };
        let app = test::init_service(App::new().route("/", web::post().to(handler))).await;
        let response = test::call_service(&app, request.to_request()).await;
        let status = response.status().as_u16();
        (status, String::from_utf8(test::read_body(response).await.to_vec()).unwrap())
    }

    fn take(bodies: &Bodies, units: u32) -> Place {
        bodies.room.try_enter(Claim { units, first: units, is_exact: true }).unwrap()
    }

    fn post(bytes: usize) -> test::TestRequest {
        test::TestRequest::post().set_payload(vec![b'x'; bytes])
    }

    #[actix_web::test]
    async fn reads_up_to_the_limit_and_no_further() {
        assert_eq!(status_and_body(bodies(1000, 4096), post(1000)).await, (200, "1000".into()));
        let (status, body) = status_and_body(bodies(1000, 4096), post(1001)).await;
        assert_eq!(status, 413);
        assert!(body.contains("`server.max_body_bytes`") && body.contains("1000"), "{body}");
    }

    #[actix_web::test]
    async fn refuses_by_content_length_before_reading() {
        let request = post(5).insert_header((CONTENT_LENGTH, "1001"));
        assert_eq!(status_and_body(bodies(1000, 4096), request).await.0, 413);
    }

    #[actix_web::test]
    async fn refuses_more_than_content_length_says() {
        let request = post(300_000).insert_header((CONTENT_LENGTH, "10"));
        let (status, body) = status_and_body(bodies(1 << 20, 4096), request).await;
        assert_eq!(status, 400);
        assert!(body.contains("Content-Length") && body.contains("10"), "{body}");
    }

    #[actix_web::test]
    async fn a_body_above_all_room_passes_alone() {
        assert_eq!(status_and_body(bodies(1 << 20, 4096), post(50_000)).await.0, 200);
    }

    #[actix_web::test]
    async fn a_small_picture_does_not_wait_for_bulk() {
        let bodies = bodies(1 << 20, 1 << 24);
        let _bulk = take(&bodies, 1 << 14);
        assert_eq!(status_and_body(bodies.clone(), post(60_000)).await.0, 200);
        tokio::time::pause();
        assert_eq!(status_and_body(bodies, post(80_000)).await.0, 503);
    }

    #[actix_web::test]
    async fn a_small_picture_takes_whatever_is_free_first() {
        for is_main_first in [true, false] {
            let bodies = bodies(1 << 20, 1 << 24);
            let main = take(&bodies, 1 << 14);
            let reserve = bodies.reserve.try_enter(Claim { units: 1 << 11, first: 1 << 11, is_exact: true });
            let waits = actix_web::rt::spawn(status_and_body(bodies.clone(), post(60_000)));
            tokio::task::yield_now().await;
            let rooms = [Some(main), Some(reserve.unwrap())];
            let _other = if is_main_first { rooms.into_iter().nth(1) } else { rooms.into_iter().next() };
            assert_eq!(waits.await.unwrap().0, 200);
        }
    }

    #[actix_web::test]
    async fn not_everybody_may_wait() {
        let bodies = bodies(1 << 20, 100 * 1024);
        let _bulk = take(&bodies, 100);
        let _waiting = bodies.waiting.try_acquire_many(MAX_WAITING as u32).unwrap();
        let (status, body) = status_and_body(bodies.clone(), post(50_000)).await;
        assert_eq!(status, 503);
        assert!(body.contains("`server.max_inflight_body_bytes`"), "{body}");
    }

    #[actix_web::test]
    async fn waits_for_room_but_not_for_ever() {
        tokio::time::pause();
        let bodies = bodies(1 << 20, 100 * 1024);
        let room = take(&bodies, 90);
        assert_eq!(status_and_body(bodies.clone(), post(50_000)).await.0, 503);
        // What is small never waits.
        let small = post(100).insert_header((CONTENT_LENGTH, "100"));
        assert_eq!(status_and_body(bodies.clone(), small).await.0, 200);
        drop(room);
        assert_eq!(status_and_body(bodies, post(50_000)).await.0, 200);
    }
}
