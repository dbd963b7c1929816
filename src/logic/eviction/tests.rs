//! Rows of eviction: thresholds, conditions, who goes and what it is told.

use serde_json::json;

use super::*;

const GIB: u64 = 1 << 30;

fn pod(spec: serde_json::Value) -> v1::Pod {
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
}

#[test]
fn thresholds_are_read_as_kubernetes_writes_them() {
    let read = "memory.available<100Mi, nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,\
                imagefs.inodesFree<5%";
    let read = Thresholds::parse(read).unwrap();
    assert_eq!(read.least, Thresholds::default().least);
    let left = |disk| Left { disk: (disk, 1000), ..Left::default() };
    let is_low = |of: &Thresholds, disk| of.is_low(Signal::Disk, &left(disk));
    assert!(is_low(&read, 99) && !is_low(&read, 100) && !is_low(&Thresholds::parse("").unwrap(), 0));
    for bad in ["memory<1", "memory.available", "memory.available<x", "nodefs.available<101%", "a<1"] {
        assert!(Thresholds::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_condition_holds_for_a_while_after_it_was_last_seen() {
    let thresholds = Thresholds::parse("memory.available<1Gi,pid.available<10%").unwrap();
    let mut watch = Watch::default();
    let left = |memory, pids| Left { memory: (memory, 8 * GIB), pids: (pids, 100), ..Left::default() };
    assert_eq!(watch.look(&thresholds, &left(GIB, 10), 0), []);
    assert_eq!(watch.pressure(TRANSITION, 0), Pressure::default());
    assert_eq!(watch.look(&thresholds, &left(GIB - 1, 9), 1_000), [Signal::Memory, Signal::Pids]);
    assert_eq!(watch.look(&thresholds, &left(GIB, 9), 200_000), [Signal::Pids]);
    let all = Pressure { memory: true, disk: false, pids: true };
    assert_eq!(watch.pressure(TRANSITION, 300_000), all, "no flapping");
    assert_eq!(watch.pressure(TRANSITION, 301_000), Pressure { memory: false, ..all });
    assert_eq!(watch.pressure(Duration::from_secs(1), 201_000), Pressure::default(), "or as was asked for");
    assert_eq!(watch.pressure(TRANSITION, 500_000), Pressure::default());
    assert_eq!(watch.pressure(TRANSITION, -500_000), Pressure::default(), "the clock was set back");
    assert_eq!(watch.look(&thresholds, &Left::default(), 0), [], "what is not known is not low");
}

#[test]
fn a_disk_with_room_but_no_more_inodes_is_under_pressure_and_the_pod_with_most_files_goes() {
    let thresholds = Thresholds::default();
    let mut watch = Watch::default();
    let of = |inodes| Left { disk: (90, 100), inodes, ..Left::default() };
    assert_eq!(watch.look(&thresholds, &of((50, 1000)), 0), []);
    assert_eq!(watch.look(&thresholds, &of((0, 0)), 0), [], "a file system that counts none");
    assert_eq!(watch.look(&thresholds, &of((49, 1000)), 0), [Signal::Inodes]);
    assert_eq!(watch.pressure(TRANSITION, 0), Pressure { disk: true, ..Pressure::default() });
    let one = pod(json!({"containers": [{"name": "c"}]}));
    let used = [Some(3), None, Some(900)].map(|layer_inodes| Used { layer_inodes, ..Used::default() });
    let all = used.each_ref().map(|used| Candidate { pod: &one, is_static: false, used });
    let (index, told) = choose(&[Signal::Inodes], &of((49, 1000)), &thresholds, &all).unwrap();
    let words = "The node was low on resource: inodes. Threshold quantity: 50, available: 49. ";
    assert_eq!((index, told.as_str()), (2, words));
    let unknown = all.get(1..2).unwrap();
    assert_eq!(choose(&[Signal::Inodes], &of((49, 1000)), &thresholds, unknown), None, "nobody knows of it");
}

#[test]
fn pods_over_their_limits_are_told_so_in_kubernetes_words() {
    let limited = |amount: &str| json!({"limits": {"ephemeral-storage": amount}});
    let one = pod(json!({
        "containers": [{"name": "c", "resources": limited("1Mi")}, {"name": "d", "resources": limited("1Mi")},
            {"name": "free"}],
        "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "2Mi"}}, {"name": "w", "emptyDir": {}},
            {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1"}}]
    }));
    assert!(is_limited(&one));
    assert!(!is_limited(&pod(
        json!({"containers": [{"name": "c"}], "volumes": [{"name": "w", "emptyDir": {}}]})
    )));
    let used = |containers: &[(&str, u64)], volumes: &[(&str, u64)]| {
        let map =
            |all: &[(&str, u64)]| all.iter().map(|(name, kib)| ((*name).to_owned(), kib * 1024)).collect();
        Used { containers: map(containers), volumes: map(volumes), ..Used::default() }
    };
    for (used, told) in [
        (used(&[("c", 1024)], &[("v", 1024)]), None),
        (used(&[], &[("v", 2049)]), Some("Usage of EmptyDir volume \"v\" exceeds the limit \"2Mi\". ")),
        (
            used(&[("free", 2000)], &[("w", 100)]),
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 2097152. "),
        ),
        (used(&[("d", 1025)], &[]), Some("Container d exceeded its local ephemeral storage limit \"1Mi\". ")),
    ] {
        let of = |pod: &v1::Pod, is_static| over_limit(&Candidate { pod, is_static, used: &used });
        assert_eq!(of(&one, false).as_deref(), told, "{used:?}");
        // They would not come back, or the node needs them.
        let critical = |priority| {
            let mut pod = one.clone();
            pod.spec.as_mut().unwrap().priority = Some(priority);
            pod
        };
        assert_eq!(of(&one, true), None, "static");
        assert_eq!(of(&critical(2_000_000_000), false), None, "critical");
        assert_eq!(of(&critical(1_999_999_999), false).as_deref(), told);
    }
    let alone = pod(json!({"containers": [{"name": "c", "resources": limited("1Mi")}]}));
    assert_eq!(
        over_limit(&Candidate { pod: &alone, is_static: false, used: &used(&[("c", 1025)], &[]) }).unwrap(),
        "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "
    );
}

#[test]
fn who_uses_more_than_it_asked_for_goes_first_then_by_priority_then_by_how_much() {
    let of = |request: &str, priority: i64| {
        let resources = json!({"requests": {"memory": request}});
        pod(json!({"priority": priority, "containers": [{"name": "c", "resources": resources}]}))
    };
    let used = |memory| Used { memory: Some(memory), ..Used::default() };
    let rows = [
        // Within what it asked for, of the lowest priority and using the most.
        (of("8Gi", -5), used(4 * GIB), false),
        (of("1Gi", 7), used(3 * GIB), false),
        (of("0", 2), used(GIB), false),
        (of("1Gi", 2), used(4 * GIB), false),
        (of("0", 1_999_999_999), used(7 * GIB), false),
        (of("0", 2_000_000_000), used(7 * GIB), false),
        (of("0", -9), used(7 * GIB), true),
    ];
    let left = Left { memory: (50 << 20, 8 * GIB), ..Left::default() };
    let mut order = Vec::new();
    let mut gone: Vec<usize> = Vec::new();
    loop {
        let here: Vec<usize> = (0..rows.len()).filter(|i| !gone.contains(i)).collect();
        let all: Vec<Candidate<'_>> = here
            .iter()
            .map(|i| Candidate { pod: &rows[*i].0, is_static: rows[*i].2, used: &rows[*i].1 })
            .collect();
        let Some((index, told)) = choose(&[Signal::Memory], &left, &Thresholds::default(), &all) else {
            break;
        };
        assert_eq!(
            told,
            "The node was low on resource: memory. Threshold quantity: 102400Ki, available: 51200Ki. "
        );
        gone.push(here[index]);
        order.push(here[index]);
    }
    assert_eq!(order, [3, 2, 1, 4, 0], "critical and static pods stay");
}

#[test]
fn a_pod_that_goes_for_the_disk_is_told_which_container_used_it() {
    let one = pod(json!({"containers": [{"name": "c"}]}));
    let used = Used { containers: [("c".to_owned(), 5 << 10)].into(), ..Used::default() };
    let candidate = [Candidate { pod: &one, is_static: false, used: &used }];
    let left = Left { disk: (9 << 10, 100 << 10), ..Left::default() };
    let (_, told) = choose(&[Signal::Disk], &left, &Thresholds::default(), &candidate).unwrap();
    assert_eq!(
        told,
        "The node was low on resource: ephemeral-storage. Threshold quantity: 10Ki, available: 9Ki. Container c was \
         using 5Ki, request is 0, has larger consumption of ephemeral-storage. "
    );
}

#[test]
fn a_pod_that_goes_for_memory_is_told_which_container_used_more_than_it_asked_for() {
    let asks = |amount: &str| json!({"requests": {"memory": amount}});
    let one = pod(json!({"containers": [
        {"name": "c", "resources": asks("1Gi")}, {"name": "d"}, {"name": "e", "resources": asks("8Mi")}]}));
    let container_memory = ["c", "d", "e"].map(|name| (name.to_owned(), 9 << 20)).into();
    let used = Used { memory: Some(27 << 20), container_memory, ..Used::default() };
    let candidate = [Candidate { pod: &one, is_static: false, used: &used }];
    let left = Left { memory: (50 << 20, 8 * GIB), ..Left::default() };
    let (_, told) = choose(&[Signal::Memory], &left, &Thresholds::default(), &candidate).unwrap();
    assert_eq!(
        told,
        "The node was low on resource: memory. Threshold quantity: 102400Ki, available: 51200Ki. Container d was \
         using 9216Ki, request is 0, has larger consumption of memory. Container e was using 9216Ki, request is \
         8Mi, has larger consumption of memory. "
    );
}

#[test]
fn nobody_goes_for_what_is_not_known_and_the_next_signal_has_its_turn() {
    let one = pod(json!({"containers": [{"name": "c"}]}));
    let silent = Used { pids: Some(7), ..Used::default() };
    let small = Used { memory: Some(1), pids: Some(3), ..Used::default() };
    let of = |used| Candidate { pod: &one, is_static: false, used };
    let left = Left { memory: (1, 8 * GIB), pids: (1, 100), ..Left::default() };
    let thresholds = Thresholds::parse("memory.available<1Gi,pid.available<10%").unwrap();
    let chosen = |low: &[Signal], all: &[Candidate<'_>]| choose(low, &left, &thresholds, all);
    let both = [Signal::Memory, Signal::Pids];
    let (index, told) = chosen(&both, &[of(&silent), of(&small)]).unwrap();
    assert!(index == 1 && told.starts_with("The node was low on resource: memory. "), "{index} {told}");
    assert_eq!(chosen(&[Signal::Memory], &[of(&silent)]), None);
    let (index, told) = chosen(&both, &[of(&silent)]).unwrap();
    let pids = "The node was low on resource: pids. Threshold quantity: 10, available: 1. ";
    assert_eq!((index, told.as_str()), (0, pids));
    assert_eq!(chosen(&[], &[of(&small)]), None);
}

#[test]
fn who_was_evicted_is_waited_for_but_not_for_ever() {
    let low = vec![Signal::Memory, Signal::Disk];
    let turn = |leaving: &[i64], now_ms| Watch::turn(low.clone(), leaving.iter().copied(), now_ms);
    assert_eq!(turn(&[], 1_000), low);
    assert_eq!(turn(&[1_000], 31_999), []);
    assert_eq!(turn(&[1_000], 32_000), low);
    assert_eq!(turn(&[1_000, 31_000], 40_000), []);
    assert_eq!(turn(&[31_000], 30_999), low, "the clock was set back");
}

/// Images and layers beside the pods, on a file system of their own, and images there alone.
const LAYOUTS: [Layout; 3] = [
    Layout { node: 1, images: 1, layers: 1 },
    Layout { node: 1, images: 2, layers: 2 },
    Layout { node: 1, images: 2, layers: 1 },
];

#[test]
fn images_have_thresholds_of_their_own_where_they_have_a_file_system_of_their_own() {
    let [beside, apart, alone] = LAYOUTS;
    let of = |layout, disk, image_disk, image_inodes| Left {
        layout,
        disk: (disk, 1000),
        image_disk: (image_disk, 1000),
        image_inodes: (image_inodes, 1000),
        ..Left::default()
    };
    let default = Thresholds::default();
    let asked = Thresholds::parse("imagefs.available<15%").unwrap();
    for (thresholds, left, low) in [
        (&default, of(beside, 140, 140, 10), vec![]),
        (&default, of(beside, 99, 99, 500), vec![Signal::Disk]),
        (&default, of(apart, 140, 149, 500), vec![Signal::ImageDisk]),
        (&default, of(alone, 140, 150, 49), vec![Signal::ImageInodes]),
        (&default, of(apart, 99, 800, 500), vec![Signal::Disk]),
        // Who names it has it hold for the one file system there is.
        (&asked, of(beside, 140, 140, 10), vec![Signal::ImageDisk]),
    ] {
        let mut watch = Watch::default();
        assert_eq!(watch.look(thresholds, &left, 0), low, "{left:?}");
        let disk = !low.is_empty();
        assert_eq!(watch.pressure(TRANSITION, 0), Pressure { disk, ..Pressure::default() });
    }
    let of_images = |layout: Layout| {
        Signal::ALL.into_iter().filter(|signal| layout.is_of_images(*signal)).collect::<Vec<_>>()
    };
    let own = vec![Signal::ImageDisk, Signal::ImageInodes];
    assert_eq!(of_images(beside), [vec![Signal::Disk, Signal::Inodes], own.clone()].concat());
    assert_eq!((of_images(apart), of_images(alone)), (own.clone(), own));
}

#[test]
fn who_goes_is_who_uses_most_of_the_file_system_that_is_low() {
    let [beside, apart, alone] = LAYOUTS;
    let one = pod(json!({"containers": [{"name": "c"}]}));
    let used = |log: u64, layer: u64| Used {
        containers: [("c".to_owned(), log + layer)].into(),
        layers: Some(layer),
        inodes: log,
        layer_inodes: Some(layer),
        ..Used::default()
    };
    // The first writes logs, the second into its own files, the third some of both.
    let all = [used(900, 10), used(20, 800), used(600, 600)];
    let all = all.each_ref().map(|used| Candidate { pod: &one, is_static: false, used });
    let chosen = |layout, signal| {
        let left = Left { layout, ..Left::default() };
        choose(&[signal], &left, &Thresholds::default(), &all).map(|(index, _)| index)
    };
    for (layout, signals, index) in [
        (beside, [Signal::Disk, Signal::Inodes], Some(2)),
        (beside, [Signal::ImageDisk, Signal::ImageInodes], Some(2)),
        (apart, [Signal::Disk, Signal::Inodes], Some(0)),
        (apart, [Signal::ImageDisk, Signal::ImageInodes], Some(1)),
        (alone, [Signal::Disk, Signal::Inodes], Some(2)),
        (alone, [Signal::ImageDisk, Signal::ImageInodes], None),
    ] {
        for signal in signals {
            assert_eq!(chosen(layout, signal), index, "{layout:?} {signal:?}");
        }
    }
    // A runtime that does not tell of layers.
    let silent = Used { containers: [("c".to_owned(), 9)].into(), ..Used::default() };
    let left = Left { layout: apart, image_disk: (140 << 10, 1000 << 10), ..Left::default() };
    let of = |used| [Candidate { pod: &one, is_static: false, used }];
    let low = [Signal::ImageDisk];
    assert_eq!(choose(&low, &left, &Thresholds::default(), &of(&silent)), None);
    let (_, told) = choose(&low, &left, &Thresholds::default(), &of(all[1].used)).unwrap();
    let words =
        "The node was low on resource: ephemeral-storage. Threshold quantity: 150Ki, available: 140Ki. ";
    assert!(told.starts_with(words), "{told}");
}
