//! Config maps, whose values are shown, and secrets, whose values are not.

use k8s_openapi::ByteString;
use serde_json::Value;

use super::write::{Text, pairs, plain};

/// A config map.
pub fn config_map(text: &mut Text, object: &Value) {
    text.head(object);
    text.line(0, "\nData\n====");
    for (key, value) in pairs(&object["data"]) {
        text.line(0, format!("{key}:\n----\n{value}\n"));
    }
    text.line(0, "\nBinaryData\n====");
    for (key, _) in pairs(&object["binaryData"]) {
        text.line(0, format!("{key}: {} bytes", length(&object["binaryData"][&key])));
    }
    text.line(0, "");
}

/// A secret: only how long its values are.
pub fn secret(text: &mut Text, object: &Value) {
    text.head(object);
    text.line(0, "");
    text.field(0, "Type", plain(&object["type"]));
    text.line(0, "\nData\n====");
    for (key, _) in pairs(&object["data"]) {
        text.field(0, &key, format!("{} bytes", length(&object["data"][&key])));
    }
}

fn length(base64: &Value) -> usize {
    serde_json::from_value::<ByteString>(base64.clone()).map_or(0, |bytes| bytes.0.len())
}
