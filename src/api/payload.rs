//! A request's body, shared by the handler that reads it and the door that sees to its end.
//!
//! Owns two things. An answer may come before the body has ended. Over HTTP/2 the request is reset then, and some clients
//! (curl) take the reset for the answer; over HTTP/1.1 some (`troupe` itself) look for the answer when all is sent, and wait for ever
//! when nobody reads that. So the door reads the body and drops it first, and if it is too long for that
//! ([`DRAINED_BYTES`], [`DRAIN_TIME`]), behind the answer over HTTP/2, where there is such a thing. And over HTTP/2 a client that resets its request is not heard of while its answer is
//! silent (a log, a watch): so it is looked for now and then, and the answer ends with it.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use actix_web::{
    HttpRequest, HttpResponse,
    body::{BodySize, BoxBody, MessageBody},
    error::PayloadError,
    http::{Version, header},
    web,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::{
    sync::Semaphore,
    time::{Instant, Interval, MissedTickBehavior},
};

/// What is read in vain: several times what is accepted, less than makes anybody try.
const DRAINED_BYTES: usize = 16 << 20;
/// How long: most of such bodies are on their way already. Nobody needs the answer that waits meanwhile more than the client
/// that sends instead of reading it.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// What is read behind the answer, where that can be: what may be on its way until the client has read that.
const LINGER_BYTES: usize = 256 << 20;
/// How long the client may take to do so.
const LINGER_TIME: Duration = Duration::from_secs(10);

/// What is read in vain of those whom nobody knows, or for whom there is no room: what a client sends before it looks.
const STRANGERS_BYTES: usize = 64 << 10;
/// How long.
const STRANGERS_TIME: Duration = Duration::from_millis(200);
/// Bodies that are read in vain at once. They are few, from clients that err; each costs what its sender makes it.
const DRAINS: usize = 64;

/// Room for bodies that are read in vain. Clones share it.
#[derive(Clone)]
pub struct Drains(Arc<Semaphore>);

impl Default for Drains {
    fn default() -> Drains {
        Drains(Arc::new(Semaphore::new(DRAINS)))
    }
}

/// Whose body is read in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Somebody's who was let in.
    Known,
    /// Anybody's.
    Anybody,
}

/// A body as it comes. Clones share it.
#[derive(Clone)]
pub struct Payload(Rc<RefCell<web::Payload>>);

impl Payload {
    /// The body of a request.
    pub fn new(payload: web::Payload) -> Payload {
        Payload(Rc::new(RefCell::new(payload)))
    }

    /// An answer that ends with its client; that is looked for so often.
    pub fn attend(self, request: &HttpRequest, answer: HttpResponse, every: Duration) -> HttpResponse {
        if request.version() != Version::HTTP_2 || answer.body().size() != BodySize::Stream {
            return answer;
        }
        let mut look = tokio::time::interval_at(Instant::now() + every, every);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        answer.map_body(|_, answer| BoxBody::new(Attended { answer, request: self, look }))
    }

    /// Reads what is left of it and drops it, where that matters to the client and there is room. Of much more, the rest is read
    /// behind the answer: that tells the client to stop.
    pub async fn drain(&mut self, request: &HttpRequest, whose: Whose, room: &Drains) {
        if !has_end(request) {
            return;
        }
        let Ok(held) = room.0.clone().try_acquire_owned() else { return };
        if whose == Whose::Anybody {
            self.dropped(STRANGERS_BYTES, STRANGERS_TIME).await;
            return;
        }
        if request.version() != Version::HTTP_2 {
            // Whatever is left then ends the connection, and the client may not come to read why.
            self.dropped(LINGER_BYTES, LINGER_TIME).await;
            return;
        }
        if self.dropped(DRAINED_BYTES, DRAIN_TIME).await {
            return;
        }
        let mut rest = self.clone();
        actix_rt::spawn(async move {
            rest.dropped(LINGER_BYTES, LINGER_TIME).await;
            drop(held);
        });
    }

