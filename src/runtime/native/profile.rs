//! Seccomp profiles from files (`seccompProfile: Localhost`), in the OCI's format that Docker and Kubernetes use.
//!
//! Owns: reading one and compiling it to BPF. A filter knows two actions, so a profile becomes a stack of filters, of
//! which the kernel takes the strictest answer. Invariant: what a profile says and this does not know is an error,
//! never left out, except names of system calls that this machine does not have, as everywhere.

use std::{collections::BTreeMap, io::Read as _, path::Path};

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde::Deserialize;
use serde_json::{Value, json};

/// No sensible profile is larger.
const PROFILE_BYTES: u64 = 1024 * 1024;
const EPERM: u32 = libc::EPERM as u32;

/// Compiles the profile in a file; to be put on one after the other.
///
/// # Errors
/// A sentence that names the file.
pub(super) fn load(path: &Path) -> Result<Vec<BpfProgram>, String> {
    let refuse = |cause: String| format!("cannot load seccomp profile {:?}: {cause}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| refuse(error.to_string()))?;
    file.take(PROFILE_BYTES).read_to_string(&mut text).map_err(|error| refuse(error.to_string()))?;
    compile(&text).map_err(refuse)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    /// Programs of foreign architectures do not run whatever it says.
    #[serde(rename = "architectures")]
    _architectures: Option<Vec<String>>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Condition>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    index: u8,
    value: u64,
    value_two: Option<u64>,
    op: String,
}

/// What to do about a call, the mildest first: of several answers the kernel takes the last in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Action {
    Allow,
    Log,
    Trace(u32),
    Errno(u32),
    Trap,
    KillThread,
    KillProcess,
}

impl Action {
    fn parse(text: &str, errno: Option<u32>) -> Result<Action, String> {
        Ok(match text {
            "SCMP_ACT_ALLOW" => Action::Allow,
            "SCMP_ACT_LOG" => Action::Log,
            "SCMP_ACT_TRACE" => Action::Trace(errno.unwrap_or(EPERM)),
            "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(EPERM)),
            "SCMP_ACT_TRAP" => Action::Trap,
            "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
            "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
            other => return Err(format!("action {other:?} is not supported")),
        })
    }

    /// In seccompiler's words.
    fn json(self) -> Value {
        match self {
            Action::Allow => "allow".into(),
            Action::Log => "log".into(),
            Action::Trace(number) => json!({"trace": number}),
            Action::Errno(number) => json!({"errno": number}),
            Action::Trap => "trap".into(),
            Action::KillThread => "kill_thread".into(),
            Action::KillProcess => "kill_process".into(),
        }
    }
}

/// System calls with the conditions of which one must hold, each a list that must hold as a whole; `None` always holds.
type Calls = BTreeMap<String, Option<Vec<Vec<Value>>>>;

fn compile(text: &str) -> Result<Vec<BpfProgram>, String> {
    let profile: Profile = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let default = Action::parse(&profile.default_action, profile.default_errno_ret)?;
    let arch: TargetArch = std::env::consts::ARCH.try_into().map_err(|error| format!("{error}"))?;
    let mut by_action: BTreeMap<Action, Calls> = BTreeMap::new();
    // What is milder than the default has to pass the default first.
    let mut milder = Calls::new();
    for rule in profile.syscalls.iter().flatten() {
        let action = Action::parse(&rule.action, rule.errno_ret)?;
        if action == default {
            continue;
        }
        let conditions = conditions(rule.args.as_deref().unwrap_or_default())?;
        for name in &rule.names {
            if filter(Action::Allow, Action::Log, &[(name.clone(), None)].into(), arch).is_err() {
                continue;
            }
            add(by_action.entry(action).or_default(), name, &conditions);
            if action < default {
                add(&mut milder, name, &conditions);
            }
        }
    }
    let mut programs = Vec::new();
    for (action, calls) in by_action.iter().filter(|(action, _)| **action != Action::Allow) {
        programs.push(filter(Action::Allow, *action, calls, arch)?);
    }
    // Last, since it may forbid to put on another one.
    if default != Action::Allow {
        programs.push(filter(default, Action::Allow, &milder, arch)?);
    }
    Ok(programs)
}

