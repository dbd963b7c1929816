//! The default system call filter, compiled to BPF.
//!
//! Owns: turning the tables into a program. Invariant: deny by default; a call that is not allowed fails with EPERM,
//! and `clone3`, whose flags a filter cannot see, with ENOSYS, so that C libraries fall back to `clone`. Calls that are
//! allowed whatever their arguments stand before the library's program, as ranges of numbers: the kernel translates a
//! program and tries each call on it whenever one is put on, a millisecond for a comparison per call.
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
    let admin = capabilities.contains("SYS_ADMIN");
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
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
    let conditional: BpfProgram = filter.try_into()?;
    let mut program = if admin { Vec::new() } else { no_clone3(arch).to_vec() };
    program.extend(allow(arch, &unconditional(capabilities)));
    program.extend(conditional);
    Ok(program)
}

/// Calls that are allowed whatever their arguments.
fn unconditional(capabilities: &BTreeSet<String>) -> BTreeSet<u32> {
    let has = |name: &str| capabilities.contains(name);
    let granted =
        WITH_CAPABILITY.iter().filter(|(capability, _)| has(capability)).flat_map(|(_, calls)| *calls);
    let raw = WITH_RAWIO.iter().filter(|_| has("SYS_RAWIO"));
    let calls = ALWAYS.iter().chain(ALWAYS_HERE).chain(granted).chain(raw);
    // Numbers of calls are small and never negative.
    calls.filter_map(|&call| u32::try_from(call).ok()).collect()
}

/// Instructions that allow these calls and let everything else fall through to what follows.
fn allow(arch: TargetArch, calls: &BTreeSet<u32>) -> Vec<sock_filter> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &call in calls {
        match ranges.last_mut() {
            Some((_, last)) if call - *last == 1 => *last = call,
            _ => ranges.push((call, call)),
        }
    }
    let mut program = vec![step(LOAD_WORD, 0, 0, ARCH), step(JUMP_EQUAL, 1, 0, audit_arch(arch))];
    // Over all that follows; longer than a conditional jump can be.
    program.push(step(JUMP, 0, 0, (1 + 3 * ranges.len()) as u32));
    program.push(step(LOAD_WORD, 0, 0, NR));
    for (first, last) in ranges {
        program.extend([
            step(JUMP_LESS_NOT, 0, 2, first),
            step(JUMP_GREATER, 1, 0, last),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        ]);
    }
    program
}

const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
/// "Greater or equal".
const JUMP_LESS_NOT: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;

fn step(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Instructions that answer `clone3` with ENOSYS and let everything else fall through to what follows.
fn no_clone3(arch: TargetArch) -> [sock_filter; 5] {
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

    /// What the kernel would do: the few instructions that filters are made of, after `bpf(4)` and `seccomp(2)`.
    fn verdict(program: &[sock_filter], arch: u32, nr: u32, first_argument: u64) -> u32 {
        let data = |offset: u32| match offset {
            0 => nr,
            4 => arch,
            16 => first_argument as u32,
            20 => (first_argument >> 32) as u32,
            other => panic!("offset {other}"),
        };
        let (mut at, mut a) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let mut branch = |taken: bool| at += usize::from(if taken { jt } else { jf });
            match code {
                LOAD_WORD => a = data(k),
                JUMP => at += k as usize,
                JUMP_EQUAL => branch(a == k),
                JUMP_GREATER => branch(a > k),
                JUMP_LESS_NOT => branch(a >= k),
                RETURN => return k,
                code if u32::from(code) == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => a &= k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    const HERE: u32 = 0xc000_003e;
    const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn each_call_is_allowed_if_a_table_says_so_and_no_other() {
        for capabilities in
            [set(&[]), set(&["SYS_ADMIN"]), set(&["SYS_RAWIO", "NET_ADMIN", "BPF", "SYS_PTRACE"])]
        {
            let program = default_filter(&capabilities).unwrap();
            let allowed = unconditional(&capabilities);
            let conditional = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_socket, libc::SYS_personality];
            // Numbers of the foreign x32 calls are these with bit 30 set.
            for nr in (0..1024).chain(0x4000_0000..0x4000_0400).chain([u32::MAX]) {
                if conditional.contains(&i64::from(nr)) && !allowed.contains(&nr) {
                    continue;
                }
                let expected = if allowed.contains(&nr) { libc::SECCOMP_RET_ALLOW } else { REFUSED };
                assert_eq!(verdict(&program, HERE, nr, 0), expected, "{capabilities:?} {nr}");
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn some_calls_depend_on_their_arguments_and_on_the_architecture() {
        let program = default_filter(&set(&[])).unwrap();
        let asked = |call: i64, argument| verdict(&program, HERE, call as u32, argument);
        assert_eq!(asked(libc::SYS_socket, libc::AF_INET as u64), libc::SECCOMP_RET_ALLOW);
        assert_eq!(asked(libc::SYS_socket, libc::AF_VSOCK as u64), REFUSED);
        assert_eq!(asked(libc::SYS_clone, libc::CLONE_VM as u64), libc::SECCOMP_RET_ALLOW);
        assert_eq!(asked(libc::SYS_clone, libc::CLONE_NEWUSER as u64), REFUSED);
        assert_eq!(asked(libc::SYS_personality, 0), libc::SECCOMP_RET_ALLOW);
        assert_eq!(asked(libc::SYS_personality, 0x10), REFUSED);
        assert_eq!(asked(libc::SYS_clone3, 0), libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        const I386: u32 = 0x4000_0003;
        assert_eq!(verdict(&program, I386, 1, 0), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn filters_are_short() {
        for capabilities in [set(&[]), set(&["SYS_ADMIN"]), set(&["SYS_RAWIO", "NET_ADMIN", "BPF"])] {
            let program = default_filter(&capabilities).unwrap();
            assert!(program.len() < ALWAYS.len(), "{}", program.len());
        }
    }

    #[test]
    fn only_an_administrator_may_use_clone3() {
        let guard = no_clone3(TargetArch::x86_64);
        assert_eq!(default_filter(&set(&[])).unwrap()[..guard.len()], guard);
        assert_ne!(default_filter(&set(&["SYS_ADMIN"])).unwrap()[..guard.len()], guard);
    }
}
