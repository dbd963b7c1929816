//! What crosses machines: its bytes are pinned, any value comes back, and no bytes do harm.

use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use troupe::{
    messages::wire::*,
    model::Revision,
    net::codec::{CONTROL_CAP, OPEN_CAP, STATE_CAP, decode, encode},
};

fn node_report() -> NodeReport {
    NodeReport { status: b"{}".to_vec().into() }
}

fn pod_report() -> PodReport {
    PodReport {
        namespace: "ns".into(),
        name: "p".into(),
        uid: "u1".into(),
        sequence: 300,
        status: b"{\"phase\":\"Running\"}".to_vec().into(),
        terminated: true,
    }
}

fn event_report() -> EventReport {
    EventReport {
        namespace: "ns".into(),
        name: "p".into(),
        uid: "u1".into(),
        field_path: Some("spec.containers{c}".into()),
        warning: true,
        reason: "BackOff".into(),
        message: "m".into(),
        at_ms: -1,
    }
}

fn log_request() -> LogRequest {
    LogRequest {
        namespace: "ns".into(),
        pod: "p".into(),
        uid: "u1".into(),
        container: "c".into(),
        follow: true,
        previous: false,
        timestamps: true,
        tail_lines: Some(10),
        since_ms: Some(70_000),
        limit_bytes: None,
    }
}

/// Every variant once, in order.
pub fn to_master() -> Vec<ToMaster> {
    let labels = [("a".to_owned(), "b".to_owned())].into();
    vec![
        ToMaster::Hello(Hello { labels, report: node_report() }),
        ToMaster::Node(node_report()),
        ToMaster::Pods(vec![pod_report()]),
        ToMaster::Events(vec![event_report()]),
        ToMaster::Goodbye,
        ToMaster::Mirrors(vec![Mirror { json: b"{}".to_vec().into(), status: b"{}".to_vec().into() }]),
        ToMaster::Renew(b"csr".to_vec().into()),
        ToMaster::Images(vec![HeldImage {
            name: "a:1".into(),
            id: "s".into(),
            held: HeldAs::Copied,
            since_ms: 70_000,
        }]),
        ToMaster::ImagesRemoved(vec![RemovedImage { name: "a:1".into(), id: "s".into(), at_ms: 70_000 }]),
    ]
}

/// Every variant once, in order.
pub fn to_node() -> Vec<ToNode> {
    vec![
        ToNode::Assignments(Assignments {
            revision: Revision(1000),
            pods: vec![AssignedPod { uid: "u1".into(), revision: Revision(7) }],
            documents: vec![PodDocument {
                uid: "u1".into(),
                revision: Revision(7),
                json: b"{}".to_vec().into(),
            }],
        }),
        ToNode::Welcome(Welcome { pod_cidr: "10.244.3.0/24".into(), cluster: "c".into() }),
        ToNode::Configs(Configs {
            revision: Revision(1000),
            objects: [ConfigKind::ConfigMap, ConfigKind::Secret, ConfigKind::ServiceAccount]
                .map(|kind| ConfigObject {
                    kind,
                    namespace: "ns".into(),
                    name: "o".into(),
                    revision: (kind == ConfigKind::Secret).then_some(Revision(7)),
                })
                .into(),
            documents: vec![ConfigDocument { object: 1, revision: Revision(7), json: b"{}".to_vec().into() }],
        }),
        ToNode::Certificate("pem".into()),
        ToNode::Tokens(vec![PodToken {
            uid: "u1".into(),
            audience: "a".into(),
            life_s: 600,
            token: "t".into(),
        }]),
        ToNode::ImagesCame,
    ]
}

/// Every variant once, in order.
pub fn open() -> Vec<Open> {
    vec![
        Open::Logs(log_request()),
        Open::ImageLoad(ImageLoad::Archive(Some("a:1".into()))),
        Open::ImageLoad(ImageLoad::RootFs("b:2".into())),
        Open::ImageList,
        Open::ImageRemove("a:1".into()),
        Open::ImagePull("a:1".into()),
        Open::Exec(ExecRequest {
            namespace: "ns".into(),
            pod: "p".into(),
            uid: "u1".into(),
            container: "c".into(),
            command: vec!["ls".into(), "-l".into()],
            stdin: true,
            tty: false,
        }),
        Open::ImageSave(vec!["a:1".into(), "b:2".into()]),
        Open::Stats,
        Open::Attach(AttachRequest {
            namespace: "ns".into(),
            pod: "p".into(),
            uid: "u1".into(),
            container: "c".into(),
            stdin: true,
            tty: true,
        }),
        Open::PortForward(PortForwardRequest {
            namespace: "ns".into(),
            pod: "p".into(),
            uid: "u1".into(),
            port: 8080,
        }),
        Open::Summary,
        Open::Reach("10.0.0.2".into()),
        Open::ImageHolders(ImageWanted { name: "a:1".into(), by_hand: true }),
        Open::ImagePart(ImagePart { node: "n".into(), image: "i".into(), digest: "d".into() }),
        Open::Actors,
        Open::LogsOfLast(log_request(), 60),
        Open::ResourceMetrics,
        Open::CadvisorMetrics,
    ]
}

