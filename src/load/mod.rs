//! A load like Meilisearch's, on any embedding server, and what came of it.