    /// Reads so much within so long; whether that was all.
    async fn dropped(&mut self, mut bytes: usize, within: Duration) -> bool {
        let all = async {
            while let Some(Ok(chunk)) = self.next().await {
                bytes = bytes.saturating_sub(chunk.len());
                if bytes == 0 {
                    return false;
                }
            }
            true
        };
        // Too slow is as good as too much.
        tokio::time::timeout(within, all).await.unwrap_or(false)
    }
}

/// Whether a request has a body that ends: what is said over HTTP/1.1 after an upgrade has no end of its own.
fn has_end(request: &HttpRequest) -> bool {
    let has = |name| request.headers().contains_key(name);
    request.version() == Version::HTTP_2
        || !has(header::UPGRADE) && (has(header::CONTENT_LENGTH) || has(header::TRANSFER_ENCODING))
}

impl Stream for Payload {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_next(cx)
    }
}

/// See [`Payload::attend`].
struct Attended {
    answer: BoxBody,
    request: Payload,
    look: Interval,
}

impl MessageBody for Attended {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.answer.size()
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(chunk) = Pin::new(&mut this.answer).poll_next(cx) {
            return Poll::Ready(chunk);
        }
        while this.look.poll_tick(cx).is_ready() {
            // The end of the body is none of the client; its reset, or that of the connection, is an error. What comes late is
            // dropped, a piece each time.
            if let Poll::Ready(Some(Err(_))) = Pin::new(&mut this.request).poll_next(cx) {
                return Poll::Ready(None);
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use actix_web::{FromRequest as _, dev, test::TestRequest};

    use super::*;

    const PIECE: usize = 10 << 10;
    const PIECES: usize = 100;

    /// How many pieces of a body are read in vain.
    async fn drained(whose: Whose, room: usize) -> usize {
        let request = TestRequest::default().version(Version::HTTP_2).to_http_request();
        let pieces = (0..PIECES).map(|_| Ok(Bytes::from(vec![b' '; PIECE])));
        let pieces: Pin<Box<dyn Stream<Item = Result<Bytes, PayloadError>>>> =
            Box::pin(futures_util::stream::iter(pieces));
        let mut stream = dev::Payload::Stream { payload: pieces };
        let mut body = Payload::new(web::Payload::from_request(&request, &mut stream).await.unwrap());
        let room = Drains(Arc::new(Semaphore::new(room)));
        body.drain(&request, whose, &room).await;
        PIECES - body.count().await
    }

    #[test]
    fn what_follows_an_upgrade_is_no_body_that_ends() {
        let request = |version, headers: &[(&str, &str)]| {
            let request = TestRequest::default().version(version);
            headers.iter().fold(request, |request, header| request.insert_header(*header)).to_http_request()
        };
        let (length, chunked) = (("content-length", "5"), ("transfer-encoding", "chunked"));
        assert!(has_end(&request(Version::HTTP_2, &[])));
        assert!(
            has_end(&request(Version::HTTP_11, &[length])) && has_end(&request(Version::HTTP_11, &[chunked]))
        );
        assert!(!has_end(&request(Version::HTTP_11, &[])));
        assert!(!has_end(&request(Version::HTTP_11, &[("upgrade", "SPDY/3.1"), ("connection", "upgrade")])));
        assert!(!has_end(&request(Version::HTTP_11, &[("upgrade", "SPDY/3.1"), length])));
    }

    #[actix::test]
    async fn strangers_and_one_too_many_are_not_waited_for() {
        assert_eq!(drained(Whose::Known, 1).await, PIECES);
        let little = drained(Whose::Anybody, 1).await;
        assert!(little > 0 && little <= STRANGERS_BYTES / PIECE + 1, "{little}");
        assert_eq!(drained(Whose::Known, 0).await, 0);
    }
}
