//! The config maps, secrets, service accounts and tokens that this node knows.
//!
//! Owns: the one copy of them, in memory only, and its change by the master's pictures. Whoever starts something reads
//! one [`Sources`], which does not change under it. Invariant: what no pod of the node refers to any more is dropped.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;

use crate::{
    logic::{
        pod::sources::{Content, Sources},
        tokens::Want,
    },
    messages::wire,
    model::{Key, Kind, Uid},
};

/// The store; it outlives the kubelet's actors.
#[derive(Default)]
pub struct Configs(ArcSwap<Sources>);

impl Configs {
    /// What is known now.
    pub fn now(&self) -> Arc<Sources> {
        self.0.load_full()
    }

    /// Takes a picture over; gives the objects that are not what they were.
    pub(super) fn take(&self, picture: wire::Configs) -> BTreeSet<Key> {
        let objects: Vec<_> = picture.objects.into_iter().map(|o| (key(&o), o.revision)).collect();
        let mut news = HashMap::new();
        for document in picture.documents {
            let place = usize::try_from(document.object).unwrap_or(usize::MAX);
            let Some((key, _)) = objects.get(place) else {
                tracing::error!(place, "the master sent the content of nothing");
                continue;
            };
            match Content::read(key.kind, &document.json) {
                Ok(content) => {
                    news.insert(key.clone(), (document.revision, Arc::new(content)));
                }
                // The error would quote what it could not read.
                Err(_) => tracing::error!(object = %key, "the master sent content that cannot be read"),
            }
        }
        let (after, changed) = self.now().after(objects, news);
        self.0.store(Arc::new(after));
        changed
    }

    /// Takes tokens over; gives the pods whose they are.
    pub(super) fn take_tokens(&self, tokens: Vec<wire::PodToken>) -> BTreeSet<Uid> {
        let pods = tokens.iter().map(|token| token.uid.clone()).collect();
        let news = tokens.into_iter().map(|given| {
            let want = Want { audience: given.audience, life_s: given.life_s };
            (given.uid, want, given.token)
        });
        self.0.store(Arc::new(self.now().with_tokens(news)));
        pods
    }

    /// Drops the tokens of other pods than these.
    pub(super) fn keep_tokens(&self, of: impl Fn(&Uid) -> bool) {
        if let Some(fewer) = self.now().without_tokens_but(of) {
            self.0.store(Arc::new(fewer));
        }
    }
}

fn key(object: &wire::ConfigObject) -> Key {
    let kind = match object.kind {
        wire::ConfigKind::ConfigMap => Kind::ConfigMap,
        wire::ConfigKind::Secret => Kind::Secret,
        wire::ConfigKind::ServiceAccount => Kind::ServiceAccount,
    };
    Key::new(kind, object.namespace.as_str(), object.name.as_str())
}
