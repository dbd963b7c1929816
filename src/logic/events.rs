//! Events: what happened, told once however often it happens.
//!
//! Owns: [`Recorder`], which counts repeated events instead of storing each, combines many similar ones, and holds talkative
//! sources back, all as client-go's `EventCorrelator` does; and [`expired`], which bounds what is kept.
//! Invariant: everything it remembers is bounded, and under pressure events are dropped, warnings last.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::Hash,
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use sha2::{Digest as _, Sha256};

use super::edit::Edit;
use crate::model::{Key, Kind, KindFacet, NodeName, Object, SealError, Uid, seal};

/// Kubernetes keeps events for an hour.
const TTL_SECONDS: i64 = 3_600;
/// Events kept in one namespace: more than anybody reads, some 5 MB.
const MAX_PER_NAMESPACE: usize = 5_000;
/// Events kept in all: some 20 MB, whatever happens in however many namespaces.
const MAX_IN_ALL: usize = 20_000;
/// Events, groups and sources remembered, each (client-go's cache has the same size).
const MAX_REMEMBERED: usize = 4_096;
/// Events that wait to be written. Beyond it `Normal` ones are dropped, beyond twice as many all are.
const MAX_PENDING: usize = 2_048;
/// What one source may tell about one object in a burst, and how often again (client-go's values).
const SOURCE_BURST: f64 = 25.0;
/// See [`SOURCE_BURST`].
const SOURCE_SECONDS_PER_EVENT: f64 = 300.0;
/// New events a second in the long run, and in a burst: what keeps the store free for those who ask for something.
const NEW_PER_SECOND: f64 = 200.0;
/// See [`NEW_PER_SECOND`].
const NEW_BURST: f64 = 5_000.0;
/// So many different texts of otherwise equal events are told apart, within so many seconds (client-go's values).
const MAX_SIMILAR: usize = 10;
/// See [`MAX_SIMILAR`].
const SIMILAR_SECONDS: i64 = 600;
/// Longest message: Kubernetes' limit.
const MAX_MESSAGE: usize = 1_024;

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Happening {
    /// The object it is about.
    pub about: Key,
    /// Its uid; empty when not known.
    pub uid: Uid,
    /// `spec.containers{web}` for a container's event.
    pub field_path: Option<String>,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// One word: `Scheduled`, `FailedCreate`, `Pulled`…
    pub reason: Cow<'static, str>,
    /// A sentence.
    pub message: String,
    /// Who saw it: `default-scheduler`, `replication-controller`, `kubelet`…
    pub component: Cow<'static, str>,
    /// On which node, for kubelets.
    pub host: Option<NodeName>,
    /// When.
    pub at: Timestamp,
}

/// A map that forgets its oldest entries.
#[derive(Debug)]
struct Recent<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Recent { entries: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    fn entry(&mut self, key: K, new: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(&key) {
            self.order.push_back(key.clone());
            if self.order.len() > MAX_REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.entries.remove(&oldest);
            }
        }
        self.entries.entry(key).or_insert_with(new)
    }
}

/// Tokens that come back with time.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: i64,
}

impl Bucket {
    fn take(&mut self, burst: f64, per_second: f64, now: i64) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "seconds since the last event are far below 2^52")]
        let passed = now.saturating_sub(self.at).max(0) as f64;
        self.tokens = (self.tokens + passed * per_second).min(burst);
        self.at = self.at.max(now);
        let granted = self.tokens >= 1.0;
        if granted {
            self.tokens -= 1.0;
        }
        granted
    }
}

/// Otherwise equal events with different texts.
#[derive(Debug)]
struct Similar {
    texts: Vec<Mark>,
    since: i64,
}

/// What makes two events, sources or texts the same: a digest of it, since thousands are remembered and what they say is long.
type Mark = [u8; 16];

/// Beside its object there is so much of an event for an hour.
const _: () = assert!(size_of::<(Mark, Told)>() <= 48);

fn mark(text: &str) -> Mark {
    let digest = Sha256::digest(text);
    std::array::from_fn(|at| digest.get(at).copied().unwrap_or_default())
}

/// An event that was told lately.
#[derive(Debug, Default)]
struct Told {
    /// As it is to be; `None` once that is what is stored.
    event: Option<Arc<Event>>,
    /// The state of it that is stored.
    stored: Option<Arc<Object>>,
    /// `None` when its next repetition is to be a new event.
    last_seen: Option<i64>,
}

