//! Nouns: kinds, keys, labels, quantities, documents and their facets.
//!
//! The bottom of the house: everything may use it, it uses nothing of ours. Pure data and pure functions.

pub mod admit;
mod decode;
mod defaults;
mod deletion;
pub mod extended;
mod facet;
mod fault;
mod field_selector;
mod fractions;
pub mod host_port;
pub mod huge_pages;
mod key;
mod kind;
mod labels;
mod merge;
pub(crate) mod names;
mod object;
pub mod quantity;
pub mod registry;
mod rules;
mod rules_service;
pub mod selector;
mod snapshot;
pub mod table;
pub(crate) mod table_pod;
pub mod token;
mod unsupported;
mod validate;

pub(crate) use defaults::qos_class;
pub use facet::{
    ControllerFacet, EventFacet, EventText, KindFacet, NodeFacet, Phase, PodFacet, Resources, ServiceFacet,
    requests_of,
};
pub use key::{Key, NodeName, Revision, Uid};
pub use kind::Kind;
pub use labels::{LabelSet, Labelled};
pub use object::{Deleting, Facet, Labels, Meta, Object, Owner, SealError, Sealed, Stored, seal, seal_json};
pub use rules::{UNSCHEDULABLE, taint_by_cordon};
pub use snapshot::Snapshot;
