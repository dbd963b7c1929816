//! What Kubernetes fills in where a pod says nothing.
//!
//! Owns: the defaults of pods and pod templates (`SetDefaults_*` of the core group), and what its admission plugins
//! add to pods (tolerations for nodes that are not ready or unreachable, the service account, the priority).
//! Invariant: idempotent: filling in twice is filling in once.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, EmptyDirVolumeSource, EnvVar, HTTPGetAction, LifecycleHandler,
        ObjectFieldSelector, Pod, PodSecurityContext, PodSpec, Probe, ResourceRequirements, Toleration,
        Volume,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::quantity;

/// How long a pod stays on such a node, unless it says otherwise: five minutes on one that is not ready, as in Kubernetes,
/// since its containers run; a moment on one that is silent (Kubernetes' five minutes are its
/// `--default-unreachable-toleration-seconds`), which is taken for dead within two seconds already.
const TOLERATIONS: [(&str, i64); 2] =
    [("node.kubernetes.io/not-ready", 300), ("node.kubernetes.io/unreachable", 1)];
/// Grace between SIGTERM and SIGKILL.
const GRACE_SECONDS: i64 = 30;
/// `rw-r--r--`, the mode of files in volumes made of secrets and configmaps.
const FILE_MODE: i32 = 0o644;
/// How long a projected service account token lives.
const TOKEN_SECONDS: i64 = 3600;

/// Sets a field that is absent or, for texts, empty.
pub(crate) fn text(field: &mut Option<String>, value: &str) {
    if field.as_deref().is_none_or(str::is_empty) {
        *field = Some(value.to_owned());
    }
}

fn number<N: Copy + Default + PartialEq>(field: &mut Option<N>, value: N) {
    if field.is_none_or(|n| n == N::default()) {
        *field = Some(value);
    }
}

/// Fills in a pod.
pub(crate) fn pod(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    pod_spec(spec);
    spec.enable_service_links.get_or_insert(true);
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        if let Some(resources) = &mut container.resources {
            requests_from_limits(resources);
        }
        if spec.host_network == Some(true) {
            for port in container.ports.iter_mut().flatten() {
                number(&mut port.host_port, port.container_port);
            }
        }
    }
    text(&mut spec.service_account_name, "default");
    spec.service_account = spec.service_account_name.clone();
    priority(spec);
    for (key, seconds) in TOLERATIONS {
        tolerate(spec, key, seconds);
    }
}

/// Fills in a pod's spec, or a template's.
pub(crate) fn pod_spec(spec: &mut PodSpec) {
    text(&mut spec.dns_policy, "ClusterFirst");
    text(&mut spec.restart_policy, "Always");
    text(&mut spec.scheduler_name, "default-scheduler");
    spec.security_context.get_or_insert_with(PodSecurityContext::default);
    spec.termination_grace_period_seconds.get_or_insert(GRACE_SECONDS);
    // One account under its two names: the old one follows the new one.
    let new = spec.service_account_name.take().filter(|n| !n.is_empty());
    spec.service_account_name = new.or_else(|| spec.service_account.take().filter(|n| !n.is_empty()));
    spec.service_account = spec.service_account_name.clone();
    if let Some(overhead) = &mut spec.overhead {
        canonical(overhead);
    }
    for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container(c);
    }
    for c in spec.ephemeral_containers.iter_mut().flatten() {
        pull_policy(&mut c.image_pull_policy, c.image.as_deref());
        text(&mut c.termination_message_path, "/dev/termination-log");
        text(&mut c.termination_message_policy, "File");
        // They are refused, and for that reason alone.
        c.ports.iter_mut().flatten().for_each(container_port);
        c.env.iter_mut().flatten().for_each(variable);
    }
    for v in spec.volumes.iter_mut().flatten() {
        volume(v);
    }
}

fn container(c: &mut Container) {
    pull_policy(&mut c.image_pull_policy, c.image.as_deref());
    text(&mut c.termination_message_path, "/dev/termination-log");
    text(&mut c.termination_message_policy, "File");
    let resources = c.resources.get_or_insert_with(ResourceRequirements::default);
    for list in [&mut resources.limits, &mut resources.requests].into_iter().flatten() {
        canonical(list);
    }
    c.ports.iter_mut().flatten().for_each(container_port);
    c.env.iter_mut().flatten().for_each(variable);
    for p in [&mut c.liveness_probe, &mut c.readiness_probe, &mut c.startup_probe].into_iter().flatten() {
        probe(p);
    }
    if let Some(lifecycle) = &mut c.lifecycle {
        for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten() {
            lifecycle_handler(handler);
        }
    }
}

fn variable(var: &mut EnvVar) {
    let Some(from) = &mut var.value_from else { return };
    if let Some(field) = &mut from.field_ref {
        field_ref(field);
    }
    if let Some(resource) = &mut from.resource_field_ref {
        let divisor = resource.divisor.get_or_insert_with(|| Quantity("0".into()));
        divisor.0 = quantity::canonical(&divisor.0);
    }
}

