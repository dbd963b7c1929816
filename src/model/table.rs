//! The columns of `kubectl get`: what a `Table` answer shows for each kind.

use k8s_openapi::jiff::Timestamp;

use super::{Kind, Object};

/// A column's definition, as in `Table.columnDefinitions`.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// `Name`.
    pub name: &'static str,
    /// `string`, `integer`.
    pub type_: &'static str,
    /// `name` or empty.
    pub format: &'static str,
    /// A sentence.
    pub description: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    pub priority: i32,
}

/// The columns of a kind.
pub fn columns(_kind: Kind) -> &'static [Column] {
    &[Column { name: "Name", type_: "string", format: "name", description: "Name", priority: 0 }]
}

/// The cells of an object's row, one for each column.
pub fn cells(object: &Object, _now: Timestamp) -> Vec<serde_json::Value> {
    vec![object.key.name.to_string().into()]
}
