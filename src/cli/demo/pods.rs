//! The pods as the API shows them, followed by a watch.

use std::{collections::BTreeMap, pin::Pin};

use futures_util::{Stream, StreamExt as _};
use serde_json::Value;

use super::{Act, PATIENCE, process, text};
use crate::cli::{CliError, client::Client};

const PATH: &str = "/api/v1/namespaces/default/pods?watch=true";

/// Pods by name.
pub type ByName = BTreeMap<String, Pod>;

/// What the story needs to know of a pod.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    /// Its container passes for ready.
    pub ready: bool,
    /// It is being deleted.
    pub deleting: bool,
    pub restarts: u64,
    object: Value,
}

impl Pod {
    fn read(object: Value) -> Option<Pod> {
        let container = &object["status"]["containerStatuses"][0];
        Some(Pod {
            name: text(&object["metadata"]["name"])?,
            uid: text(&object["metadata"]["uid"])?,
            ready: container["ready"].as_bool().unwrap_or(false),
            deleting: !object["metadata"]["deletionTimestamp"].is_null(),
            restarts: container["restartCount"].as_u64().unwrap_or(0),
            object,
        })
    }

    pub fn labelled(&self, app: &str) -> bool {
        self.object["metadata"]["labels"]["app"] == app
    }

    pub fn address(&self) -> Option<String> {
        text(&self.object["status"]["podIP"])
    }

    /// Why it has no node, when the scheduler said so.
    pub fn unschedulable(&self) -> Option<String> {
        let conditions = self.object["status"]["conditions"].as_array()?;
        let refused = conditions.iter().find(|c| c["reason"] == "Unschedulable")?;
        text(&refused["message"])
    }

    /// The process of its container.
    pub fn process(&self) -> Act<i32> {
        let id = text(&self.object["status"]["containerStatuses"][0]["containerID"]).unwrap_or_default();
        let id = id.split_once("://").map_or("", |(_, id)| id);
        let found = process::of_container(id).or_else(|| process::of_pod(&self.uid));
        found.ok_or_else(|| format!("pod {} has no process", self.name))
    }
}

/// A watch and what it has told so far.
pub struct Pods {
    events: Pin<Box<dyn Stream<Item = Result<Value, CliError>>>>,
    now: ByName,
}

impl Pods {
    pub async fn watch(client: &Client) -> Act<Pods> {
        let events = client.watch(PATH).await.map_err(|e| e.to_string())?;
        Ok(Pods { events: Box::pin(events), now: BTreeMap::new() })
    }

    pub fn now(&self) -> &ByName {
        &self.now
    }

    /// Waits until the pods are as they should be.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&ByName) -> bool) -> Act {
        let seen = async {
            while !wanted(&self.now) {
                match self.events.next().await {
                    Some(Ok(event)) => self.hear(event),
                    Some(Err(error)) => return Err(format!("waiting until {what}: {error}")),
                    None => return Err(format!("waiting until {what}: the server ended the watch")),
                }
            }
            Ok(())
        };
        match tokio::time::timeout(PATIENCE, seen).await {
            Ok(seen) => seen,
            Err(_) => Err(format!("{what}: not within {} s", PATIENCE.as_secs())),
        }
    }

    fn hear(&mut self, mut event: Value) {
        let Some(pod) = Pod::read(event["object"].take()) else { return };
        if event["type"] == "DELETED" {
            self.now.remove(&pod.name);
        } else {
            self.now.insert(pod.name.clone(), pod);
        }
    }
}