impl Told {
    fn is_fresh(&self, now: i64) -> bool {
        self.last_seen.is_some_and(|last| now.saturating_sub(last) < TTL_SECONDS)
    }

    /// The event as it is to be so far.
    fn event(&mut self) -> Option<Event> {
        match self.event.take() {
            Some(event) => Some(Arc::unwrap_or_clone(event)),
            None => self.stored.as_ref().and_then(|stored| stored.parse().ok()),
        }
    }
}

/// An event that waits to be written.
#[derive(Debug)]
struct Pending {
    mark: Mark,
    event: Arc<Event>,
    /// The state that this replaces.
    stored: Option<Arc<Object>>,
}

/// What was told lately, and what of it is still to be written.
#[derive(Debug, Default)]
pub struct Recorder {
    known: Recent<Mark, Told>,
    sources: Recent<Mark, Bucket>,
    similar: Recent<Mark, Similar>,
    new: Option<Bucket>,
    /// How many different events there were.
    order: u32,
    pending: BTreeMap<Key, Pending>,
    /// What was taken last, which is being written.
    taken: HashMap<Key, Mark>,
}

impl Recorder {
    /// Takes in something that happened. Whether it will be written; `false` when it is dropped.
    pub fn record(&mut self, mut happening: Happening, uid: impl FnOnce() -> Uid) -> bool {
        let now = happening.at.as_second();
        let room = if happening.warning { 2 * MAX_PENDING } else { MAX_PENDING };
        let h = &happening;
        let source = mark(&format!("{}/{:?}/{}/{}", h.component, h.host, h.uid, h.about));
        let bucket = self.sources.entry(source, || Bucket { tokens: SOURCE_BURST, at: now });
        if !bucket.take(SOURCE_BURST, 1.0 / SOURCE_SECONDS_PER_EVENT, now) || self.pending.len() >= room {
            return false;
        }
        truncate(&mut happening.message);
        let mark = self.mark_of(&mut happening, now);
        let known = self.known.entries.get_mut(&mark).filter(|k| k.is_fresh(now));
        let repeated = known.and_then(|known| Some((known.event()?, known.stored.clone())));
        let (event, stored) = if let Some((mut event, stored)) = repeated {
            event.count = Some(event.count.unwrap_or(1).saturating_add(1));
            event.last_timestamp = Some(Time(happening.at));
            event.message = Some(happening.message);
            (event, stored)
        } else {
            let all = self.new.get_or_insert(Bucket { tokens: NEW_BURST, at: now });
            if !all.take(NEW_BURST, NEW_PER_SECOND, now) {
                return false;
            }
            let event = event(happening, self.order, &uid());
            self.order = self.order.wrapping_add(1);
            (event, None)
        };
        let (key, event) = (key(&event), Arc::new(event));
        *self.known.entry(mark, Told::default) =
            Told { event: Some(event.clone()), stored: stored.clone(), last_seen: Some(now) };
        self.pending.insert(key, Pending { mark, event, stored });
        true
    }

    /// Whether anything waits to be written.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The edits that write at most `max` waiting events. What becomes of each is to be told, with [`Recorder::stored`] or
    /// [`Recorder::forget`], before more are taken.
    ///
    /// # Errors
    /// When an event cannot be sealed: a defect.
    pub fn take(&mut self, max: usize) -> Result<Vec<Edit>, SealError> {
        let mut edits = Vec::new();
        self.taken = HashMap::new();
        while edits.len() < max
            && let Some((key, pending)) = self.pending.pop_first()
        {
            let sealed = seal(&*pending.event)?;
            self.taken.insert(key, pending.mark);
            edits.push(match pending.stored {
                Some(stored) => Edit::Replace(sealed, stored),
                None => Edit::Create(sealed),
            });
        }
        Ok(edits)
    }

    /// An event is stored now: its next repetition replaces this state.
    pub fn stored(&mut self, object: &Arc<Object>) {
        let Some(mark) = self.taken.get(&object.key) else { return };
        let pending = self.pending.get_mut(&object.key);
        if let Some(known) = self.known.entries.get_mut(mark) {
            known.stored = Some(object.clone());
            if pending.is_none() {
                known.event = None;
            }
        }
        if let Some(pending) = pending {
            pending.stored = Some(object.clone());
        }
    }

