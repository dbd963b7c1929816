//! Entrances for fuzzers: one function for each kind of bytes that come from outside.
//!
//! Owns: what must hold for any input whatever; a function panics when it does not, and returns when the input is merely
//! refused. The targets in `fuzz/` and the properties in `tests/props` call the same functions. Not a part of the public
//! interface: it may change with any release.

use std::{sync::LazyLock, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use k8s_openapi::jiff::Timestamp;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    api::{
        body,
        patch::{Format, Patch},
    },
    messages::wire::{JoinAnswer, JoinRequest, Open, Opened, ToMaster, ToNode},
    model::{
        Kind, Revision,
        admit::{Admission, FieldValidation, Part, admit_create, admit_update},
        quantity,
        selector::{FieldSelector, LabelSelector},
    },
    net::{
        Authority, codec,
        csr::{joined_key, requested_key},
        frame::{FrameReader, read_frame},
        identity::{Role, peer_role},
        join::JOIN_CAP,
    },
};

/// Parts an input in two where one must hold two texts: never a part of UTF-8.
pub const SEPARATOR: u8 = 0xff;
/// The largest frame that [`wire_frame`] lets pass.
pub const FRAME_CAP: usize = 4 << 10;

/// What a peer sends on a message stream: the first byte chooses the type, the rest are frames.
pub fn wire_frame(input: &[u8]) {
    let Some((choice, stream)) = input.split_first() else { return };
    let mut reader = FrameReader::new(stream, FRAME_CAP);
    // Bytes in memory are always there: nothing ever waits.
    while let Some(Ok(Some(frame))) = reader.next().now_or_never() {
        assert!(frame.len() <= FRAME_CAP, "a frame beyond the cap");
        match choice % 6 {
            0 => message::<ToMaster>(&frame),
            1 => message::<ToNode>(&frame),
            2 => message::<Open>(&frame),
            3 => message::<Opened>(&frame),
            4 => message::<JoinRequest>(&frame),
            _ => message::<JoinAnswer>(&frame),
        }
    }
}

fn message<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(frame: &[u8]) {
    let Ok(message) = codec::decode::<T>(frame) else { return };
    // A longer encoding of the same numbers is legal, and shrinks.
    let bytes = codec::encode(&message, frame.len()).expect("no longer than it was read from");
    assert_eq!(codec::decode::<T>(&bytes).expect("readable again"), message);
}

/// What a machine that joins sends, which nobody knows yet: one frame, and in it a certificate request.
pub fn join(input: &[u8]) {
    static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::ephemeral().expect("a key"));
    let mut stream = input;
    // Bytes in memory are always there: nothing ever waits.
    let Some(Ok(frame)) = read_frame(&mut stream, JOIN_CAP).now_or_never() else { return };
    assert!(frame.len() <= JOIN_CAP, "a frame beyond the cap");
    message::<JoinRequest>(&frame);
    let Ok(request) = codec::decode::<JoinRequest>(&frame) else { return };
    let Ok(key) = requested_key(&request.csr) else { return };
    let name = request.name.as_str().into();
    let Ok(certificate) = AUTHORITY.certify_node(&name, &request.csr, Duration::from_secs(60)) else {
        return;
    };
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("what was signed is PEM");
    assert_eq!(joined_key(&certificate), Some(key), "a certificate for another key than was asked for");
    assert_eq!(peer_role(&certificate), Some(Role::Node(name)), "a certificate for another name");
}

/// A request's body: the first byte chooses media type and kind, the rest is the body.
pub fn body(input: &[u8]) {
    const MEDIA: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
    let Some((choice, body)) = input.split_first() else { return };
    let choice = usize::from(*choice);
    let kind = Kind::ALL[choice / MEDIA.len() % Kind::ALL.len()];
    let Ok(json) = body::to_json(MEDIA[choice % MEDIA.len()], Bytes::copy_from_slice(body)) else { return };
    let namespace = if kind.namespaced() { "default" } else { "" };
    let mut how = Admission {
        namespace,
        name: None,
        now: Timestamp::UNIX_EPOCH,
        uid: "a-uid".into(),
        suffix: "x7k2p",
        fields: FieldValidation::Strict,
    };
    let strict = admit_create(kind, &json, &how).is_ok();
    how.fields = FieldValidation::Warn;
    let Ok(admitted) = admit_create(kind, &json, &how) else {
        assert!(!strict, "what passes strictly passes with warnings");
        return;
    };
    let object = admitted.sealed.at(Revision(1));
    let name = object.key.name.clone();
    how.name = Some(&name);
    let again = admit_update(kind, &object, &object.json, Part::Main, &how);
    assert!(again.is_ok_and(|a| a.unchanged), "admitting {} again changes it", object.key);
}

/// A quantity's text.
pub fn quantity(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let canonical = quantity::canonical(text);
    assert_eq!(quantity::canonical(&canonical), canonical, "canonical twice");
    let Ok(milli) = quantity::parse_milli(text) else { return };
    assert_eq!(quantity::parse_milli(&canonical), Ok(milli), "{text} is not {canonical}");
    let units = quantity::parse_units(text).expect("a quantity has units");
    if units != i64::MAX && units != i64::MIN {
        let off = i128::from(units) * 1000 - milli;
        assert!(off.abs() < 1000 && off * milli >= 0, "{text} is not {units} units, rounded away from zero");
    }
}

/// A label or field selector's text.
pub fn selector(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(selector) = LabelSelector::parse(text) {
        assert_eq!(LabelSelector::parse(&selector.to_string()).as_ref(), Ok(&selector), "{text} as labels");
    }
    for kind in Kind::ALL {
        if let Ok(selector) = FieldSelector::parse(kind, text) {
            let printed = selector.to_string();
            assert_eq!(FieldSelector::parse(kind, &printed).as_ref(), Ok(&selector), "{text} as fields");
        }
    }
}

/// A patch: the first byte chooses the format and the kind; then the document, [`SEPARATOR`], and the patch.
pub fn patch(input: &[u8]) {
    const FORMATS: [Format; 3] = [Format::Json, Format::Merge, Format::Strategic];
    let Some((choice, rest)) = input.split_first() else { return };
    let choice = usize::from(*choice);
    let (format, kind) =
        (FORMATS[choice % FORMATS.len()], Kind::ALL[choice / FORMATS.len() % Kind::ALL.len()]);
    let mut parts = rest.splitn(2, |byte| *byte == SEPARATOR);
    let (Some(document), Some(body)) = (parts.next(), parts.next()) else { return };
    let (Ok(document), Ok(patch)) = (serde_json::from_slice::<Value>(document), Patch::parse(format, body))
    else {
        return;
    };
    let Ok(patched) = patch.apply(kind, &document) else { return };
    let text = patched.to_string();
    assert!(serde_json::from_str::<Value>(&text).is_ok(), "what came out cannot be read: {text}");
    let repeatable = match format {
        Format::Json => false,
        Format::Merge => true,
        Format::Strategic => serde_json::from_slice::<Value>(body).is_ok_and(|patch| is_plain(&patch)),
    };
    if repeatable {
        let again = patch.apply(kind, &patched).expect("what could be applied once can be applied twice");
        assert_eq!(again, patched, "applied twice");
    }
}

/// Neither directives nor nulls: such a strategic patch says what is to be, not what to do.
fn is_plain(patch: &Value) -> bool {
    match patch {
        Value::Null => false,
        Value::Array(values) => values.iter().all(is_plain),
        Value::Object(fields) => fields.iter().all(|(key, value)| !key.starts_with('$') && is_plain(value)),
        _ => true,
    }
}
