//! Config maps, whose values are shown, secrets, whose values are not, and the accounts that use them.

use k8s_openapi::ByteString;
use serde_json::Value;

use super::write::{Text, list, pairs, plain};

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

/// A service account, with the secrets it may use.
pub fn service_account(text: &mut Text, object: &Value) {
    text.head(object);
    let names = |field: &str| list(&object[field]).iter().map(|s| plain(&s["name"])).collect();
    text.lines("Image pull secrets", names("imagePullSecrets"));
    text.lines("Mountable secrets", names("secrets"));
    // Tokens are asked for when they are needed, and not kept as secrets.
    text.lines("Tokens", Vec::new());
}

fn length(base64: &Value) -> usize {
    serde_json::from_value::<ByteString>(base64.clone()).map_or(0, |bytes| bytes.0.len())
}
