//! Rows and properties of admission: what the door lets in, fills in and refuses.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::Revision;

fn how() -> Admission<'static> {
    Admission {
        namespace: "default",
        name: None,
        now: "2026-11-24T02:22:22.5Z".parse().unwrap(),
        uid: "u-1".into(),
        suffix: "x7k2p",
        fields: FieldValidation::Warn,
    }
}

fn create(kind: Kind, json: &Value) -> Admitted {
    admit_create(kind, json.to_string().as_bytes(), &how()).unwrap_or_else(|e| panic!("{json}: {e:?}"))
}

fn document(admitted: &Admitted) -> Value {
    serde_json::from_slice(admitted.sealed.document()).unwrap()
}

fn stored(kind: Kind, json: &Value) -> Object {
    create(kind, json).sealed.at(Revision(7))
}

fn update(current: &Object, part: Part, change: impl FnOnce(&mut Value)) -> Result<Admitted, Rejection> {
    let mut json: Value = serde_json::from_slice(&current.json).unwrap();
    change(&mut json);
    admit_update(current.key.kind, current, json.to_string().as_bytes(), part, &how())
}

#[test]
fn what_a_master_notes_on_a_node_is_its_own_whatever_clients_write() {
    let noted = json!({"troupe.internal/node-key": "k", "mine": "1"});
    let node = stored(Kind::Node, &json!({"metadata": {"name": "a", "annotations": noted}}));
    let written = |annotations: Value| {
        let wanted = update(&node, Part::Main, |node| node["metadata"]["annotations"] = annotations).unwrap();
        document(&wanted)["metadata"]["annotations"].clone()
    };
    assert_eq!(written(Value::Null), json!({"troupe.internal/node-key": "k"}));
    assert_eq!(
        written(json!({"troupe.internal/node-key": "x", "troupe.internal/linked-from": "::1", "mine": "2"})),
        json!({"troupe.internal/node-key": "k", "mine": "2"})
    );
}

#[test]
fn a_cordoned_nodes_taint_comes_and_goes_with_the_cordon_and_others_stay() {
    let mine = json!({"key": "mine", "effect": "NoSchedule"});
    let spec = |cordoned: Value, taints: Value| json!({"metadata": {"name": "a"}, "spec": {"unschedulable": cordoned, "taints": taints}});
    let node = stored(Kind::Node, &spec(Value::Null, json!([mine])));
    let cordoned = update(&node, Part::Main, |node| node["spec"]["unschedulable"] = true.into()).unwrap();
    let taint = document(&cordoned)["spec"]["taints"][1].clone();
    assert_eq!(
        (&taint["key"], &taint["effect"], taint["timeAdded"].is_string()),
        (&json!("node.kubernetes.io/unschedulable"), &json!("NoSchedule"), true)
    );
    // Written over by somebody who does not know of it, and by its own word.
    let cordoned = stored(Kind::Node, &document(&cordoned));
    let over = update(&cordoned, Part::Main, |node| node["spec"]["taints"] = json!([mine])).unwrap();
    assert_eq!(document(&over)["spec"]["taints"].as_array().unwrap().len(), 2);
    assert!(update(&cordoned, Part::Main, |_| {}).unwrap().unchanged);
    for free in [Value::Null, false.into()] {
        let free = update(&cordoned, Part::Main, |node| node["spec"]["unschedulable"] = free).unwrap();
        assert_eq!(document(&free)["spec"]["taints"], json!([mine]));
    }
    let made = document(&create(Kind::Node, &spec(true.into(), Value::Null)));
    assert_eq!(made["spec"]["taints"].as_array().unwrap().len(), 1);
}

fn pod() -> Value {
    json!({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "a:1"}]}})
}

fn controller() -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "template": {"metadata": {"labels": {"app": "web"}},
           "spec": {"containers": [{"name": "c", "image": "a:1"}]}}}})
}

