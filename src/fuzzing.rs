//! Entrances for fuzzers: one function for each kind of bytes that come from outside.
//!
//! Owns: what must hold for any input whatever; a function panics when it does not, and returns when the input is merely
//! refused. The targets in `fuzz/` and the properties in `tests/props` call the same functions. Not a part of the public
//! interface: it may change with any release.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::pin,
    sync::LazyLock,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use k8s_openapi::jiff::Timestamp;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    api::{
        body,
        patch::{Format, Patch},
    },
    messages::wire::{Admitted, JoinAnswer, JoinRefusal, JoinRequest, Open, Opened, ToMaster, ToNode},
    model::{
        Kind, Revision,
        admit::{Admission, FieldValidation, Part, admit_create, admit_update},
        quantity,
        selector::{FieldSelector, LabelSelector},
    },
    net::{
        Authority, CaCertificate, codec,
        csr::{joined_key, requested_key, validity},
        frame::{FrameReader, read_frame},
        identity::{Role, peer_role},
        join::{self, JOIN_CAP, JoinAsk},
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

/// Where whoever speaks comes from, or is looked for.
const SOMEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);

/// What a machine that joins sends on its stream, which nobody knows yet: one frame, and in it a certificate request. The
/// master's half answers once, in one frame, whatever comes; and what it admits is what the joiner's half takes.
pub fn join(input: &[u8]) {
    static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::ephemeral().expect("a key"));
    let (asks, mut asked) = mpsc::channel::<JoinAsk>(1);
    let (mut received, mut sent) = (input, Vec::new());
    let mut request = None;
    let outcome = {
        let mut master = pin!(join::answer(&mut received, &mut sent, SOMEWHERE, &asks));
        // Bytes in memory are always there: it waits for its owner alone.
        let mut outcome = master.as_mut().now_or_never();
        if let Ok(ask) = asked.try_recv() {
            assert!(outcome.is_none(), "answered before it was decided");
            let answer = certified(&AUTHORITY, &ask.request);
            request = Some(ask.request);
            assert!(ask.answer.send(answer).is_ok(), "it waits for that");
            outcome = master.as_mut().now_or_never();
        }
        outcome.expect("it waits for nothing else")
    };
    let Ok(answer) = outcome else {
        assert!(sent.is_empty() && request.is_none(), "who cannot be read is told nothing");
        return;
    };
    let mut reply = sent.as_slice();
    let reply = read_frame(&mut reply, JOIN_CAP).now_or_never().expect("it is there").expect("a whole frame");
    assert_eq!(reply.len() + 4, sent.len(), "and no more");
    assert_eq!(codec::decode::<JoinAnswer>(&reply).expect("it can be read"), answer);
    match (answer, request) {
        (JoinAnswer::Admitted(told), Some(request)) => {
            let pin = AUTHORITY.certificate().public_key_pin().expect("it is ours");
            let taken = join::admitted(&reply, &request, pin, SOMEWHERE, rustls::pki_types::UnixTime::now());
            assert_eq!(taken.expect("what was asked for"), told);
        }
        (JoinAnswer::Admitted(_), None) => panic!("admitted unasked"),
        (JoinAnswer::Refused(..), _) => {}
    }
}

fn certified(authority: &Authority, request: &JoinRequest) -> JoinAnswer {
    match authority.certify_node(&request.name.as_str().into(), &request.csr, Duration::from_secs(60)) {
        Ok(certificate) => JoinAnswer::Admitted(Admitted {
            certificate,
            ca: authority.certificate().pem().to_owned(),
            cluster: "fuzzed".into(),
        }),
        Err(error) => JoinAnswer::Refused(JoinRefusal::Invalid, error.to_string()),
    }
}

/// What the master that a machine joins may send, or who passes for it. First the pin of the token's authority (32 bytes) and a
/// frame with the request, which are the machine's own; then the stream from the other side.
pub fn join_answer(input: &[u8]) {
    let Some((pin, mut rest)) = input.split_first_chunk::<32>() else { return };
    let Some(Ok(request)) = read_frame(&mut rest, JOIN_CAP).now_or_never() else { return };
    let Ok(request) = codec::decode::<JoinRequest>(&request) else { return };
    let mut sent = Vec::new();
    let said = join::say(&mut rest, &mut sent, &request).now_or_never();
    let said = said.expect("bytes in memory are always there");
    assert_eq!(sent.len().checked_sub(4), codec::encode(&request, JOIN_CAP).ok().map(|bytes| bytes.len()));
    let Ok(Ok(answer)) = said else { return };
    assert!(answer.len() <= JOIN_CAP, "a frame beyond the cap");
    let Ok(admitted) = join::admitted(&answer, &request, *pin, SOMEWHERE, rustls::pki_types::UnixTime::now())
    else {
        return;
    };
    // What is kept for good is of that cluster, and of use.
    let ca = CaCertificate::from_pem(&admitted.ca).expect("an authority");
    assert_eq!(ca.public_key_pin().expect("a key"), *pin, "another cluster's authority");
    validity(&admitted.certificate).expect("a certificate");
    let certificate = CertificateDer::from_pem_slice(admitted.certificate.as_bytes()).expect("PEM");
    let key = requested_key(&request.csr).expect("it was compared");
    assert_eq!(joined_key(&certificate), Some(key), "a certificate for another key than was asked for");
    let name = request.name.as_str().into();
    assert_eq!(peer_role(&certificate), Some(Role::Node(name)), "a certificate for another name");
}

/// A request's body: the first byte chooses media type and kind, the rest is the body.
pub fn body(input: &[u8]) {
    const MEDIA: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
    let Some((choice, body)) = input.split_first() else { return };
    let choice = usize::from(*choice);
    let kind = Kind::ALL[choice / MEDIA.len() % Kind::ALL.len()];
    let Ok(json) = body::to_json(MEDIA[choice % MEDIA.len()], Bytes::copy_from_slice(body), None) else {
        return;
    };
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