/// Every variant once, in order.
pub fn opened() -> Vec<Opened> {
    vec![Opened::Ok, Opened::Refused(404, "no".into())]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One line of hexadecimal for each message. Lines are added, never changed: machines of different versions talk.
fn golden<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(messages: &[T], expected: &str) {
    let bytes: Vec<Vec<u8>> = messages.iter().map(|m| encode(m, OPEN_CAP).unwrap()).collect();
    let lines: Vec<String> = bytes.iter().map(|b| hex(b)).collect();
    let expected: Vec<&str> = expected.split_whitespace().collect();
    assert_eq!(lines, expected, "the encoding has changed:\n{}", lines.join("\n"));
    for (message, bytes) in messages.iter().zip(&bytes) {
        assert_eq!(decode::<T>(bytes).unwrap(), *message);
    }
}

/// A variant without golden bytes does not compile here: add its number, and a line to its list.
#[test]
fn every_variant_has_its_golden_bytes() {
    let to_master = to_master()
        .iter()
        .map(|m| match m {
            ToMaster::Hello(_) => 0,
            ToMaster::Node(_) => 1,
            ToMaster::Pods(_) => 2,
            ToMaster::Events(_) => 3,
            ToMaster::Goodbye => 4,
            ToMaster::Mirrors(_) => 5,
            ToMaster::Renew(_) => 6,
            ToMaster::Images(_) => 7,
            ToMaster::ImagesRemoved(_) => 8,
        })
        .collect::<Vec<_>>();
    assert_eq!(to_master, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let to_node = to_node()
        .iter()
        .map(|m| match m {
            ToNode::Assignments(_) => 0,
            ToNode::Welcome(_) => 1,
            ToNode::Configs(_) => 2,
            ToNode::Certificate(_) => 3,
            ToNode::Tokens(_) => 4,
            ToNode::ImagesCame => 5,
        })
        .collect::<Vec<_>>();
    assert_eq!(to_node, [0, 1, 2, 3, 4, 5]);
    let open = open()
        .iter()
        .map(|m| match m {
            Open::Logs(_) => 0,
            Open::ImageLoad(ImageLoad::Archive(_)) => 10,
            Open::ImageLoad(ImageLoad::RootFs(_)) => 11,
            Open::ImageList => 2,
            Open::ImageRemove(_) => 3,
            Open::ImagePull(_) => 4,
            Open::Exec(_) => 5,
            Open::ImageSave(_) => 6,
            Open::Stats => 7,
            Open::Attach(_) => 8,
            Open::PortForward(_) => 9,
            Open::Summary => 12,
            Open::Reach(_) => 13,
            Open::ImageHolders(_) => 14,
            Open::ImagePart(_) => 15,
            Open::Actors => 16,
            Open::LogsOfLast(..) => 17,
            Open::ResourceMetrics => 18,
            Open::CadvisorMetrics => 19,
        })
        .collect::<Vec<_>>();
    assert_eq!(open, [0, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 18, 19]);
    let opened = opened()
        .iter()
        .map(|m| match m {
            Opened::Ok => 0,
            Opened::Refused(..) => 1,
        })
        .collect::<Vec<_>>();
    assert_eq!(opened, [0, 1]);
}

#[test]
fn messages_to_the_master_have_their_bytes_for_ever() {
    golden(
        &to_master(),
        r"
        000101610162027b7d
        01027b7d
        0201026e730170027531fb2c01137b227068617365223a2252756e6e696e67227d01
        0301026e7301700275310112737065632e636f6e7461696e6572737b637d01074261636b4f6666016d01
        04
        0501027b7d027b7d
        0603637372
        070103613a31017301fce0220200
        080103613a310173fce0220200
        ",
    );
}

#[test]
fn ways_to_hold_an_image_have_their_numbers_for_ever() {
    golden(&[HeldAs::ByHand, HeldAs::Copied, HeldAs::Pulled], "00 01 02");
}

#[test]
fn messages_to_a_node_have_their_bytes_for_ever() {
    golden(
        &to_node(),
        r"
        00fbe80301027531070102753107027b7d
        010d31302e3234342e332e302f32340163
        02fbe8030300026e73016f0001026e73016f010702026e73016f00010107027b7d
        030370656d
        04010275310161fbb0040174
        05
        ",
    );
}

#[test]
fn openings_of_byte_streams_have_their_bytes_for_ever() {
    golden(
        &open(),
        r"
        00026e7301700275310163010001010a01fce022020000
        01000103613a31
        010103623a32
        02
        0303613a31
        0403613a31
        05026e730170027531016302026c73022d6c0100
        060203613a3103623a32
        07
        08026e73017002753101630101
        09026e730170027531fb901f
        0a
        0b0831302e302e302e32
        0c03613a3101
        0d016e01690164
        0e
        0f026e7301700275310163010001010a01fce0220200003c
        10
        11
        ",
    );
    golden(
        &opened(),
        r"
        00
        01fb9401026e6f
        ",
    );
}

/// Every variant once, in order.
pub fn join_answers() -> Vec<JoinAnswer> {
    let admitted = Admitted { certificate: "c".into(), ca: "a".into(), cluster: "n".into() };
    let refusals = [
        JoinRefusal::TokenUnknown,
        JoinRefusal::TokenExpired,
        JoinRefusal::NameTaken,
        JoinRefusal::NodeAlive,
        JoinRefusal::Invalid,
        JoinRefusal::Busy,
    ];
    let refused = refusals.into_iter().map(|refusal| JoinAnswer::Refused(refusal, "no".into()));
    [JoinAnswer::Admitted(admitted)].into_iter().chain(refused).collect()
}

#[test]
fn joins_have_their_bytes_for_ever() {
    let request = JoinRequest {
        token_id: "abcdef".into(),
        secret: "s".into(),
        name: "n".into(),
        csr: b"csr".to_vec().into(),
    };
    golden(&[request], "066162636465660173016e03637372");
    golden(
        &join_answers(),
        r"
        0001630161016e
        0100026e6f
        0101026e6f
        0102026e6f
        0103026e6f
        0104026e6f
        0105026e6f
        ",
    );
    let numbers = join_answers()
        .iter()
        .map(|answer| match answer {
            JoinAnswer::Admitted(_) => 10,
            JoinAnswer::Refused(JoinRefusal::TokenUnknown, _) => 0,
            JoinAnswer::Refused(JoinRefusal::TokenExpired, _) => 1,
            JoinAnswer::Refused(JoinRefusal::NameTaken, _) => 2,
            JoinAnswer::Refused(JoinRefusal::NodeAlive, _) => 3,
            JoinAnswer::Refused(JoinRefusal::Invalid, _) => 4,
            JoinAnswer::Refused(JoinRefusal::Busy, _) => 5,
        })
        .collect::<Vec<_>>();
    assert_eq!(numbers, [10, 0, 1, 2, 3, 4, 5]);
}

/// The answer at the end of an image request is JSON.
#[test]
fn answers_about_images_have_their_text_for_ever() {
    for (answer, text) in [
        (ImageAnswer::Done(vec!["a:1".into()]), r#"{"done":["a:1"]}"#),
        (ImageAnswer::Refused("no".into()), r#"{"refused":"no"}"#),
    ] {
        assert_eq!(serde_json::to_string(&answer).unwrap(), text);
        assert_eq!(serde_json::from_str::<ImageAnswer>(text).unwrap(), answer);
    }
    for (line, text) in [
        (
            PullLine::Progress { layers: 3, layers_done: 1, bytes: 10, total_bytes: 20 },
            r#"{"progress":{"layers":3,"layersDone":1,"bytes":10,"totalBytes":20}}"#,
        ),
        (PullLine::Done("a:1".into()), r#"{"done":"a:1"}"#),
        (PullLine::Refused("no".into()), r#"{"refused":"no"}"#),
    ] {
        assert_eq!(serde_json::to_string(&line).unwrap(), text);
        assert_eq!(serde_json::from_str::<PullLine>(text).unwrap(), line);
    }
}

/// Where a length stands, a frame may claim anything: what is not there is not waited for, and no room is made for it.
#[test]
fn claimed_lengths_make_no_room() {
    for claimed in [1_u64 << 20, 1 << 32, 1 << 40, 1 << 62, u64::MAX] {
        let varint = [&[253][..], &claimed.to_le_bytes()].concat();
        for head in [&[2][..], &[3], &[0], &[1], &[2, 1], &[3, 1, 1, b'a']] {
            let frame = [head, &varint, b"abc"].concat();
            assert!(decode::<ToMaster>(&frame).is_err(), "{claimed} after {head:?}");
            assert!(decode::<ToNode>(&frame).is_err(), "{claimed} after {head:?}");
            assert!(decode::<Open>(&frame).is_err(), "{claimed} after {head:?}");
        }
    }
}

#[test]
fn trailing_bytes_and_unknown_variants_are_refused() {
    assert!(decode::<ToMaster>(&[4]).is_ok());
    assert!(decode::<ToMaster>(&[4, 0]).is_err());
    assert!(decode::<ToMaster>(&[5]).is_err());
    assert!(decode::<ToMaster>(&[]).is_err());
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[a-z0-9.-]{0,20}"]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..300)
}

fn reports() -> impl Strategy<Value = ToMaster> {
    let pod = (text(), text(), text(), any::<u64>(), bytes(), any::<bool>()).prop_map(
        |(namespace, name, uid, sequence, status, terminated)| PodReport {
            namespace,
            name,
            uid: uid.as_str().into(),
            sequence,
            status: status.into(),
            terminated,
        },
    );
    let event =
        (text(), text(), text(), prop::option::of(text()), any::<bool>(), text(), text(), any::<i64>())
            .prop_map(|(namespace, name, uid, field_path, warning, reason, message, at_ms)| EventReport {
                namespace,
                name,
                uid: uid.as_str().into(),
                field_path,
                warning,
                reason,
                message,
                at_ms,
            });
    let labels = prop::collection::btree_map(text(), text(), 0..4);
    prop_oneof![
        prop::collection::vec(pod, 0..5).prop_map(ToMaster::Pods),
        prop::collection::vec(event, 0..5).prop_map(ToMaster::Events),
        (labels, bytes()).prop_map(|(labels, status)| ToMaster::Hello(Hello {
            labels,
            report: NodeReport { status: status.into() }
        })),
        Just(ToMaster::Goodbye),
    ]
}

fn pictures() -> impl Strategy<Value = ToNode> {
    let document = (text(), any::<u64>(), bytes());
    let pictures = (any::<u64>(), prop::collection::vec(document, 0..5)).prop_map(|(revision, documents)| {
        ToNode::Assignments(Assignments {
            revision: Revision(revision),
            pods: documents
                .iter()
                .map(|(uid, revision, _)| AssignedPod {
                    uid: uid.as_str().into(),
                    revision: Revision(*revision),
                })
                .collect(),
            documents: documents
                .into_iter()
                .map(|(uid, revision, json)| PodDocument {
                    uid: uid.as_str().into(),
                    revision: Revision(revision),
                    json: json.into(),
                })
                .collect(),
        })
    });
    let object = (0..3_usize, text(), text(), prop::option::of(any::<u64>()));
    let content = (any::<u32>(), any::<u64>(), bytes());
    let objects = prop::collection::vec(object, 0..5);
    let configs = (any::<u64>(), objects, prop::collection::vec(content, 0..5)).prop_map(
        |(revision, objects, documents)| {
            let kinds = [ConfigKind::ConfigMap, ConfigKind::Secret, ConfigKind::ServiceAccount];
            let objects = objects.into_iter().map(|(kind, namespace, name, revision)| ConfigObject {
                kind: kinds[kind],
                namespace,
                name,
                revision: revision.map(Revision),
            });
            let documents = documents.into_iter().map(|(object, revision, json)| ConfigDocument {
                object,
                revision: Revision(revision),
                json: json.into(),
            });
            ToNode::Configs(Configs {
                revision: Revision(revision),
                objects: objects.collect(),
                documents: documents.collect(),
            })
        },
    );
    let token = (text(), text(), any::<i64>(), text()).prop_map(|(uid, audience, life_s, token)| PodToken {
        uid: uid.as_str().into(),
        audience,
        life_s,
        token,
    });
    prop_oneof![
        pictures,
        configs,
        prop::collection::vec(token, 0..5).prop_map(ToNode::Tokens),
        (text(), text()).prop_map(|(pod_cidr, cluster)| ToNode::Welcome(Welcome { pod_cidr, cluster }))
    ]
}

fn comes_back<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(message: &T, cap: usize) {
    let bytes = encode(message, cap).unwrap();
    assert_eq!(decode::<T>(&bytes).unwrap(), *message);
    // A frame that was cut off is no shorter message.
    for length in 0..bytes.len() {
        assert!(decode::<T>(&bytes[..length]).is_err(), "cut to {length} of {}", bytes.len());
    }
    assert!(encode(message, bytes.len()).is_ok());
    assert!(encode(message, bytes.len() - 1).is_err(), "beyond the cap");
}

proptest! {
    #[test]
    fn any_message_comes_back_as_it_went(report in reports(), picture in pictures()) {
        comes_back(&report, STATE_CAP);
        comes_back(&picture, CONTROL_CAP);
    }
}