fn samples() -> Vec<(Kind, Value)> {
    let named = json!({"metadata": {"name": "a"}});
    vec![
        (Kind::Pod, pod()),
        (Kind::ReplicationController, controller()),
        (
            Kind::Service,
            json!({"metadata": {"name": "a"}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}}),
        ),
        (Kind::Namespace, named.clone()),
        (
            Kind::Node,
            json!({"metadata": {"name": "a"}, "status": {"capacity": {"cpu": 2, "memory": "2048Mi"}}}),
        ),
        (
            Kind::Endpoints,
            json!({"metadata": {"name": "a"}, "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 1}]}]}),
        ),
        (Kind::Event, json!({"metadata": {"name": "a"}, "involvedObject": {"kind": "Node", "name": "n"}})),
        (Kind::ConfigMap, json!({"metadata": {"name": "a"}, "data": {"metadata": "{\"metadata\":{}}"}})),
        (Kind::Secret, json!({"metadata": {"name": "a"}, "stringData": {"a": "b"}})),
        (Kind::ServiceAccount, named),
    ]
}

#[test]
fn what_is_sent_back_as_received_is_unchanged() {
    for (kind, json) in samples() {
        let object = stored(kind, &json);
        for part in [Part::Main, Part::Status] {
            let again = update(&object, part, |_| {}).unwrap();
            assert!(again.unchanged, "{kind} {part:?}: {}", String::from_utf8_lossy(again.sealed.document()));
        }
        let changed = update(&object, Part::Main, |o| o["metadata"]["labels"]["x"] = "y".into()).unwrap();
        assert!(!changed.unchanged, "{kind}");
    }
}

#[test]
fn admitting_a_complete_object_adds_nothing() {
    for (kind, json) in samples() {
        let once = document(&create(kind, &json));
        assert_eq!(document(&create(kind, &once)), once, "{kind}");
    }
}

#[test]
fn the_server_owns_the_identity_of_what_is_new() {
    let mut json = pod();
    json["metadata"] = json!({"generateName": "web-", "uid": "mine", "creationTimestamp": "2000-01-01T00:00:00Z",
        "resourceVersion": "5", "generation": 9, "selfLink": "/x", "deletionTimestamp": "2000-01-01T00:00:00Z",
        "deletionGracePeriodSeconds": 3, "managedFields": [{"manager": "m"}]});
    json["status"] = json!({"phase": "Running", "podIP": "1.2.3.4"});
    let admitted = create(Kind::Pod, &json);
    let got = document(&admitted);
    assert_eq!(
        got["metadata"],
        json!({"generateName": "web-", "name": "web-x7k2p", "namespace": "default", "uid": "u-1",
               "creationTimestamp": "2026-11-24T02:22:22Z", "generation": 1})
    );
    assert_eq!(got["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    assert_eq!(admitted.sealed.facet.meta.created.to_string(), "2026-11-24T02:22:22Z");
}

#[test]
fn generated_names_are_cut_to_fit() {
    let mut json = pod();
    json["metadata"] = json!({"generateName": "a".repeat(80)});
    let name = create(Kind::Pod, &json).sealed.key.name.to_string();
    assert_eq!((name.len(), name.ends_with("ax7k2p")), (63, true));
}

#[test]
fn kinds_get_their_defaults() {
    let rc = document(&create(Kind::ReplicationController, &controller()));
    assert_eq!(rc["metadata"]["labels"], json!({"app": "web"}));
    assert_eq!(rc["metadata"]["generation"], 1);
    assert_eq!((&rc["spec"]["selector"], &rc["status"]), (&json!({"app": "web"}), &json!({"replicas": 0})));
    assert_eq!(rc["spec"]["template"]["spec"]["restartPolicy"], "Always");
    assert!(rc["spec"]["template"]["spec"].get("tolerations").is_none(), "those are for pods alone");

    let namespace = document(&create(Kind::Namespace, &json!({"metadata": {"name": "a"}})));
    assert_eq!(namespace["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "a"}));
    assert_eq!(
        (&namespace["spec"], &namespace["status"]),
        (&json!({"finalizers": ["kubernetes"]}), &json!({"phase": "Active"}))
    );

    let service = document(&create(
        Kind::Service,
        &json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}}),
    ));
    assert_eq!(
        service["spec"],
        json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
               "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
               "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
    );

    let secret =
        document(&create(Kind::Secret, &json!({"metadata": {"name": "a"}, "stringData": {"a": "b"}})));
    assert_eq!((&secret["type"], &secret["data"]), (&json!("Opaque"), &json!({"a": "Yg=="})));

    let node = document(&create(
        Kind::Node,
        &json!({"metadata": {"name": "a"}, "status": {"capacity": {"memory": "2048Mi"}}}),
    ));
    assert_eq!(node["status"]["allocatable"], json!({"memory": "2Gi"}));
}

#[test]
fn each_part_of_an_update_keeps_the_other() {
    let object = stored(Kind::ReplicationController, &controller());
    let main = update(&object, Part::Main, |o| {
        o["spec"]["replicas"] = 5.into();
        o["status"]["replicas"] = 9.into();
    })
    .unwrap();
    let got = document(&main);
    assert_eq!((&got["spec"]["replicas"], &got["status"]["replicas"]), (&json!(5), &json!(0)));
    assert_eq!(got["metadata"]["generation"], 2);
    let status = update(&object, Part::Status, |o| {
        o["spec"]["replicas"] = 5.into();
        o["status"]["replicas"] = 9.into();
    })
    .unwrap();
    let got = document(&status);
    assert_eq!((&got["spec"]["replicas"], &got["status"]["replicas"]), (&json!(2), &json!(9)));
    assert_eq!(got["metadata"]["generation"], 1);
}

#[test]
fn a_pods_generation_counts_changes_of_what_is_desired_and_of_nothing_else() {
    let mut json = pod();
    json["spec"]["schedulingGates"] = json!([{"name": "a.b/c"}]);
    json["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
    let object = stored(Kind::Pod, &json);
    let gate = document(&create(Kind::Pod, &json))["status"]["conditions"][0].clone();
    assert_eq!((object.facet.meta.generation, &gate["observedGeneration"]), (1, &json!(1)));
    let generation =
        |part, change: fn(&mut Value)| update(&object, part, change).unwrap().sealed.facet.meta.generation;
    for (part, change) in [
        (
            Part::Main,
            (|o| o["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}])) as fn(&mut Value),
        ),
        (Part::Main, |o| o["spec"]["containers"][0]["image"] = "other".into()),
        (Part::Main, |o| o["spec"]["activeDeadlineSeconds"] = 60.into()),
        (Part::Main, |o| o["spec"]["schedulingGates"] = json!([])),
        (Part::EphemeralContainers, |o| {
            o["spec"]["ephemeralContainers"] = json!([{"name": "e", "image": "i"}])
        }),
        (Part::Resize, |o| o["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "2".into()),
    ] {
        assert_eq!(generation(part, change), 2, "{part:?}");
    }
    for (part, change) in [
        (Part::Main, (|o| o["metadata"]["labels"] = json!({"a": "b"})) as fn(&mut Value)),
        (Part::Main, |o| o["metadata"]["generation"] = 7.into()),
        (Part::Main, |o| o["status"]["phase"] = "Running".into()),
        (Part::Status, |o| o["status"]["phase"] = "Running".into()),
        (Part::Status, |o| o["spec"]["activeDeadlineSeconds"] = 60.into()),
        (Part::Resize, |o| o["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "1000m".into()),
    ] {
        assert_eq!(generation(part, change), 1, "{part:?}");
    }
    // Deletion is a change of what is desired, once.
    let at = object.facet.meta.created;
    let marked = mark_deleting(&object, at, 30, &[]).unwrap().at(Revision(8));
    assert_eq!(marked.facet.meta.generation, 2);
    assert_eq!(mark_deleting(&marked, at, 0, &[]).unwrap().facet.meta.generation, 2);
}

#[test]
fn a_service_keeps_what_it_was_given_and_drops_what_its_type_has_no_use_for() {
    let json = json!({"metadata": {"name": "a"}, "spec": {"type": "NodePort", "clusterIP": "10.0.0.1",
                      "ports": [{"port": 80, "nodePort": 30080}]}});
    let object = stored(Kind::Service, &json);
    let spec =
        |change: fn(&mut Value)| document(&update(&object, Part::Main, change).unwrap())["spec"].clone();
    let kept = spec(|o| o["spec"] = json!({"type": "NodePort", "ports": [{"port": 80}]}));
    assert_eq!((&kept["clusterIP"], &kept["ports"][0]["nodePort"]), (&json!("10.0.0.1"), &json!(30080)));
    let inner = spec(|o| o["spec"]["type"] = "ClusterIP".into());
    assert_eq!(inner["clusterIP"], "10.0.0.1");
    assert!(
        inner["ports"][0].get("nodePort").is_none() && inner.get("externalTrafficPolicy").is_none(),
        "{inner}"
    );
    let alias = spec(|o| {
        o["spec"]["type"] = "ExternalName".into();
        o["spec"]["externalName"] = "example.com".into();
    });
    assert!(alias.get("clusterIP").is_none() && alias.get("ipFamilies").is_none(), "{alias}");
}

#[test]
fn identity_does_not_change() {
    let object = stored(Kind::ConfigMap, &json!({"metadata": {"name": "a"}}));
    let causes = |change: fn(&mut Value)| match update(&object, Part::Main, change) {
        Err(Rejection::Invalid(causes)) => {
            causes.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
        }
        Ok(_) => Vec::new(),
        Err(Rejection::BadRequest(text)) => vec![text],
    };
    for (change, expected) in [
        (
            (|o| o["metadata"]["uid"] = "x".into()) as fn(&mut Value),
            "metadata.uid: Invalid value: \"x\": field is immutable",
        ),
        (
            |o| o["metadata"]["creationTimestamp"] = "2000-01-01T00:00:00Z".into(),
            "metadata.creationTimestamp: Invalid value: \"2000-01-01T00:00:00Z\": field is immutable",
        ),
        (
            |o| o["metadata"]["deletionTimestamp"] = "2000-01-01T00:00:00Z".into(),
            "metadata.deletionTimestamp: Invalid value: \"2000-01-01T00:00:00Z\": field is immutable",
        ),
        (
            |o| o["metadata"]["name"] = "b".into(),
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (
            |o| o["metadata"]["namespace"] = "b".into(),
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
    ] {
        assert_eq!(causes(change), [expected]);
    }
    let left_out = causes(|o| {
        let meta = o["metadata"].as_object_mut().unwrap();
        meta.remove("uid");
        meta.remove("creationTimestamp");
    });
    assert!(left_out.is_empty(), "{left_out:?}");
}

#[test]
fn a_deletion_mark_is_only_brought_forward_and_finalizers_go_one_by_one() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let object = stored(Kind::ReplicationController, &controller());
    let marked = mark_deleting(&object, at("2026-11-24T02:23:00Z"), 30, &["foregroundDeletion"])
        .unwrap()
        .at(Revision(8));
    let deleting = marked.facet.meta.deleting.unwrap();
    assert_eq!((deleting.at, deleting.grace_seconds), (at("2026-11-24T02:23:00Z"), 30));
    assert_eq!(marked.facet.meta.generation, 2);
    let later = mark_deleting(&marked, at("2026-11-24T02:24:00Z"), 90, &[]).unwrap();
    assert_eq!(later.facet.meta.deleting.unwrap(), deleting);
    assert!(later.same_as(&marked));
    let sooner = mark_deleting(&marked, at("2026-11-24T02:22:30Z"), 0, &[]).unwrap();
    assert_eq!(sooner.facet.meta.deleting.unwrap().grace_seconds, 0);

    let kept = update(&marked, Part::Main, |o| {
        o["metadata"].as_object_mut().unwrap().remove("deletionTimestamp");
        o["metadata"].as_object_mut().unwrap().remove("deletionGracePeriodSeconds");
    })
    .unwrap();
    assert!(kept.unchanged, "a mark cannot be taken away");
    let added =
        update(&marked, Part::Main, |o| o["metadata"]["finalizers"] = json!(["foregroundDeletion", "a.b/c"]));
    assert!(
        matches!(added, Err(Rejection::Invalid(c)) if c[0].message.ends_with("new finalizers []string{\"a.b/c\"}"))
    );

    let free = remove_finalizer(&marked, "foregroundDeletion").unwrap();
    assert!(free.facet.meta.finalizers.is_empty());
}

#[test]
fn gates_are_taken_away_one_by_one_and_a_gated_pod_is_only_narrowed_down() {
    let gate = |name: &str| json!({"name": name});
    let expression = |key: &str| json!({"key": key, "operator": "Exists"});
    let affinity = |keys: &[&str]| {
        let term = json!({"matchExpressions": keys.iter().map(|key| expression(key)).collect::<Vec<_>>()});
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}})
    };
    let mut pod = pod();
    pod["spec"]["schedulingGates"] = json!([gate("a.example/one"), gate("a.example/two")]);
    pod["spec"]["nodeSelector"] = json!({"disk": "ssd"});
    let admitted = create(Kind::Pod, &pod);
    let warned = admitted.warnings.iter().any(|warning| warning.contains("schedulingGates"));
    assert!(!warned, "{:?}", admitted.warnings);
    let condition = &document(&admitted)["status"]["conditions"][0];
    let said = (&condition["type"], &condition["status"], &condition["reason"], &condition["message"]);
    let message = json!("Scheduling is blocked due to non-empty scheduling gates");
    assert_eq!(said, (&json!("PodScheduled"), &json!("False"), &json!("SchedulingGated"), &message));
    let gated = admitted.sealed.at(Revision(7));

    pod["spec"]["nodeName"] = json!("n");
    let refused = admit_create(Kind::Pod, pod.to_string().as_bytes(), &how()).unwrap_err();
    assert!(format!("{refused:?}").contains("cannot be set until all schedulingGates have been cleared"));

    let refusal = |current: &Object, change: &dyn Fn(&mut Value)| match update(current, Part::Main, change) {
        Ok(_) => String::new(),
        Err(refused) => format!("{refused:?}"),
    };
    let set = |field: &'static str, value: Value| move |pod: &mut Value| pod["spec"][field] = value.clone();
    let more = json!([gate("a.example/one"), gate("a.example/two"), gate("a.example/three")]);
    let fewer = json!([gate("a.example/two")]);
    let told = refusal(&gated, &set("schedulingGates", more));
    assert!(
        told.contains("only deletion is allowed, but found new scheduling gate 'a.example/three'"),
        "{told}"
    );
    assert_eq!(refusal(&gated, &set("schedulingGates", fewer)), "");
    // Narrowed down, or not at all.
    assert_eq!(refusal(&gated, &set("nodeSelector", json!({"disk": "ssd", "zone": "a"}))), "");
    for other in [json!({"disk": "hdd"}), json!({"zone": "a"}), Value::Null] {
        let told = refusal(&gated, &set("nodeSelector", other));
        assert!(told.contains("only additions to spec.nodeSelector are allowed"), "{told}");
    }
    let tied = update(&gated, Part::Main, set("affinity", affinity(&["a"]))).unwrap().sealed.at(Revision(8));
    assert_eq!(refusal(&tied, &set("affinity", affinity(&["a", "b"]))), "");
    for (other, why) in [
        (affinity(&["b", "a"]), "only additions are allowed (no mutations or deletions)"),
        (Value::Null, "no additions/deletions to non-empty NodeSelectorTerms list are allowed"),
    ] {
        let told = refusal(&tied, &set("affinity", other));
        assert!(told.contains(why), "{told}");
    }
    let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}});
    let term = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}});
    let told = refusal(&gated, &set("affinity", term));
    assert!(told.contains("pod updates may not change fields other than"), "{told}");

    let free = update(&gated, Part::Main, set("schedulingGates", json!([]))).unwrap().sealed.at(Revision(8));
    let told = refusal(&free, &set("nodeSelector", json!({"disk": "ssd", "zone": "a"})));
    assert!(told.contains("pod updates may not change fields other than"), "{told}");
}

#[test]
fn a_namespace_on_its_way_out_loses_its_own_finalizer() {
    let object = stored(Kind::Namespace, &json!({"metadata": {"name": "a"}}));
    let marked = mark_deleting(&object, how().now, 0, &[]).unwrap().at(Revision(8));
    let json: Value = serde_json::from_slice(&marked.json).unwrap();
    assert_eq!(json["status"]["phase"], "Terminating");
    let freed = remove_finalizer(&marked, "kubernetes").unwrap();
    let json: Value = serde_json::from_slice(freed.document()).unwrap();
    assert!(json["spec"].get("finalizers").is_none(), "{json}");
    assert!(update(&freed.at(Revision(9)), Part::Main, |_| {}).unwrap().unchanged);
}

#[test]
fn warnings_tell_what_is_dropped_and_what_is_not_acted_on() {
    let mut json = pod();
    json["spec"]["foo"] = 1.into();
    json["spec"]["runtimeClassName"] = json!("fast");
    json["spec"]["containers"][0]["resources"] =
        json!({"limits": {"memory": "0.1"}, "requests": {"memory": "0"}});
    assert_eq!(
        create(Kind::Pod, &json).warnings,
        [
            "unknown field \"spec.foo\"",
            "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
            "spec.runtimeClassName: stored but not yet acted on by troupe",
        ]
    );
}

proptest! {
    #[test]
    fn no_document_panics(text in any::<String>(), key in "[a-zA-Z.]{0,12}", value in any::<String>(), n in any::<i64>()) {
        let shapes = [
            json!({"metadata": {"name": value, "labels": {key.clone(): value}}, "spec": {key.clone(): n}}),
            json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": value, "image": value,
                   "resources": {"limits": {key.clone(): value}}, "volumeMounts": [{"name": key, "mountPath": value}]}]}}),
            json!({"metadata": {"generateName": value}, "spec": {"replicas": n, "ports": [{"port": n}]}}),
        ];
        for kind in Kind::ALL {
            let _ = admit_create(kind, text.as_bytes(), &how());
            for shape in &shapes {
                if let Ok(admitted) = admit_create(kind, shape.to_string().as_bytes(), &how()) {
                    let object = admitted.sealed.at(Revision(1));
                    let again = update(&object, Part::Main, |_| {});
                    prop_assert!(again.is_ok_and(|a| a.unchanged), "{} {}", kind, shape);
                }
            }
        }
    }
}
