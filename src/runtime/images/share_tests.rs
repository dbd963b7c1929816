//! Images from one store to another, by way of givers that are good, broken or liars.

use std::{
    collections::VecDeque,
    fs,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
};

use async_trait::async_trait;
use bytes::Bytes;
use tempfile::TempDir;

use super::{
    super::{
        Origin, Pulls, RegistryConfig,
        tests::{E, config, docker, layers_in, nothing_staged, reader, store, tar},
    },
    *,
};

const APP: &str = "docker.io/library/app:1";

/// What a giver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// Gives what it has.
    Good,
    /// Gives other bytes for the last layer.
    Lies,
    /// Gives another configuration.
    LiesOfConfig,
    /// Breaks off in the middle of a layer.
    BreaksOff,
    /// Gives nothing.
    Refuses,
    /// Never ends.
    Endless,
}

/// Givers in a row, all of the same store.
struct Givers {
    from: ImageStore,
    image: String,
    does: Mutex<VecDeque<Does>>,
    asked: std::sync::atomic::AtomicUsize,
    why: Mutex<Vec<String>>,
}

impl Givers {
    fn new(from: &ImageStore, image: &str, does: &[Does]) -> Arc<Givers> {
        Arc::new(Givers {
            from: from.clone(),
            image: image.to_owned(),
            does: Mutex::new(does.iter().copied().collect()),
            asked: Default::default(),
            why: Mutex::default(),
        })
    }
}

#[async_trait]
impl PartSource for Givers {
    async fn part(&self, digest: &str) -> Result<Reader, String> {
        self.asked.fetch_add(1, Relaxed);
        let does = *self.does.lock().unwrap().front().unwrap();
        let is_config = digest == self.image;
        match does {
            Does::Refuses => return Err("no".into()),
            Does::Lies if !is_config => return Ok(reader(tar(&[E::File("bin/app", "evil")]))),
            Does::LiesOfConfig if is_config => return Ok(reader(config(&[]))),
            Does::Endless if !is_config => return Ok(Box::pin(tokio::io::repeat(0))),
            Does::BreaksOff if !is_config => {
                let broken = futures_util::stream::iter([
                    Ok(Bytes::from_static(b"some")),
                    Err(io::Error::from(io::ErrorKind::ConnectionReset)),
                ]);
                return Ok(Box::pin(tokio_util::io::StreamReader::new(broken)));
            }
            _ => {}
        }
        self.from.part(&self.image, digest).await.map_err(|error| error.to_string())
    }

    async fn another(&self, why: String) -> bool {
        self.why.lock().unwrap().push(why);
        let mut does = self.does.lock().unwrap();
        if does.len() > 1 {
            does.pop_front();
            return true;
        }
        false
    }
}

/// A store with one image of two layers, and that.
async fn full() -> (TempDir, ImageStore, SharedImage) {
    let (dir, store) = store();
    let layers = [
        tar(&[E::Dir("bin"), E::File("bin/app", "first")]),
        tar(&[E::File("etc", "second"), E::Attr("bin/app", "user.a", "b"), E::Hard("link", "etc")]),
    ];
    store.load(reader(docker(&["app:1"], &layers)), None).await.unwrap();
    let [image] = store.shared().unwrap().try_into().unwrap();
    (dir, store, image)
}

async fn taken(into: &ImageStore, offer: &SharedImage, givers: &Arc<Givers>) -> Result<Image, RuntimeError> {
    let pulls = Pulls::new(into.clone(), RegistryConfig::default());
    pulls.take(offer.clone(), Arc::clone(givers) as Arc<dyn PartSource>).await
}

