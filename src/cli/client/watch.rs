//! The lines of a watch, out of chunks that end anywhere.

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use serde_json::Value;

use super::super::error::{CliError, Outcome};

/// The longest line: an object may have 1.5 MiB, and an event little more.
const LINE_BYTES: usize = 8 << 20;

struct State<S> {
    path: String,
    chunks: S,
    buffer: BytesMut,
    ended: bool,
}

/// The events within a stream of bytes.
pub fn events<S>(path: String, chunks: S) -> impl Stream<Item = Outcome<Value>> + use<S>
where
    S: Stream<Item = Outcome<Bytes>> + Unpin,
{
    let state = State { path, chunks, buffer: BytesMut::new(), ended: false };
    futures_util::stream::unfold(state, |mut state| async move {
        let next = state.next().await?;
        state.ended = next.is_err();
        Some((next, state))
    })
}

impl<S: Stream<Item = Outcome<Bytes>> + Unpin> State<S> {
    async fn next(&mut self) -> Option<Outcome<Value>> {
        while !self.ended {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Some(event(&self.path, &line));
            }
            if self.buffer.len() > LINE_BYTES {
                let cause = format!("an event is longer than {LINE_BYTES} bytes");
                return Some(Err(CliError::Answer { path: self.path.clone(), cause }));
            }
            match self.chunks.next().await? {
                Ok(chunk) => self.buffer.extend_from_slice(&chunk),
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }
}

fn event(path: &str, line: &[u8]) -> Outcome<Value> {
    let mut event: Value = serde_json::from_slice(line)
        .map_err(|e| CliError::Answer { path: path.to_owned(), cause: format!("not an event: {e}") })?;
    match event["type"] == "ERROR" {
        true => Err(CliError::Status(Box::new(event["object"].take()))),
        false => Ok(event),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &[&'static str]) -> Vec<Outcome<Value>> {
        let chunks: Vec<_> = chunks.iter().map(|c| Ok(Bytes::from_static(c.as_bytes()))).collect();
        let stream = events("p".into(), futures_util::stream::iter(chunks));
        futures_util::FutureExt::now_or_never(stream.collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn events_are_whole_wherever_the_chunks_end() {
        let read = read(&["{\"type\":\"AD", "DED\",\"object\":{}}\n\n{\"type\":\"DELETED\"}\n"]);
        let types: Vec<_> = read.into_iter().map(|e| e.unwrap()["type"].clone()).collect();
        assert_eq!(types, ["ADDED", "DELETED"]);
    }

    #[test]
    fn an_error_ends_the_stream() {
        let read =
            read(&["{\"type\":\"ERROR\",\"object\":{\"reason\":\"Expired\"}}\n{\"type\":\"ADDED\"}\n"]);
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].as_ref().unwrap_err().reason(), Some("Expired"));
    }
}