fn container_port(port: &mut ContainerPort) {
    text(&mut port.protocol, "TCP");
}

/// `Always` for what may change under its name (`:latest`, or no tag), else `IfNotPresent`.
fn pull_policy(policy: &mut Option<String>, image: Option<&str>) {
    let latest = match image.unwrap_or_default() {
        "" => false,
        digest if digest.contains('@') => false,
        image => {
            let last = image.rsplit('/').next().unwrap_or(image);
            last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
        }
    };
    text(policy, if latest { "Always" } else { "IfNotPresent" });
}

fn probe(probe: &mut Probe) {
    number(&mut probe.timeout_seconds, 1);
    number(&mut probe.period_seconds, 10);
    number(&mut probe.success_threshold, 1);
    number(&mut probe.failure_threshold, 3);
    if let Some(get) = &mut probe.http_get {
        http_get(get);
    }
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn lifecycle_handler(handler: &mut LifecycleHandler) {
    if let Some(get) = &mut handler.http_get {
        http_get(get);
    }
}

fn http_get(get: &mut HTTPGetAction) {
    text(&mut get.path, "/");
    text(&mut get.scheme, "HTTP");
}

fn field_ref(field: &mut ObjectFieldSelector) {
    text(&mut field.api_version, "v1");
}

/// What has a limit and no request asks for its limit.
fn requests_from_limits(resources: &mut ResourceRequirements) {
    let Some(limits) = &resources.limits else { return };
    if limits.is_empty() {
        return;
    }
    let requests = resources.requests.get_or_insert_default();
    for (name, limit) in limits {
        if !requests.contains_key(name) {
            requests.insert(name.clone(), limit.clone());
        }
    }
}

/// Writes quantities the one way Kubernetes writes them; what is none stays for validation to refuse.
pub(crate) fn canonical(list: &mut BTreeMap<String, Quantity>) {
    for amount in list.values_mut() {
        amount.0 = quantity::canonical_amount(&amount.0);
    }
}

fn volume(v: &mut Volume) {
    if super::validate::volume_sources(v).is_empty() {
        v.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    if let Some(size) = v.empty_dir.as_mut().and_then(|e| e.size_limit.as_mut()) {
        size.0 = quantity::canonical(&size.0);
    }
    if let Some(secret) = &mut v.secret {
        secret.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(map) = &mut v.config_map {
        map.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(api) = &mut v.downward_api {
        api.default_mode.get_or_insert(FILE_MODE);
        api.items.iter_mut().flatten().filter_map(|i| i.field_ref.as_mut()).for_each(field_ref);
    }
    if let Some(projected) = &mut v.projected {
        projected.default_mode.get_or_insert(FILE_MODE);
        for source in projected.sources.iter_mut().flatten() {
            if let Some(token) = &mut source.service_account_token {
                token.expiration_seconds.get_or_insert(TOKEN_SECONDS);
            }
            if let Some(api) = &mut source.downward_api {
                api.items.iter_mut().flatten().filter_map(|i| i.field_ref.as_mut()).for_each(field_ref);
            }
        }
    }
    if let Some(host) = &mut v.host_path {
        host.type_.get_or_insert_default();
    }
    if let Some(image) = &mut v.image {
        pull_policy(&mut image.pull_policy, image.reference.as_deref());
    }
    if let Some(iscsi) = &mut v.iscsi {
        text(&mut iscsi.iscsi_interface, "default");
    }
    if let Some(claim) =
        v.ephemeral.as_mut().and_then(|e| e.volume_claim_template.as_mut()).map(|t| &mut t.spec)
    {
        text(&mut claim.volume_mode, "Filesystem");
    }
}

/// The priorities every cluster has; there are no other classes.
pub(crate) fn priority_of(class: &str) -> Option<i32> {
    match class {
        "" => Some(0),
        "system-cluster-critical" => Some(2_000_000_000),
        "system-node-critical" => Some(2_000_001_000),
        _ => None,
    }
}

fn priority(spec: &mut PodSpec) {
    if let Some(value) = priority_of(spec.priority_class_name.as_deref().unwrap_or_default()) {
        spec.priority.get_or_insert(value);
    }
    text(&mut spec.preemption_policy, "PreemptLowerPriority");
}

fn tolerate(spec: &mut PodSpec, key: &str, seconds: i64) {
    let tolerations = spec.tolerations.get_or_insert_default();
    let covered = tolerations.iter().any(|t| {
        let of =
            |field: &Option<String>, value: &str| field.as_deref().is_none_or(|f| f.is_empty() || f == value);
        of(&t.key, key) && of(&t.effect, "NoExecute")
    });
    if !covered {
        tolerations.push(Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            toleration_seconds: Some(seconds),
            value: None,
        });
    }
}

/// The quality of service that a pod's requests and limits amount to.
pub(crate) fn qos_class(spec: &PodSpec) -> &'static str {
    let given = |list: Option<&BTreeMap<String, Quantity>>, name: &str| {
        let milli = list.and_then(|l| l.get(name)).and_then(|q| quantity::parse_milli(&q.0).ok());
        milli.map(|m| m.max(0))
    };
    let (mut any, mut guaranteed) = (false, true);
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let resources = container.resources.as_ref();
        for name in ["cpu", "memory"] {
            let request = given(resources.and_then(|r| r.requests.as_ref()), name);
            let limit = given(resources.and_then(|r| r.limits.as_ref()), name).filter(|m| *m > 0);
            any |= request.is_some_and(|m| m > 0) || limit.is_some();
            // Who asks for nothing at all is promised nothing, whatever the limit.
            guaranteed &= limit.is_some() && request.or(limit) == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn defaulted(spec: serde_json::Value) -> serde_json::Value {
        let mut pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": spec})).unwrap();
        super::pod(&mut pod);
        let once = serde_json::to_value(&pod).unwrap();
        super::pod(&mut pod);
        assert_eq!(serde_json::to_value(&pod).unwrap(), once, "idempotent");
        once["spec"].clone()
    }

    #[test]
    fn a_bare_pod_gets_what_kubernetes_gives_it() {
        let got = defaulted(
            json!({"containers": [{"name": "c", "image": "bb:peer", "ports": [{"containerPort": 80}]}]}),
        );
        let toleration = |key: &str, seconds: i64| json!({"effect": "NoExecute", "key": key, "operator": "Exists", "tolerationSeconds": seconds});
        assert_eq!(
            got,
            json!({
                "containers": [{
                    "name": "c", "image": "bb:peer", "imagePullPolicy": "IfNotPresent", "resources": {},
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "dnsPolicy": "ClusterFirst", "enableServiceLinks": true,
                "preemptionPolicy": "PreemptLowerPriority", "priority": 0, "restartPolicy": "Always",
                "schedulerName": "default-scheduler", "securityContext": {}, "serviceAccount": "default",
                "serviceAccountName": "default", "terminationGracePeriodSeconds": 30,
                "tolerations": [toleration("node.kubernetes.io/not-ready", 300), toleration("node.kubernetes.io/unreachable", 1)],
            })
        );
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("host:5000/a", "Always"),
            ("host:5000/a:1", "IfNotPresent"),
            ("a@sha256:00", "IfNotPresent"),
        ] {
            let got = defaulted(json!({"containers": [{"name": "c", "image": image}]}));
            assert_eq!(got["containers"][0]["imagePullPolicy"], policy, "{image}");
        }
    }

    #[test]
    fn limits_become_requests_and_host_networks_take_host_ports() {
        let got = defaulted(json!({
            "hostNetwork": true,
            "containers": [{
                "name": "c", "image": "a", "ports": [{"containerPort": 80}, {"containerPort": 81, "hostPort": 82}],
                "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}, "requests": {"cpu": "0.5"}},
            }],
        }));
        let c = &got["containers"][0];
        assert_eq!(c["resources"]["requests"], json!({"cpu": "500m", "memory": "1Gi"}));
        assert_eq!(c["resources"]["limits"], json!({"cpu": "1", "memory": "1Gi"}));
        assert_eq!((&c["ports"][0]["hostPort"], &c["ports"][1]["hostPort"]), (&json!(80), &json!(82)));
    }

    #[test]
    fn volumes_probes_and_references_are_filled_in() {
        let got = defaulted(json!({
            "volumes": [{"name": "a"}, {"name": "b", "secret": {"secretName": "s"}}, {"name": "h", "hostPath": {"path": "/x"}}],
            "serviceAccount": "robot",
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "c", "image": "a",
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "livenessProbe": {"httpGet": {"port": 80}},
            }],
        }));
        assert_eq!(got["volumes"][0], json!({"name": "a", "emptyDir": {}}));
        assert_eq!(got["volumes"][1]["secret"]["defaultMode"], 420);
        assert_eq!(got["volumes"][2]["hostPath"]["type"], "");
        assert_eq!(got["serviceAccountName"], "robot");
        assert_eq!(got["tolerations"].as_array().unwrap().len(), 1);
        let c = &got["containers"][0];
        assert_eq!(c["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!(
            c["livenessProbe"],
            json!({"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                   "successThreshold": 1, "failureThreshold": 3})
        );
    }

    #[test]
    fn the_quality_of_service_is_kubernetes() {
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (json!({"limits": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "0"}}), "Burstable"),
            (json!({"requests": {"cpu": "0", "memory": "0"}}), "BestEffort"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
        ] {
            let spec = json!({"containers": [{"name": "c", "image": "a", "resources": resources}]});
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            assert_eq!(qos_class(&spec), class, "{spec:?}");
        }
    }
}