    /// An event could not be written, or is no longer what we wrote: its next repetition is a new one.
    pub fn forget(&mut self, key: &Key) {
        self.pending.remove(key);
        if let Some(known) = self.taken.get(key).and_then(|mark| self.known.entries.get_mut(mark)) {
            *known = Told::default();
        }
    }

    /// Lets go of what is kept no longer: its next repetition is a new event anyway.
    pub fn let_go(&mut self, now: Timestamp) {
        let now = now.as_second();
        let all = self.known.entries.values_mut();
        all.filter(|told| !told.is_fresh(now)).for_each(|told| *told = Told::default());
    }

    /// What makes the event the same as others; combines it with similar ones when those are many.
    fn mark_of(&mut self, happening: &mut Happening, now: i64) -> Mark {
        let h = &*happening;
        let group = format!(
            "{}|{:?}|{}|{}|{:?}|{}|{}",
            h.component, h.host, h.about, h.uid, h.field_path, h.warning, h.reason
        );
        let (group, text) = (mark(&group), mark(&format!("{group}|{}", h.message)));
        let similar = self.similar.entry(group, || Similar { texts: Vec::new(), since: now });
        if now.saturating_sub(similar.since) > SIMILAR_SECONDS {
            similar.texts.clear();
        }
        similar.since = now;
        if !similar.texts.contains(&text) {
            if similar.texts.len() >= MAX_SIMILAR {
                happening.message.insert_str(0, "(combined from similar events): ");
                truncate(&mut happening.message);
                return group;
            }
            // Almost all have one.
            similar.texts.reserve_exact(1);
            similar.texts.push(text);
        }
        text
    }
}

fn truncate(message: &mut String) {
    if message.len() > MAX_MESSAGE {
        let mut end = MAX_MESSAGE;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
    }
}

fn key(event: &Event) -> Key {
    let meta = &event.metadata;
    Key::new(
        Kind::Event,
        meta.namespace.as_deref().unwrap_or("default"),
        meta.name.as_deref().unwrap_or_default(),
    )
}

fn event(happening: Happening, order: u32, uid: &Uid) -> Event {
    let about = &happening.about;
    let text = |s: &str| Some(s.to_owned()).filter(|s| !s.is_empty());
    // Events about objects outside namespaces are kept in `default`, as in Kubernetes.
    let namespace = text(&about.namespace).unwrap_or_else(|| "default".into());
    // As Kubernetes', the names of one object's events sort by time; within a second by the order in which they were
    // told. The rest keeps names apart when another process has told of the same second.
    let hash: String = uid.as_str().chars().filter(|c| *c != '-').take(4).collect();
    let moment = i128::from(happening.at.as_second()) * 1_000_000_000 + i128::from(order % 1_000_000_000);
    let time = Some(Time(happening.at));
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{moment:016x}{hash}", about.name)),
            namespace: Some(namespace),
            uid: Some(uid.to_string()),
            creation_timestamp: time.clone(),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(about.kind.api_version().into()),
            kind: Some(about.kind.name().into()),
            namespace: text(&about.namespace),
            name: text(&about.name),
            uid: text(happening.uid.as_str()),
            field_path: happening.field_path,
            resource_version: None,
        },
        reason: Some(happening.reason.into_owned()),
        message: Some(happening.message),
        type_: Some(if happening.warning { "Warning" } else { "Normal" }.into()),
        source: Some(EventSource {
            component: text(&happening.component),
            host: happening.host.as_ref().map(ToString::to_string),
        }),
        reporting_component: text(&happening.component),
        reporting_instance: happening.host.as_ref().map(ToString::to_string),
        first_timestamp: time.clone(),
        last_timestamp: time,
        count: Some(1),
        ..Event::default()
    }
}

