//! `GET /troupe/v1/links`: where machines join, for `troupe token create`.
//!
//! Owns: [`Links`] and the document. It is asked for each time: a machine's addresses come and go while its master runs.

use std::net::SocketAddr;

use actix_web::HttpResponse;
use serde_json::json;

use super::{door::Shared, read::json_response};

/// Where.
pub const PATH: [&str; 3] = ["troupe", "v1", "links"];

/// What a machine that is to join must be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    /// Where the master listens for links, UDP.
    pub listen: SocketAddr,
    /// Where other machines reach that, or why they do not.
    pub reached: Result<SocketAddr, String>,
    /// SHA-256 of the authority's public key, in hexadecimal: the pin of tokens.
    pub authority: String,
}

/// The answer; `None` where no machines join.
pub fn links(shared: &Shared) -> Option<HttpResponse> {
    let Links { listen, reached, authority } = (shared.state.inspect.as_ref()?.links)();
    let document = json!({
        "kind": "Links",
        "listen": listen.to_string(),
        "address": reached.as_ref().ok().map(SocketAddr::to_string),
        "problem": reached.err(),
        "authority": authority,
    });
    Some(json_response(200, document.to_string()))
}
