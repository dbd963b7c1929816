//! Images on their way from node to node: who is told of whom, what passes, and who gets nothing.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::messages::wire::{HeldAs, HeldImage, ImageHolders, ImagePart, ImageWanted, Open, RemovedImage};

const APP: &str = "docker.io/library/app:1";
const OTHER: &str = "docker.io/library/other:1";

fn id(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

fn held(name: &str, digit: char, since_ms: i64) -> HeldImage {
    HeldImage { name: name.into(), id: id(digit), held: HeldAs::ByHand, since_ms }
}

/// A pod that names an image.
fn pod_of(name: &str, node: &str, image: &str) -> Value {
    let mut pod = pod(name, node);
    pod["spec"]["containers"][0]["image"] = image.into();
    pod
}

/// Asks who has an image, until that is as wanted.
async fn holders(link: &LinkHandle<ToMaster>, name: &str) -> Result<ImageHolders, u16> {
    let wanted = Open::ImageHolders(ImageWanted { name: name.into(), by_hand: false });
    let mut stream = match link.open(wanted, Duration::from_secs(5)).await {
        Ok(stream) => stream,
        Err(NetError::Refused(code, _)) => return Err(code),
        Err(other) => panic!("{other}"),
    };
    let mut json = Vec::new();
    stream.read.read_to_end(&mut json).await.unwrap();
    Ok(serde_json::from_slice(&json).unwrap())
}

async fn until_held(link: &LinkHandle<ToMaster>, name: &str, expected: Result<&[&str], u16>) {
    loop {
        let told = holders(link, name).await.map(|told| told.nodes);
        let wanted = expected.map(|names| names.iter().map(|n| NodeName::from(*n)).collect::<Vec<_>>());
        if told == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn part(node: &str) -> Open {
    Open::ImagePart(ImagePart { node: node.into(), image: id('1'), digest: id('2') })
}

/// Answers each stream that the master opens to a node with `answer`; ends the bytes in order if `whole`, else breaks off.
fn serve(mut events: LinkEvents<ToNode>, answer: &'static [u8], whole: bool) {
    actix::spawn(async move {
        loop {
            match events.next().await {
                LinkEvent::Opened(Open::ImagePart(part), responder) => {
                    assert_eq!((part.image, part.digest), (id('1'), id('2')));
                    let mut stream = responder.accept().await.unwrap();
                    stream.write.write_all(answer).await.unwrap();
                    stream.write.flush().await.unwrap();
                    if whole {
                        stream.write.shutdown().await.unwrap();
                    }
                }
                LinkEvent::Closed(_) => return,
                _ => {}
            }
        }
    });
}

#[test]
fn a_node_is_told_who_has_an_image_that_its_pods_name_and_of_no_other() {
    system(async {
        let master = Master::start().await;
        let ((n1, _e1), (n2, _e2)) = (master.join("n1").await, master.join("n2").await);
        n1.send(
            Class::State,
            &ToMaster::Images(vec![held(APP, '1', 5), held("docker.io/library/other:1", '3', 5)]),
        )
        .unwrap();
        master.bench.create(Kind::Pod, pod_of("p", "n2", "app:1")).await;
        until_held(&n2, APP, Ok(&["n1"])).await;
        assert_eq!(
            holders(&n2, "docker.io/library/other:1").await.err(),
            Some(403),
            "no pod of it names that"
        );
        assert_eq!(holders(&n1, APP).await.err(), Some(403), "nor does one of the other node");
        // The newest is what counts, and what a node no longer has it no longer says.
        n1.send(Class::State, &ToMaster::Images(Vec::new())).unwrap();
        until_held(&n2, APP, Err(404)).await;
        master.stop().await;
    });
}

#[test]
fn a_node_speaks_of_its_own_images_and_what_it_said_goes_with_its_link() {
    let heard = Log::default();
    let log = heard.clone();
    let test = async {
        let master = Master::start().await;
        let ((n1, e1), (n2, _e2)) = (master.join("n1").await, master.join("n2").await);
        let builtin = "troupe.local/hello:latest";
        for (name, image) in [("p", "app:1"), ("q", "troupe.local/hello"), ("r", "short")] {
            master.bench.create(Kind::Pod, pod_of(name, "n2", image)).await;
        }
        let mut no_digest = held(APP, '1', 9);
        no_digest.id = "sha256:../../etc".into();
        let told = vec![held(builtin, '1', 5), held("short", '1', 5), no_digest, held(APP, '1', 5)];
        n1.send(Class::State, &ToMaster::Images(told)).unwrap();
        until_held(&n2, APP, Ok(&["n1"])).await;
        let app = holders(&n2, APP).await.unwrap().image;
        assert_eq!((app.id, app.since_ms), (id('1'), 5));
        assert_eq!(holders(&n2, builtin).await.err(), Some(404), "that one is everybody's own");
        assert_eq!(log.lines("not its own"), 1);
        drop((n1, e1));
        until_held(&n2, APP, Ok(&[])).await;
        assert_eq!(holders(&n2, APP).await.unwrap().away, [NodeName::from("n1")]);
        master.stop().await;
    };
    heard.during(|| system(test));
}

#[test]
fn a_part_passes_from_node_to_node_and_ends_as_it_ended() {
    system(async {
        let master = Master::start().await;
        let ((n1, e1), (n2, _e2), (n3, e3)) =
            (master.join("n1").await, master.join("n2").await, master.join("n3").await);
        for node in [&n1, &n3] {
            node.send(Class::State, &ToMaster::Images(vec![held(APP, '1', 5)])).unwrap();
        }
        master.bench.create(Kind::Pod, pod_of("p", "n2", "app:1")).await;
        serve(e1, b"the bytes", true);
        serve(e3, b"the by", false);
        until_held(&n2, APP, Ok(&holders_of(&n2).await)).await;
        let (mut whole, mut broken) = (Vec::new(), Vec::new());
        let mut stream = n2.open(part("n1"), Duration::from_secs(5)).await.unwrap();
        stream.read.read_to_end(&mut whole).await.unwrap();
        assert_eq!(whole, b"the bytes");
        let mut stream = n2.open(part("n3"), Duration::from_secs(5)).await.unwrap();
        assert!(stream.read.read_to_end(&mut broken).await.is_err(), "it is not taken for the whole");
        // Of a node that does not have it, or is not there, nothing comes; nor does anything else from a master.
        for (open, code) in [(part("n2"), 403), (part("nobody"), 403), (Open::ImageList, 405)] {
            let refused = n2.open(open, Duration::from_secs(5)).await;
            assert!(matches!(refused, Err(NetError::Refused(got, _)) if got == code), "{code}");
        }
        master.stop().await;
    });
}

/// Whoever has it, once both say so.
async fn holders_of(link: &LinkHandle<ToMaster>) -> Vec<&'static str> {
    loop {
        if let Ok(told) = holders(link, APP).await
            && told.nodes.len() == 2
        {
            return if told.nodes[0].as_str() == "n1" { vec!["n1", "n3"] } else { vec!["n3", "n1"] };
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn a_part_of_a_node_that_dies_meanwhile_breaks_off() {
    system(async {
        let master = Master::start().await;
        let ((n1, e1), (n2, _e2)) = (master.join("n1").await, master.join("n2").await);
        n1.send(Class::State, &ToMaster::Images(vec![held(APP, '1', 5)])).unwrap();
        master.bench.create(Kind::Pod, pod_of("p", "n2", "app:1")).await;
        // It says a little, and then nothing more.
        let (hold, held) = tokio::sync::oneshot::channel::<()>();
        actix::spawn(async move {
            let mut events = e1;
            loop {
                if let LinkEvent::Opened(_, responder) = events.next().await {
                    let mut stream = responder.accept().await.unwrap();
                    stream.write.write_all(b"the by").await.unwrap();
                    stream.write.flush().await.unwrap();
                    let _ = held.await;
                    return;
                }
            }
        });
        until_held(&n2, APP, Ok(&["n1"])).await;
        let mut stream = n2.open(part("n1"), Duration::from_secs(5)).await.unwrap();
        let mut some = [0; 6];
        stream.read.read_exact(&mut some).await.unwrap();
        master.network.isolate(&"n1".into());
        let begun = tokio::time::Instant::now();
        assert!(stream.read.read_to_end(&mut Vec::new()).await.is_err());
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "as soon as its link has ended: {:?}",
            begun.elapsed()
        );
        drop(hold);
        master.stop().await;
    });
}

#[test]
fn a_node_whose_pods_name_an_image_is_told_when_somebody_brings_it_to_another() {
    system(async {
        let master = Master::start().await;
        let ((n1, _e1), (_n2, mut e2), (_n3, mut e3)) =
            (master.join("n1").await, master.join("n2").await, master.join("n3").await);
        master.bench.create(Kind::Pod, pod_of("p", "n2", "app:1")).await;
        picture(&mut e2, |p| !p.pods.is_empty()).await;
        let pulled = HeldImage { held: HeldAs::Pulled, ..held(APP, '1', 0) };
        n1.send(Class::State, &ToMaster::Images(vec![pulled])).unwrap();
        let nothing = tokio::time::timeout(LOST_AFTER, message(&mut e2)).await;
        assert!(nothing.is_err(), "what was pulled is no news: {nothing:?}");
        n1.send(Class::State, &ToMaster::Images(vec![held(APP, '2', 5)])).unwrap();
        while message(&mut e2).await != ToNode::ImagesCame {}
        // Once for what came once, and nobody else.
        n1.send(Class::State, &ToMaster::Images(vec![held(APP, '2', 5)])).unwrap();
        for events in [&mut e2, &mut e3] {
            let nothing = tokio::time::timeout(LOST_AFTER, message(events)).await;
            assert!(nothing.is_err(), "{nothing:?}");
        }
        master.stop().await;
    });
}

#[test]
fn a_master_that_shares_no_images_tells_of_none_passes_none_on_and_says_so_of_each_node() {
    system(async {
        let off = |seed| RegistrySeed { no_image_sharing: true, ..seed };
        let master = Master::start_as(Bench::new(), off).await;
        let ((n1, e1), (n2, mut e2)) = (master.join("n1").await, master.join("n2").await);
        master.bench.create(Kind::Pod, pod_of("p", "n2", "app:1")).await;
        picture(&mut e2, |p| !p.pods.is_empty()).await;
        serve(e1, b"the bytes", true);
        n1.send(Class::State, &ToMaster::Images(vec![held(APP, '1', 5)])).unwrap();
        let nothing = tokio::time::timeout(LOST_AFTER, message(&mut e2)).await;
        assert!(nothing.is_err(), "it is told of nothing that came: {nothing:?}");
        assert_eq!(holders(&n2, APP).await.err(), Some(403));
        let refused = n2.open(part("n1"), Duration::from_secs(5)).await;
        assert!(matches!(refused, Err(NetError::Refused(403, why)) if why.contains("--no-image-sharing")));
        for node in ["n1", "n2"] {
            let object: Value = master.bench.find(&node_key(node)).unwrap().parse().unwrap();
            let all = object["status"]["conditions"].as_array().unwrap().clone();
            let off = all.iter().find(|condition| condition["type"] == "ImageSharing").unwrap();
            assert_eq!((&off["status"], &off["reason"]), (&json!("False"), &json!("SwitchedOff")));
        }
        master.stop().await;
    });
}

#[test]
fn copies_of_what_was_removed_where_it_was_brought_are_given_no_more_while_that_node_exists() {
    system(async {
        let master = Master::start().await;
        let ((n1, e1), (n2, _e2), (n3, _e3)) =
            (master.join("n1").await, master.join("n2").await, master.join("n3").await);
        for (name, image) in [("p", "app:1"), ("q", "other:1")] {
            master.bench.create(Kind::Pod, pod_of(name, "n2", image)).await;
        }
        let as_ = |held_as, since_ms| HeldImage { held: held_as, ..held(APP, '1', since_ms) };
        n1.send(Class::State, &ToMaster::Images(vec![held(APP, '1', 5)])).unwrap();
        n3.send(Class::State, &ToMaster::Images(vec![as_(HeldAs::Copied, 5)])).unwrap();
        until_held(&n2, APP, Ok(&["n1", "n3"])).await;
        let remove = |at_ms| {
            let gone = RemovedImage { name: APP.into(), id: id('1'), at_ms };
            n1.send(Class::State, &ToMaster::ImagesRemoved(vec![gone])).unwrap();
            let rest = HeldImage { held: HeldAs::Pulled, ..held(OTHER, '3', 0) };
            n1.send(Class::State, &ToMaster::Images(vec![rest])).unwrap();
        };
        remove(7);
        until_held(&n2, APP, Err(404)).await;
        let refused = n2.open(part("n1"), Duration::from_secs(5)).await;
        assert!(matches!(refused, Err(NetError::Refused(403, _))), "it does not have it");
        n1.send(Class::State, &ToMaster::Images(vec![held(APP, '1', 9)])).unwrap();
        until_held(&n2, APP, Ok(&["n1", "n3"])).await;
        // Removed once more, and then its machine goes: first from the links, then from the cluster.
        remove(11);
        until_held(&n2, OTHER, Ok(&["n1"])).await;
        until_held(&n2, APP, Err(404)).await;
        drop((n1, e1));
        until_held(&n2, OTHER, Err(404)).await;
        assert_eq!(holders(&n2, APP).await.err(), Some(404), "what was taken back stays so");
        master.bench.remove(&node_key("n1")).await;
        until_held(&n2, APP, Ok(&["n3"])).await;
        master.stop().await;
    });
}

#[test]
fn what_was_brought_to_a_node_that_is_away_is_not_taken_for_unknown_and_is_told_of_when_it_is_back() {
    system(async {
        let master = Master::start().await;
        let ((n1, e1), (n2, mut e2)) = (master.join("n1").await, master.join("n2").await);
        for (name, image) in [("p", "app:1"), ("q", "other:1")] {
            master.bench.create(Kind::Pod, pod_of(name, "n2", image)).await;
        }
        let pulled = HeldImage { held: HeldAs::Pulled, ..held(OTHER, '3', 0) };
        let told = ToMaster::Images(vec![held(APP, '1', 5), pulled]);
        n1.send(Class::State, &told).unwrap();
        until_held(&n2, OTHER, Ok(&["n1"])).await;
        while message(&mut e2).await != ToNode::ImagesCame {}
        n1.send(Class::Control, &ToMaster::Goodbye).unwrap();
        n1.close("it goes");
        drop((n1, e1));
        until_held(&n2, OTHER, Err(404)).await;
        let holders_now = holders(&n2, APP).await.unwrap();
        assert_eq!((holders_now.nodes, holders_now.away), (Vec::new(), vec![NodeName::from("n1")]));
        // It links, and is still away to who wants what it has until it has told that.
        let (n1, e1) = master.link("n1").await;
        n1.send(Class::Control, &hello()).unwrap();
        master.bench.until(&node_key("n1"), |o| is_ready(o) == Some(true)).await;
        assert_eq!(holders(&n2, APP).await.unwrap().away, [NodeName::from("n1")]);
        n1.send(Class::State, &told).unwrap();
        while message(&mut e2).await != ToNode::ImagesCame {}
        until_held(&n2, APP, Ok(&["n1"])).await;
        // Who is deleted does not come back.
        drop((n1, e1));
        until_held(&n2, APP, Ok(&[])).await;
        master.bench.remove(&node_key("n1")).await;
        until_held(&n2, APP, Err(404)).await;
        master.stop().await;
    });
}

#[test]
fn copies_of_what_a_lost_node_had_are_given_on() {
    system(async {
        let master = Master::start().await;
        let ((n1, e1), (n2, _e2), (n3, _e3)) =
            (master.join("n1").await, master.join("n2").await, master.join("n3").await);
        master.bench.create(Kind::Pod, pod_of("p", "n2", "app:1")).await;
        n1.send(Class::State, &ToMaster::Images(vec![held(APP, '1', 5)])).unwrap();
        let copy = HeldImage { held: HeldAs::Copied, ..held(APP, '1', 5) };
        n3.send(Class::State, &ToMaster::Images(vec![copy])).unwrap();
        until_held(&n2, APP, Ok(&["n1", "n3"])).await;
        drop((n1, e1));
        until_held(&n2, APP, Ok(&["n3"])).await;
        master.stop().await;
    });
}