/// The events that are kept no longer: too old, or the oldest of too many.
pub fn expired<'a>(events: impl Iterator<Item = &'a Arc<Object>>, now: Timestamp) -> Vec<Arc<Object>> {
    let mut gone = Vec::new();
    let mut kept: HashMap<&str, BTreeSet<(i64, &Key)>> = HashMap::new();
    let mut by_key = HashMap::new();
    for object in events {
        let last = match &object.facet.of {
            KindFacet::Event(event) => event.last_seen.max(object.facet.meta.created.as_second()),
            _ => continue,
        };
        if now.as_second().saturating_sub(last) >= TTL_SECONDS {
            gone.push(object.clone());
        } else {
            kept.entry(&object.key.namespace).or_default().insert((last, &object.key));
            by_key.insert(&object.key, object);
        }
    }
    let mut all = BTreeSet::new();
    for mut events in kept.into_values() {
        while events.len() > MAX_PER_NAMESPACE
            && let Some((_, oldest)) = events.pop_first()
        {
            gone.extend(by_key.get(oldest).map(|o| (*o).clone()));
        }
        all.append(&mut events);
    }
    while all.len() > MAX_IN_ALL
        && let Some((_, oldest)) = all.pop_first()
    {
        gone.extend(by_key.get(oldest).map(|o| (*o).clone()));
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Revision;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn happening(message: &str, second: i64) -> Happening {
        Happening {
            about: Key::new(Kind::Pod, "default", "p"),
            uid: "uid-p".into(),
            field_path: None,
            warning: false,
            reason: "BackOff".into(),
            message: message.into(),
            component: "kubelet".into(),
            host: Some("n".into()),
            at: at(second),
        }
    }

    /// Records, writes at once, and answers the event's name, count and text as stored.
    fn tell(recorder: &mut Recorder, happening: Happening, revision: u64) -> Option<(String, i32, String)> {
        let written = recorder.record(happening, || Uid::from(format!("{revision:016}-rest")));
        let edit = recorder.take(10).unwrap().pop();
        assert_eq!(written, edit.is_some());
        let (Edit::Create(sealed) | Edit::Replace(sealed, _)) = edit? else { panic!() };
        let object = Arc::new(sealed.at(Revision(revision)));
        recorder.stored(&object);
        let event: Event = object.parse().unwrap();
        Some((object.key.name.to_string(), event.count.unwrap(), event.message.unwrap()))
    }

    #[test]
    fn a_repeated_event_is_counted() {
        let mut recorder = Recorder::default();
        let first = tell(&mut recorder, happening("no", 0), 1).unwrap();
        assert_eq!(first, ("p.00038d7ea4c680000000".into(), 1, "no".into()));
        let second = tell(&mut recorder, happening("no", 10), 2).unwrap();
        assert_eq!((second.0, second.1), (first.0.clone(), 2));
        let other = tell(&mut recorder, happening("yes", 20), 3).unwrap();
        assert_eq!((other.0 != first.0, other.1), (true, 1));
        let later = tell(&mut recorder, happening("no", 10 + TTL_SECONDS), 4).unwrap();
        assert_eq!((later.0 != first.0, later.1), (true, 1), "the old one is no longer kept");
    }

    #[test]
    fn names_sort_by_time_and_within_a_second_by_order() {
        let mut recorder = Recorder::default();
        let told = [("c", 0), ("b", 0), ("a", 0), ("d", 1)];
        let names: Vec<String> =
            told.into_iter().map(|(text, s)| tell(&mut recorder, happening(text, s), 1).unwrap().0).collect();
        assert!(names.is_sorted(), "{names:?}");
    }

    #[test]
    fn repetitions_before_the_first_write_are_one_write() {
        let mut recorder = Recorder::default();
        for second in 0..3 {
            assert!(recorder.record(happening("no", second), || "u".into()));
        }
        let edits = recorder.take(10).unwrap();
        let [Edit::Create(sealed)] = &edits[..] else { panic!("{edits:?}") };
        let KindFacet::Event(facet) = &sealed.facet.of else { panic!() };
        assert_eq!((facet.count, facet.last_seen), (3, at(2).as_second()));
    }

    #[test]
    fn an_event_that_was_removed_meanwhile_is_told_anew() {
        let mut recorder = Recorder::default();
        let first = tell(&mut recorder, happening("no", 0), 1).unwrap();
        recorder.forget(&Key::new(Kind::Event, "default", first.0.as_str()));
        assert_eq!(tell(&mut recorder, happening("no", 1), 2).unwrap().1, 1);
    }

    #[test]
    fn a_repetition_while_the_event_is_being_written_is_counted_and_replaces_it() {
        let mut recorder = Recorder::default();
        let record =
            |recorder: &mut Recorder, second| recorder.record(happening("no", second), || "u".into());
        assert!(record(&mut recorder, 0));
        let Some(Edit::Create(first)) = recorder.take(10).unwrap().pop() else { panic!() };
        assert!(record(&mut recorder, 1));
        let first = Arc::new(first.at(Revision(1)));
        recorder.stored(&first);
        let Some(Edit::Replace(second, replaced)) = recorder.take(10).unwrap().pop() else { panic!() };
        assert_eq!((&second.key, replaced.revision), (&first.key, Revision(1)));
        assert!(record(&mut recorder, 2), "and once more, while that is on its way");
        recorder.stored(&Arc::new(second.at(Revision(2))));
        let Some(Edit::Replace(third, replaced)) = recorder.take(10).unwrap().pop() else { panic!() };
        let KindFacet::Event(facet) = &third.facet.of else { panic!() };
        assert_eq!((facet.count, replaced.revision), (3, Revision(2)));
    }

    #[test]
    fn of_an_event_that_is_stored_nothing_else_is_kept_and_of_one_that_is_over_not_even_that() {
        let mut recorder = Recorder::default();
        assert!(recorder.record(happening("no", 0), || "u".into()));
        let Some(Edit::Create(sealed)) = recorder.take(10).unwrap().pop() else { panic!() };
        let object = Arc::new(sealed.at(Revision(1)));
        recorder.stored(&object);
        let told =
            || recorder.known.entries.values().map(|told| (told.event.is_some(), told.stored.is_some()));
        assert_eq!(told().collect::<Vec<_>>(), [(false, true)]);
        recorder.let_go(at(TTL_SECONDS - 1));
        assert_eq!(Arc::strong_count(&object), 2);
        recorder.let_go(at(TTL_SECONDS));
        assert_eq!(Arc::strong_count(&object), 1);
    }

    #[test]
    fn many_similar_events_are_combined() {
        let mut recorder = Recorder::default();
        for n in 0..10 {
            assert_eq!(tell(&mut recorder, happening(&format!("text {n}"), 0), n).unwrap().1, 1);
        }
        let combined = tell(&mut recorder, happening("text 10", 0), 10).unwrap();
        assert_eq!(combined.2, "(combined from similar events): text 10");
        let again = tell(&mut recorder, happening("text 11", 0), 11).unwrap();
        assert_eq!((again.0, again.1), (combined.0, 2));
        assert_eq!(again.2, "(combined from similar events): text 11");
    }

    #[test]
    fn a_talkative_source_is_held_back_for_a_while() {
        let mut recorder = Recorder::default();
        let told = (0..100).filter(|n| tell(&mut recorder, happening("no", 0), *n).is_some()).count();
        assert_eq!(told, 25);
        assert!(tell(&mut recorder, happening("no", 299), 200).is_none());
        assert!(tell(&mut recorder, happening("no", 301), 201).is_some());
    }

    #[test]
    fn another_object_of_the_same_name_is_another_source() {
        let mut recorder = Recorder::default();
        let rounds =
            (0..100).map(|n| Happening { uid: format!("{n}").as_str().into(), ..happening("no", 0) });
        let told = rounds.enumerate().filter_map(|(n, h)| tell(&mut recorder, h, n as u64)).count();
        assert_eq!(told, 100);
    }

    #[test]
    fn under_pressure_normal_events_are_dropped_before_warnings() {
        let mut recorder = Recorder::default();
        let about = |n: usize, warning| Happening {
            about: Key::new(Kind::Pod, "default", format!("p{n}")),
            warning,
            ..happening("no", 0)
        };
        let mut uids = 0;
        let mut uid = || {
            uids += 1;
            Uid::from(format!("{uids}"))
        };
        let normal = (0..10_000).filter(|n| recorder.record(about(*n, false), &mut uid)).count();
        assert_eq!(normal, MAX_PENDING);
        assert!(recorder.record(about(20_000, true), &mut uid));
    }

    #[test]
    fn old_events_expire_and_the_oldest_of_too_many() {
        let stored = |n: usize, second: i64| {
            let mut h = happening("no", second);
            h.about = Key::new(Kind::Pod, "default", format!("p{n}"));
            Arc::new(seal(&event(h, 0, &Uid::from("u"))).unwrap().at(Revision(1)))
        };
        let events: Vec<_> = (0..MAX_PER_NAMESPACE + 3)
            .map(|n| stored(n, if n == 7 { 0 } else { 1_000 + n as i64 }))
            .collect();
        let gone = expired(events.iter(), at(TTL_SECONDS));
        let names: Vec<_> = gone.iter().map(|o| o.key.name.split('.').next().unwrap()).collect();
        assert_eq!(names, ["p7", "p0", "p1"]);
    }
}
