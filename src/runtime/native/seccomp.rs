//! The default system call filter, compiled to BPF.
//!
//! Owns: turning the tables into a program. Invariant: deny by default; a call that is not allowed fails with EPERM,
//! and `clone3`, whose flags a filter cannot see, with ENOSYS, so that C libraries fall back to `clone`.
//! The filter is put on in the container, just before its program: see `shim/executor.rs`.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

use super::seccomp_table::{
    ALWAYS, ALWAYS_HERE, CLONE_NAMESPACES, PERSONALITIES, WITH_CAPABILITY, WITH_RAWIO,
};

/// The filter for a container with these capabilities (names without `CAP_`).
pub(super) fn default_filter(capabilities: &BTreeSet<String>) -> Result<BpfProgram, BackendError> {
    // No rules under a call: allowed whatever its arguments.
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALWAYS.iter().chain(ALWAYS_HERE).map(|&call| (call, Vec::new())).collect();
    let admin = capabilities.contains("SYS_ADMIN");
    for (capability, calls) in WITH_CAPABILITY {
        if capabilities.contains(*capability) {
            rules.extend(calls.iter().map(|&call| (call, Vec::new())));
        }
    }
    if capabilities.contains("SYS_RAWIO") {
        rules.extend(WITH_RAWIO.iter().map(|&call| (call, Vec::new())));
    }
    if !admin {
        let plain = SeccompCondition::new(0, Len::Qword, Op::MaskedEq(CLONE_NAMESPACES), 0)?;
        rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![plain])?]);
    }
    // AF_VSOCK would reach the hypervisor past every network namespace.
    rules.insert(
        libc::SYS_socket,
        vec![SeccompRule::new(vec![SeccompCondition::new(0, Len::Dword, Op::Ne, libc::AF_VSOCK as u64)?])?],
    );
    let personalities = PERSONALITIES
        .iter()
        .map(|&domain| SeccompRule::new(vec![SeccompCondition::new(0, Len::Dword, Op::Eq, domain)?]));
    rules.insert(libc::SYS_personality, personalities.collect::<Result<_, _>>()?);

    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let filter =
        SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(if admin { program } else { no_clone3(arch).into_iter().chain(program).collect() })
}

/// Instructions that answer `clone3` with ENOSYS and let everything else fall through to what follows.
fn no_clone3(arch: TargetArch) -> [sock_filter; 5] {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // Offsets in `struct seccomp_data`.
    const NR: u32 = 0;
    const ARCH: u32 = 4;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    [
        step(LOAD_WORD, 0, 0, ARCH),
        step(JUMP_EQUAL, 0, 3, audit_arch(arch)),
        step(LOAD_WORD, 0, 0, NR),
        step(JUMP_EQUAL, 0, 1, libc::SYS_clone3 as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ]
}

/// `AUDIT_ARCH_*` of `linux/audit.h`: the ELF machine, 64-bit, little endian.
fn audit_arch(arch: TargetArch) -> u32 {
    const LE64: u32 = 0xc000_0000;
    match arch {
        TargetArch::x86_64 => LE64 | libc::EM_X86_64 as u32,
        TargetArch::aarch64 => LE64 | libc::EM_AARCH64 as u32,
        TargetArch::riscv64 => LE64 | libc::EM_RISCV as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn filters_compile_within_the_kernels_bound() {
        for capabilities in [set(&[]), set(&["SYS_ADMIN"]), set(&["SYS_RAWIO", "NET_ADMIN", "BPF"])] {
            let program = default_filter(&capabilities).unwrap();
            assert!(program.len() > ALWAYS.len() && program.len() <= 4096, "{}", program.len());
        }
    }

    #[test]
    fn only_an_administrator_may_use_clone3() {
        let guard = no_clone3(TargetArch::x86_64);
        assert_eq!(default_filter(&set(&[])).unwrap()[..guard.len()], guard);
        assert_ne!(default_filter(&set(&["SYS_ADMIN"])).unwrap()[..guard.len()], guard);
    }
}
