//! Probes and lifecycle hooks.

use k8s_openapi::{
    api::core::v1::{ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::NOT_NEGATIVE;
use crate::model::{
    fault::{Faults, Path, one_of},
    names,
};

/// Validates a probe; `must_be_one` is for those that need no second success.
pub(super) fn probe(probe: &Probe, must_be_one: bool, at: &Path<'_>, faults: &mut Faults) {
    handler(
        &[
            ("exec", probe.exec.as_ref().map(Action::Exec)),
            ("httpGet", probe.http_get.as_ref().map(Action::Get)),
            ("tcpSocket", probe.tcp_socket.as_ref().map(|t| Action::Port(&t.port))),
            ("grpc", probe.grpc.as_ref().map(|g| Action::Grpc(g.port))),
        ],
        at,
        faults,
    );
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        if let Some(value) = value.filter(|v| *v < 0) {
            faults.invalid(&at.field(field), &value, NOT_NEGATIVE);
        }
    }
    if let Some(seconds) = probe.termination_grace_period_seconds.filter(|s| *s <= 0) {
        faults.invalid(&at.field("terminationGracePeriodSeconds"), &seconds, "must be greater than 0");
    }
    if let Some(successes) = probe.success_threshold.filter(|s| must_be_one && *s != 1) {
        faults.invalid(&at.field("successThreshold"), &successes, "must be 1");
    }
}

/// Validates what happens around a container's life.
pub(super) fn lifecycle(lifecycle: &Lifecycle, at: &Path<'_>, faults: &mut Faults) {
    let mut hook = |field: &str, hook: Option<&LifecycleHandler>| {
        let Some(hook) = hook else { return };
        let actions = [
            ("exec", hook.exec.as_ref().map(Action::Exec)),
            ("httpGet", hook.http_get.as_ref().map(Action::Get)),
            ("tcpSocket", hook.tcp_socket.as_ref().map(|t| Action::Port(&t.port))),
            ("sleep", hook.sleep.as_ref().map(|s| Action::Sleep(s.seconds))),
        ];
        handler(&actions, &at.field(field), faults);
    };
    hook("postStart", lifecycle.post_start.as_ref());
    hook("preStop", lifecycle.pre_stop.as_ref());
}

enum Action<'a> {
    Exec(&'a ExecAction),
    Get(&'a HTTPGetAction),
    Port(&'a IntOrString),
    Grpc(i32),
    Sleep(i64),
}

/// Exactly one action, and that one valid.
fn handler(actions: &[(&str, Option<Action<'_>>)], at: &Path<'_>, faults: &mut Faults) {
    let mut any = false;
    for (field, action) in actions {
        let Some(action) = action else { continue };
        let at = at.field(field);
        if any {
            faults.forbidden(&at, "may not specify more than 1 handler type");
            continue;
        }
        any = true;
        match action {
            Action::Exec(exec) => {
                if exec.command.as_ref().is_none_or(Vec::is_empty) {
                    faults.required(&at.field("command"), "");
                }
            }
            Action::Get(get) => http_get(get, &at, faults),
            Action::Port(number) => port(number, &at.field("port"), faults),
            Action::Grpc(number) => port(&IntOrString::Int(*number), &at.field("port"), faults),
            Action::Sleep(seconds) => {
                if *seconds < 0 {
                    faults.invalid(&at.field("seconds"), seconds, NOT_NEGATIVE);
                }
            }
        }
    }
    if !any {
        faults.required(at, "must specify a handler type");
    }
}

fn http_get(get: &HTTPGetAction, at: &Path<'_>, faults: &mut Faults) {
    if get.path.as_deref().is_none_or(str::is_empty) {
        faults.required(&at.field("path"), "");
    }
    port(&get.port, &at.field("port"), faults);
    one_of(faults, &at.field("scheme"), get.scheme.as_deref(), &["HTTP", "HTTPS"]);
    for header in get.http_headers.iter().flatten() {
        let name = &header.name;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            faults.invalid(
                &at.field("httpHeaders"),
                name,
                "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex \
                 used for validation is '[-A-Za-z0-9]+')",
            );
        }
    }
}

/// Validates a port that is a number or a name.
pub(super) fn port(port: &IntOrString, at: &Path<'_>, faults: &mut Faults) {
    match port {
        IntOrString::Int(number) => {
            for detail in names::port_number(*number) {
                faults.invalid(at, number, &detail);
            }
        }
        IntOrString::String(name) => faults.invalid_each(at, name, names::port_name(name)),
    }
}
