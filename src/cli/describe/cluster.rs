//! Namespaces.

use serde_json::Value;

use super::write::{Text, list, plain, time};

/// A namespace.
pub fn namespace(text: &mut Text, object: &Value) {
    let metadata = &object["metadata"];
    text.field(0, "Name", plain(&metadata["name"]));
    text.labels("Labels", &metadata["labels"]);
    text.annotations("Annotations", &metadata["annotations"]);
    text.field(0, "Status", plain(&object["status"]["phase"]));
    let conditions = list(&object["status"]["conditions"]);
    if conditions.is_empty() {
        return;
    }
    text.line(0, "Conditions:");
    text.line(1, "Type\tStatus\tLastTransitionTime\tReason\tMessage");
    text.line(1, "----\t------\t------------------\t------\t-------");
    for c in conditions {
        text.line(
            1,
            format!(
                "{}\t{}\t{}\t{}\t{}",
                plain(&c["type"]),
                plain(&c["status"]),
                time(&c["lastTransitionTime"]),
                plain(&c["reason"]),
                plain(&c["message"])
            ),
        );
    }
}
