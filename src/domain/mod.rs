//! The words every room shares: plain data, no I/O, no engine.
//!
//! A request is an [`EmbedRequest`] of [`EmbedInput`]s; a model eats [`Prepared`] and gives
//! [`Embedding`]s; the facts of a checkpoint are its [`ModelSpec`]; what goes wrong is an
//! [`EmbedError`], which knows whose [`Fault`] it is.

mod digest;
mod embedding;
mod error;
mod fingerprint;
mod input;
mod lane;
mod prepared;
mod spec;

pub use digest::ContentDigest;
pub use embedding::{Embedding, EmbeddingError};
pub use error::{EmbedError, Fault, ItemError, ItemErrorKind, OnItemError, causes, root_cause};
pub use fingerprint::{Fingerprint, NoFingerprint};
pub use input::{
    Content, EmbedInput, EmbedRequest, EmbedResponse, ImageSource, InputType, MAX_ADDRESS_BYTES, Part, Usage,
};
pub use lane::{Lane, Lanes};
pub use prepared::{Modality, Pixels, Prepared, Tokens};
pub use spec::{
    Background, CleanUp, Decode, Filter, Icc, ImageSpec, ModelSpec, Pooling, Poolings, Prompts, Resize,
    TextSpec, TokenizerFile,
};