#[tokio::test]
async fn an_image_goes_from_store_to_store_and_is_the_same_there() {
    let (_dir, from, offer) = full().await;
    assert!(matches!(offer.came, Came::ByHand { since_ms } if since_ms > 0));
    let (to_dir, to) = store();
    let givers = Givers::new(&from, &offer.id, &[Does::Good]);
    let image = taken(&to, &offer, &givers).await.unwrap();
    assert_eq!((&image.id, &image.names), (&offer.id, &vec![APP.to_owned()]));
    let (ours, theirs) = (to.resolve("app:1").unwrap().unwrap(), from.resolve("app:1").unwrap().unwrap());
    assert_eq!((ours.image, ours.entrypoint), (theirs.image, theirs.entrypoint));
    assert_eq!(fs::read(ours.layers[0].join("etc")).unwrap(), b"second");
    nothing_staged(&to_dir);
    // It is a copy of what was brought by hand, and may go on from here, as of the same time.
    assert_eq!(
        (to.origin("app:1").unwrap(), from.origin("app:1").unwrap()),
        (Origin::Copied, Origin::ByHand)
    );
    assert!(to.idle().unwrap().is_empty(), "it stays when the disk fills up, as that does");
    let Came::ByHand { since_ms } = offer.came else { panic!() };
    let on = to.shared().unwrap();
    assert_eq!(on, [SharedImage { came: Came::Copied { since_ms }, ..offer.clone() }]);
    let (_third_dir, third) = store();
    taken(&third, &on[0], &Givers::new(&to, &offer.id, &[Does::Good])).await.unwrap();
    assert_eq!(third.resolve(APP).unwrap().unwrap().image.id, offer.id);
    // Nothing is asked for twice.
    assert_eq!(givers.asked.load(Relaxed), 3, "the configuration and two layers");
    taken(&to, &offer, &givers).await.unwrap();
    assert_eq!(givers.asked.load(Relaxed), 4, "the configuration alone");
}

#[tokio::test]
async fn what_is_not_what_its_digest_says_is_refused_and_leaves_nothing() {
    let (_dir, from, offer) = full().await;
    for (does, says) in [
        (Does::Lies, "what came has the digest sha256:"),
        (Does::LiesOfConfig, "what came has the digest sha256:"),
        (Does::BreaksOff, "broke off"),
        (Does::Refuses, "no"),
    ] {
        let (dir, to) = store();
        let error = taken(&to, &offer, &Givers::new(&from, &offer.id, &[does])).await.unwrap_err();
        assert!(error.to_string().contains(says), "{does:?}: {error}");
        assert!(to.resolve("app:1").unwrap().is_none() && to.list().unwrap().is_empty(), "{does:?}");
        nothing_staged(&dir);
        assert_eq!(layers_in(&dir), 0, "{does:?}");
    }
}

#[tokio::test]
async fn when_one_giver_is_of_no_use_the_next_is_asked_and_what_came_stays() {
    let (_dir, from, offer) = full().await;
    for does in [Does::Lies, Does::LiesOfConfig, Does::BreaksOff, Does::Refuses] {
        let (dir, to) = store();
        let givers = Givers::new(&from, &offer.id, &[does, Does::Refuses, Does::Good]);
        taken(&to, &offer, &givers).await.unwrap();
        assert_eq!(to.resolve("app:1").unwrap().unwrap().image.id, offer.id, "{does:?}");
        assert_eq!(givers.why.lock().unwrap().len(), 2, "{does:?}");
        nothing_staged(&dir);
    }
}

#[tokio::test]
async fn a_giver_that_never_ends_is_stopped_at_the_limit() {
    let (_dir, from, offer) = full().await;
    let dir = TempDir::new().unwrap();
    let limits = super::super::Limits { archive_bytes: 1 << 20, ..Default::default() };
    let to = ImageStore::with_limits(dir.path(), limits).unwrap();
    let error = taken(&to, &offer, &Givers::new(&from, &offer.id, &[Does::Endless])).await.unwrap_err();
    assert!(error.to_string().contains("limit"), "{error}");
    nothing_staged(&dir);
}

