//! Which numbers of the node are a pod's own users (`hostUsers: false`).
//!
//! Owns: the choice of a range that no other pod of the machine has. Pure. Where it begins to look depends on the pod, so that
//! clusters that know nothing of each other on one machine seldom choose the same. (Source of lengths and of the file's
//! form: Kubernetes' `pkg/kubelet/userns`.)

use serde::{Deserialize, Serialize};

/// Users of a pod, and as many groups: all that programs of containers know.
pub const LENGTH: u32 = 65_536;
/// The first range is the node's own; beyond the last, numbers do not fit into signed ones, which some programs use.
const RANGES: u32 = (i32::MAX as u32).div_ceil(LENGTH) - 1;

/// What is written down of a pod's range, in Kubernetes' form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mappings {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

impl Mappings {
    /// Those of a range.
    pub fn of(first: u32) -> Mappings {
        let one = || vec![Mapping { host_id: first, container_id: 0, length: LENGTH }];
        Mappings { uid_mappings: one(), gid_mappings: one() }
    }

    /// The first number of the range; `None` when it is none of ours.
    pub fn first(&self) -> Option<u32> {
        let first = self.uid_mappings.first()?.host_id;
        (*self == Mappings::of(first) && first >= LENGTH).then_some(first)
    }
}

/// The first number of a free range for the pod of this uid; `None` when all are taken.
pub fn free(uid: &str, taken: &[u32]) -> Option<u32> {
    // FNV-1a, which is the same in every process.
    let hash =
        uid.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let overlaps = |first: u32| taken.iter().any(|other| other.abs_diff(first) < LENGTH);
    (0..RANGES).map(|step| (1 + (hash % RANGES + step) % RANGES) * LENGTH).find(|first| !overlaps(*first))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_is_read_as_it_was_written() {
        let text = serde_json::to_string(&Mappings::of(131_072)).unwrap();
        assert_eq!(
            text,
            r#"{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}"#
        );
        assert_eq!(serde_json::from_str::<Mappings>(&text).unwrap().first(), Some(131_072));
        assert_eq!(Mappings::of(0).first(), None, "the node's own");
    }

    #[test]
    fn when_all_are_taken_there_is_none() {
        let all: Vec<u32> = (1..=RANGES).map(|n| n * LENGTH).collect();
        assert_eq!(free("a", &all), None);
        assert_eq!(free("a", &all[1..]), Some(LENGTH));
    }

    proptest! {
        #[test]
        fn ranges_of_pods_never_overlap(uids in prop::collection::vec(".*", 1..50)) {
            let mut taken: Vec<u32> = Vec::new();
            for uid in uids {
                let first = free(&uid, &taken).unwrap();
                prop_assert!(first >= LENGTH && first.checked_add(LENGTH - 1).is_some_and(|last| last <= i32::MAX as u32));
                prop_assert!(taken.iter().all(|other| other.abs_diff(first) >= LENGTH));
                taken.push(first);
            }
        }
    }
}
