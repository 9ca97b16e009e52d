//! Sidelens gives Meilisearch its own image and text vectors.
//!
//! # The life of a request
//!
//! ```text
//!  HTTP -> http -> dialect (parse) -> embedder -> fetch (URLs) -> cache (hit?) -> imaging | text -> batch -> runtime -> model
//!  vectors -> cache (fill) -> embedder (restore order) -> dialect (render) -> http -> HTTP
//! ```
//!
//! 1. [`http`] accepts the connection, checks the key, reads the body within its limits.
//! 2. [`dialect`] turns bytes into an [`EmbedRequest`](domain::EmbedRequest): one file per wire format.
//! 3. [`embedder`] finds the model, admits the whole request or refuses it, then takes each part of each input through:
//! 4. [`fetch`] (remote pictures and base64, closed to private addresses), [`cache`] (by content, with
//!    single flight, in memory and behind it in Redis), [`imaging`] (as the Python reference does it, to the pixel if asked for) or [`text`] (to token ids),
//! 5. [`batch`], where inputs of all connections meet, searches ahead of bulk work,
//! 6. [`runtime`], where engines compute the [`model`]: on the CPU one on each core for bulk, and one for searches on all
//!    of them; two on each GPU.
//! 7. The vectors come back in order; the dialect renders them, `http` chooses the status by consequence.
//!
//! # The other rooms
//!
//! [`domain`] holds the words that all rooms share. [`config`] and [`telemetry`] are leaves that any room may
//! read. `libtorch` is C++ beside `tch`. [`hub`] turns a model's name into a directory before the model is read.
//! [`app`] joins the rooms and runs them until told to stop ([`shutdown`]); [`cli`] is the command line. [`bulk`]
//! takes lists through the same rooms without a server, and writes tables. [`load`] is the other side of the wire:
//! it asks any server for vectors as Meilisearch does, and measures.
//!
//! # Promises
//!
//! - actix types stay in [`http`]; a dialect sees bytes and domain values.
//! - `tch` types stay in [`model`], [`runtime`] and `libtorch`; everyone else sees [`Prepared`](domain::Prepared) and
//!   [`Embedding`](domain::Embedding), so all but inference builds and tests without libtorch
//!   (`--no-default-features`).
//! - Every engine has an OS thread of its own; others talk to it by channel and get an answer, an error, or a
//!   closed channel. On the CPU what is done for bulk runs in threads that step back behind searches, and the searches of
//!   all models share one.
//! - A picture costs at most itself: a decoder that panics is caught, and one that would end the process has processes of its
//!   own, which [`imaging`] starts from this program.
//! - A vector that leaves the house is finite and of length one; every input gets exactly one, in order, or
//!   the request fails with a status that says whether trying again helps.
//!
//! `tests/it/layering.rs` reads the `crate::` paths and keeps the arrows between the rooms, and the crates in theirs, true.
//!
//! # Where a new thing goes
//!
//! | new ... | one file | one line |
//! |---|---|---|
//! | wire dialect | `dialect/<name>.rs` | `DIALECTS` |
//! | model family | `model/<name>.rs` | `FAMILIES` |
//! | image format or step | `imaging/<name>.rs` | the steps in `imaging/mod.rs` |
//! | cache tier | `cache/<name>.rs` | `further_tiers` in `cache/mod.rs` |
//! | tool below `/admin` | a handler beside what it shows | `http/admin.rs` |
//! | setting | a field in `config/<room>.rs` | `config/default.toml` |
//! | metric | a field in `telemetry/metrics.rs` | none |
//! | span of a trace | `trace_span!` where it happens | the tree in `docs/tracing.md` |

pub mod app;
pub mod batch;
pub mod bulk;
pub mod cache;
pub mod cli;
pub mod config;
pub mod dialect;
pub mod domain;
pub mod embedder;
pub mod fetch;
pub mod http;
pub mod hub;
pub mod imaging;
#[cfg(feature = "torch")]
mod libtorch;
pub mod load;
pub mod model;
pub mod runtime;
pub mod shutdown;
pub mod telemetry;
pub mod text;
