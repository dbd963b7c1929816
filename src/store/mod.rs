//! The durable store: documents, revisions, watch, backends.