fn add(calls: &mut Calls, name: &str, conditions: &Option<Vec<Vec<Value>>>) {
    let known = calls.entry(name.to_owned()).or_insert_with(|| Some(Vec::new()));
    match (known, conditions) {
        (Some(known), Some(more)) => known.extend(more.iter().cloned()),
        // Once it always holds, conditions add nothing.
        (known, None) => *known = None,
        (None, Some(_)) => {}
    }
}

/// All conditions of a rule must hold; of several on one argument it is enough that one does, as in runc.
fn conditions(list: &[Condition]) -> Result<Option<Vec<Vec<Value>>>, String> {
    if list.is_empty() {
        return Ok(None);
    }
    let all = list.iter().map(condition).collect::<Result<Vec<Value>, String>>()?;
    let repeated = (1..list.len()).any(|at| list[..at].iter().any(|other| other.index == list[at].index));
    Ok(Some(if repeated { all.into_iter().map(|one| vec![one]).collect() } else { vec![all] }))
}

fn condition(of: &Condition) -> Result<Value, String> {
    let plain = |op: &str| (json!(op), of.value);
    let (op, value) = match of.op.as_str() {
        "SCMP_CMP_NE" => plain("ne"),
        "SCMP_CMP_LT" => plain("lt"),
        "SCMP_CMP_LE" => plain("le"),
        "SCMP_CMP_EQ" => plain("eq"),
        "SCMP_CMP_GE" => plain("ge"),
        "SCMP_CMP_GT" => plain("gt"),
        "SCMP_CMP_MASKED_EQ" => (json!({"masked_eq": of.value}), of.value_two.unwrap_or(0)),
        other => return Err(format!("comparison {other:?} is not supported")),
    };
    Ok(json!({"index": of.index, "type": "qword", "op": op, "val": value}))
}

fn filter(mismatch: Action, hit: Action, calls: &Calls, arch: TargetArch) -> Result<BpfProgram, String> {
    let rules: Vec<Value> = calls
        .iter()
        .flat_map(|(name, conditions)| match conditions {
            None => vec![json!({"syscall": name})],
            Some(all) => all.iter().map(|args| json!({"syscall": name, "args": args})).collect(),
        })
        .collect();
    let one = json!({"f": {"mismatch_action": mismatch.json(), "match_action": hit.json(), "filter": rules}});
    let mut compiled =
        compile_from_json(one.to_string().as_bytes(), arch).map_err(|error| error.to_string())?;
    compiled.remove("f").ok_or_else(|| "it is empty".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(profile: Value) -> usize {
        compile(&profile.to_string()).unwrap().len()
    }

    #[test]
    fn a_profile_becomes_one_filter_for_each_of_its_actions() {
        let rule = |names: &[&str], action: &str| json!({"names": names, "action": action});
        let allow = rule(&["read", "write", "no_such_call"], "SCMP_ACT_ALLOW");
        let kill = rule(&["reboot"], "SCMP_ACT_KILL_PROCESS");
        for (profile, count) in [
            (json!({"defaultAction": "SCMP_ACT_ALLOW"}), 0),
            (json!({"defaultAction": "SCMP_ACT_LOG"}), 1),
            (json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [allow]}), 1),
            (json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [allow, kill]}), 1),
            (
                json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86"],
                    "syscalls": [allow, kill, rule(&["getpid"], "SCMP_ACT_LOG")]}),
                3,
            ),
        ] {
            assert_eq!(programs(profile.clone()), count, "{profile}");
        }
        let args = json!([{"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"},
            {"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}]);
        let rule = json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": args});
        assert_eq!(programs(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]})), 1);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (profile, word) in [
            ("{", "EOF"),
            (r#"{"syscalls": []}"#, "defaultAction"),
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
            (
                r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["bpf"], "action": "SCMP_ACT_ALLOW",
                "includes": {"caps": ["CAP_BPF"]}}]}"#,
                "includes",
            ),
        ] {
            let refused = compile(profile).unwrap_err();
            assert!(refused.contains(word), "{refused}");
        }
        assert!(load(Path::new("/nowhere.json")).unwrap_err().contains("/nowhere.json"));
    }
}
