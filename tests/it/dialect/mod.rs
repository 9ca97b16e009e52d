//! One file per wire dialect: recorded requests through a running service.

mod meilisearch;
mod plain;
