//! `image pull`: a node's own pull, with its credentials, and how far it is.
//!
//! Owns: reading the lines that a node tells of a pull. All nodes pull at once, since each waits for its registry; what
//! is shown meanwhile is the sum of them.

use std::{cell::RefCell, collections::BTreeMap, io::IsTerminal as _};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future::join_all};
use serde_json::Value;

use super::{Progress, path};
use crate::cli::{
    error::{CliError, Outcome},
    session::{Session, line},
};

/// Longer lines than this tell nothing of a pull.
const MAX_LINE: usize = 64 << 10;

/// Pulls images on nodes.
pub(super) async fn pull(session: &Session, nodes: &[String], names: &[String]) -> Outcome {
    let mut errors = Vec::new();
    for name in names {
        let shown = RefCell::new(Shown::new(name));
        let pulls = nodes.iter().map(|node| {
            let shown = &shown;
            async move {
                let pulled = pull_one(session, node, name, shown).await;
                pulled.map_err(|error| error.while_("pulling", &format!("{name} on {node}")))
            }
        });
        let outcomes = join_all(pulls).await;
        drop(shown);
        for (node, outcome) in nodes.iter().zip(outcomes) {
            match outcome {
                Ok(full) => line(format!("{full} pulled on {node}"))?,
                Err(error) => errors.push(error),
            }
        }
    }
    CliError::all(errors)
}

async fn pull_one(session: &Session, node: &str, name: &str, shown: &RefCell<Shown>) -> Outcome<String> {
    let path = path(session, node, "images/pull", Some(name)).await?;
    let chunks = session.client.work(&path).await?;
    let told = outcome(chunks, |bytes, total| shown.borrow_mut().told(node, bytes, total)).await?;
    let broken = || CliError::Answer { path, cause: "it broke off before the end".into() };
    match told.ok_or_else(broken)? {
        Ok(full) => Ok(full),
        Err(why) => Err(CliError::failed(why)),
    }
}

/// The last line of a pull: the image's full name, or why there is none.
async fn outcome(
    mut chunks: impl Stream<Item = Outcome<Bytes>> + Unpin,
    mut progress: impl FnMut(u64, u64),
) -> Outcome<Option<Result<String, String>>> {
    let mut rest: Vec<u8> = Vec::new();
    while let Some(chunk) = chunks.next().await {
        rest.extend_from_slice(&chunk?);
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let Ok(line) = serde_json::from_slice::<Value>(&line) else { continue };
            if let Some(full) = line["done"].as_str() {
                return Ok(Some(Ok(full.to_owned())));
            }
            if let Some(why) = line["refused"].as_str() {
                return Ok(Some(Err(why.to_owned())));
            }
            let number = |field: &str| line["progress"][field].as_u64().unwrap_or(0);
            progress(number("bytes"), number("totalBytes"));
        }
        if rest.len() > MAX_LINE {
            break;
        }
    }
    Ok(None)
}

/// What all nodes have fetched, as one line on a terminal.
struct Shown {
    line: Progress,
    nodes: BTreeMap<String, (u64, u64)>,
}

impl Shown {
    fn new(name: &str) -> Shown {
        let visible = std::io::stderr().is_terminal();
        let line = Progress { node: name.to_owned(), sent: 0, total: None, shown: None, visible };
        Shown { line, nodes: BTreeMap::new() }
    }

    fn told(&mut self, node: &str, bytes: u64, total: u64) {
        self.nodes.insert(node.to_owned(), (bytes, total));
        self.line.sent = self.nodes.values().map(|(bytes, _)| bytes).sum();
        self.line.total = Some(self.nodes.values().map(|(_, total)| total).sum());
        self.line.show();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pulls_lines_are_read_wherever_they_are_cut() {
        let text = concat!(
            r#"{"progress":{"layers":0,"layersDone":0,"bytes":0,"totalBytes":0}}"#,
            "\n",
            r#"{"progress":{"layers":2,"layersDone":1,"bytes":5,"totalBytes":10}}"#,
            "\n",
            r#"{"done":"a:1"}"#,
            "\n"
        );
        for size in [1, 7, text.len()] {
            let chunks: Vec<Outcome<Bytes>> =
                text.as_bytes().chunks(size).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
            let mut seen = Vec::new();
            let told = outcome(futures_util::stream::iter(chunks), |bytes, total| seen.push((bytes, total)));
            assert_eq!(told.await.unwrap(), Some(Ok("a:1".to_owned())));
            assert_eq!(seen, [(0, 0), (5, 10)]);
        }
        let one = |text: &'static str| futures_util::stream::iter([Ok(Bytes::from_static(text.as_bytes()))]);
        let refused = outcome(one("{\"refused\":\"no\"}\n"), |_, _| {}).await.unwrap();
        assert_eq!(refused, Some(Err("no".to_owned())));
        assert_eq!(outcome(one("{\"progress\":{}}\n"), |_, _| {}).await.unwrap(), None, "it broke off");
    }
}
