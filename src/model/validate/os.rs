//! `spec.os`: fields that a pod's operating system does not have.
//!
//! Owns: Kubernetes' lists of them. A pod that does not say its system may have all.

use k8s_openapi::api::core::v1::{PodSecurityContext, PodSpec, SecurityContext};

use crate::model::fault::{Faults, Path};

const NOT_OF_WINDOWS: &str = "cannot be set for a windows pod";
const NOT_OF_LINUX: &str = "windows options cannot be set for a linux pod";

/// Refuses what a pod's system does not have; one of an unknown system is refused elsewhere.
pub(super) fn fields(spec: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    match spec.os.as_ref().map(|os| os.name.as_str()) {
        Some("windows") => {
            of_windows_pod(spec, at, faults);
            each_context(spec, at, |context, at| of_windows_container(context, at, faults));
        }
        Some("linux") => {
            if spec.security_context.as_ref().is_some_and(|context| context.windows_options.is_some()) {
                faults.forbidden(&at.field("securityContext").field("windowsOptions"), NOT_OF_LINUX);
            }
            each_context(spec, at, |context, at| {
                if context.windows_options.is_some() {
                    faults.forbidden(&at.field("windowsOptions"), NOT_OF_LINUX);
                }
            });
        }
        _ => {}
    }
}

/// The containers' security contexts, in the order in which Kubernetes looks at them.
fn each_context(spec: &PodSpec, at: &Path<'_>, mut look: impl FnMut(&SecurityContext, &Path<'_>)) {
    let init = spec.init_containers.iter().flatten().enumerate();
    let init = init.map(|(index, c)| ("initContainers", index, c.security_context.as_ref()));
    let main = spec.containers.iter().enumerate();
    let main = main.map(|(index, c)| ("containers", index, c.security_context.as_ref()));
    for (list, index, context) in init.chain(main) {
        if let Some(context) = context {
            look(context, &at.field(list).index(index).field("securityContext"));
        }
    }
}

fn of_windows_pod(spec: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    let none = PodSecurityContext::default();
    let context = spec.security_context.as_ref().unwrap_or(&none);
    let within = at.field("securityContext");
    for (at, field, set) in [
        (&within, "appArmorProfile", context.app_armor_profile.is_some()),
        (&within, "seLinuxOptions", context.se_linux_options.is_some()),
        (at, "hostUsers", spec.host_users.is_some()),
        (at, "hostPID", spec.host_pid == Some(true)),
        (at, "hostIPC", spec.host_ipc == Some(true)),
        (&within, "seccompProfile", context.seccomp_profile.is_some()),
        (&within, "fsGroup", context.fs_group.is_some()),
        (&within, "fsGroupChangePolicy", context.fs_group_change_policy.is_some()),
        (&within, "sysctls", context.sysctls.as_ref().is_some_and(|all| !all.is_empty())),
        (at, "shareProcessNamespace", spec.share_process_namespace.is_some()),
        (&within, "runAsUser", context.run_as_user.is_some()),
        (&within, "runAsGroup", context.run_as_group.is_some()),
        (&within, "supplementalGroups", context.supplemental_groups.is_some()),
        (&within, "supplementalGroupsPolicy", context.supplemental_groups_policy.is_some()),
        (&within, "seLinuxChangePolicy", context.se_linux_change_policy.is_some()),
    ] {
        if set {
            faults.forbidden(&at.field(field), NOT_OF_WINDOWS);
        }
    }
}

fn of_windows_container(context: &SecurityContext, at: &Path<'_>, faults: &mut Faults) {
    for (field, set) in [
        ("appArmorProfile", context.app_armor_profile.is_some()),
        ("seLinuxOptions", context.se_linux_options.is_some()),
        ("seccompProfile", context.seccomp_profile.is_some()),
        ("capabilities", context.capabilities.is_some()),
        ("readOnlyRootFilesystem", context.read_only_root_filesystem.is_some()),
        ("privileged", context.privileged.is_some()),
        ("allowPrivilegeEscalation", context.allow_privilege_escalation.is_some()),
        ("procMount", context.proc_mount.is_some()),
        ("runAsUser", context.run_as_user.is_some()),
        ("runAsGroup", context.run_as_group.is_some()),
    ] {
        if set {
            faults.forbidden(&at.field(field), NOT_OF_WINDOWS);
        }
    }
}