#[tokio::test]
async fn what_came_with_credentials_is_neither_told_of_nor_given_and_the_built_in_image_is_not_taken() {
    let (dir, from, offer) = full().await;
    let came = |open: Option<bool>| {
        let path = dir.path().join("index.json");
        let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        index["pulled"] = serde_json::json!([APP]);
        index["notes"] = open.map_or(serde_json::json!({}), |open| serde_json::json!({APP: {"open": open}}));
        fs::write(&path, index.to_string()).unwrap();
    };
    came(Some(true));
    assert_eq!(from.shared().unwrap(), [SharedImage { came: Came::Pulled, ..offer.clone() }]);
    assert!(from.part(&offer.id, &offer.id).await.is_ok());
    for private in [Some(false), None] {
        came(private);
        assert!(from.shared().unwrap().is_empty());
        assert!(matches!(from.part(&offer.id, &offer.id).await, Err(RuntimeError::ImageNotFound(_))));
    }
    // Another image's layer is none of this one's.
    came(Some(true));
    let foreign = format!("sha256:{}", "0".repeat(64));
    assert!(matches!(from.part(&offer.id, &foreign).await, Err(RuntimeError::NotFound(_))));
    let (_to_dir, to) = store();
    let pinned = format!("app@sha256:{}", "0".repeat(64));
    for (name, why) in [(BUILTIN_IMAGE, "it is built in"), (pinned.as_str(), "not taken")] {
        let offer = SharedImage { name: name.into(), ..offer.clone() };
        let error = taken(&to, &offer, &Givers::new(&from, &offer.id, &[Does::Good])).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    // What was pulled elsewhere counts as pulled here.
    let pulled = SharedImage { came: Came::Pulled, ..offer.clone() };
    taken(&to, &pulled, &Givers::new(&from, &offer.id, &[Does::Good])).await.unwrap();
    assert_eq!((to.origin("app:1").unwrap(), to.idle().unwrap().len()), (Origin::Registry, 1));
    assert_eq!(to.shared().unwrap(), [pulled]);
}

#[tokio::test]
async fn takes_of_one_image_at_a_time_are_one() {
    let (_dir, from, offer) = full().await;
    let (_to_dir, to) = store();
    let pulls = Pulls::new(to, RegistryConfig::default());
    let givers = Givers::new(&from, &offer.id, &[Does::Good]);
    let take = || pulls.take(offer.clone(), Arc::clone(&givers) as Arc<dyn PartSource>);
    let (one, two, three) = tokio::join!(take(), take(), take());
    assert!(one.is_ok() && two.is_ok() && three.is_ok());
    assert_eq!(givers.asked.load(Relaxed), 3);
}

/// Makes the only name of a store one that was pulled, with credentials unless `open`.
fn pulled(dir: &TempDir, open: bool) {
    let path = dir.path().join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["pulled"] = serde_json::json!([APP]);
    index["notes"] = serde_json::json!({APP: {"open": open}});
    fs::write(&path, index.to_string()).unwrap();
}

#[tokio::test]
async fn what_was_pulled_or_brought_here_is_not_replaced_by_what_another_has() {
    let (_dir, from, offer) = full().await;
    for pulled_here in [true, false] {
        let (dir, to) = store();
        to.load(reader(docker(&["app:1"], &[tar(&[E::File("own", "own")])])), None).await.unwrap();
        if pulled_here {
            pulled(&dir, true);
        }
        let own = to.resolve(APP).unwrap().unwrap().image.id;
        let givers = Givers::new(&from, &offer.id, &[Does::Good]);
        assert_eq!(taken(&to, &offer, &givers).await.unwrap().id, own);
        assert_eq!((to.resolve(APP).unwrap().unwrap().image.id, givers.asked.load(Relaxed)), (own, 0));
    }
}

#[tokio::test]
async fn a_layer_that_came_with_credentials_is_nobody_elses() {
    let (_dir, from, offer) = full().await;
    let other = SharedImage { name: "docker.io/library/other:1".into(), ..offer.clone() };
    for (open, parts) in [(false, 3), (true, 1)] {
        let (to_dir, to) = store();
        taken(&to, &offer, &Givers::new(&from, &offer.id, &[Does::Good])).await.unwrap();
        pulled(&to_dir, open);
        // Whoever only knows the digests gets nothing by them.
        let knows = Givers::new(&from, &offer.id, &[Does::Lies]);
        assert_eq!(taken(&to, &other, &knows).await.is_ok(), open);
        let (to_dir, to) = store();
        taken(&to, &offer, &Givers::new(&from, &offer.id, &[Does::Good])).await.unwrap();
        pulled(&to_dir, open);
        let has = Givers::new(&from, &offer.id, &[Does::Good]);
        taken(&to, &other, &has).await.unwrap();
        assert_eq!(has.asked.load(Relaxed), parts, "open: {open}");
        nothing_staged(&to_dir);
    }
}

#[tokio::test]
async fn givers_of_nonsense_starve_no_honest_one_and_are_not_taken_from_for_ever() {
    let (_dir, from, offer) = full().await;
    let limits = super::super::Limits { archive_bytes: 1 << 20, ..Default::default() };
    for (liars, good) in [(1, true), (2, true), (10, false)] {
        let dir = TempDir::new().unwrap();
        let to = ImageStore::with_limits(dir.path(), limits).unwrap();
        let mut does = vec![Does::Endless; liars];
        does.push(Does::Good);
        let givers = Givers::new(&from, &offer.id, &does);
        match taken(&to, &offer, &givers).await {
            Ok(image) => assert!(good && image.id == offer.id, "{liars}"),
            Err(error) => assert!(!good && error.to_string().contains("of no use"), "{liars}: {error}"),
        }
        assert!(givers.asked.load(Relaxed) <= 2 + 2 + usize::try_from(NONSENSE).unwrap(), "{liars}");
        nothing_staged(&dir);
    }
}

#[tokio::test]
async fn what_was_brought_and_removed_is_told_and_cannot_be_taken() {
    let (_dir, from, offer) = full().await;
    from.remove(APP).await.unwrap();
    let told = from.shared().unwrap();
    let [SharedImage { name, id, came: Came::Removed { at_ms } }] = told.as_slice() else {
        panic!("{told:?}")
    };
    let Came::ByHand { since_ms } = offer.came else { panic!() };
    assert!((name, id) == (&offer.name, &offer.id) && *at_ms >= since_ms);
    assert!(from.part(&offer.id, &offer.id).await.is_err());
    let (_to_dir, to) = store();
    let error = taken(&to, &told[0], &Givers::new(&from, &offer.id, &[Does::Good])).await.unwrap_err();
    assert!(error.to_string().contains("not taken"), "{error}");
    // Under the name of another image it is forgotten.
    from.load(reader(docker(&["app:1"], &[tar(&[E::File("own", "own")])])), None).await.unwrap();
    assert!(matches!(from.shared().unwrap()[..], [SharedImage { came: Came::ByHand { .. }, .. }]));
}

#[tokio::test(start_paused = true)]
async fn a_giver_that_trickles_is_given_up() {
    struct Trickles;
    #[async_trait]
    impl PartSource for Trickles {
        async fn part(&self, _: &str) -> Result<Reader, String> {
            let drops = futures_util::stream::unfold((), |()| async {
                tokio::time::sleep(SILENCE / 2).await;
                Some((Ok::<_, io::Error>(Bytes::from_static(b".")), ()))
            });
            Ok(Box::pin(tokio_util::io::StreamReader::new(Box::pin(drops))))
        }

        async fn another(&self, _: String) -> bool {
            false
        }
    }
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("layer");
    let progress = Progress::default();
    let mut allowed = Allowance { good: 1 << 20, nonsense: 1 << 20 };
    let layer = layer(&Trickles, "sha256:1", &file, &mut allowed, &progress);
    let error = tokio::time::timeout(LEAST.1 * 3, layer).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("too slowly"), "{error}");
}
