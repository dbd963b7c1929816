//! `GET /troupe/v1/backup`: everything that a master cannot do without, as one stream.
//!
//! Owns: the order of what is sent; the form is [`crate::logic::backup`]'s. Administrators only, as every path that is not
//! everyone's: what is sent has the authority's key in it, and every secret. Invariant: one snapshot, however long it takes
//! and whatever is written meanwhile; it is made piece by piece, so it costs no more memory than the snapshot is held for.

use std::sync::Arc;

use actix_web::HttpResponse;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::{
    clock,
    door::{Shared, StreamPermit},
    error::ApiError,
};
use crate::{
    logic::backup::{About, Writer},
    model::Kind,
};

/// Where.
pub const PATH: [&str; 3] = ["troupe", "v1", "backup"];
/// Pieces are gathered to about so many bytes: a write to the client each.
const CHUNK_BYTES: usize = 64 << 10;

/// Reads the files of the data directory that belong into a backup: path below it and content; an error says why they
/// cannot be read.
pub type Files = Arc<dyn Fn() -> Result<Vec<(String, Vec<u8>)>, String> + Send + Sync>;

/// The answer.
///
/// # Errors
/// 404 for a cluster that keeps nothing on disk, 503 when the data directory cannot be read.
pub async fn backup(shared: &Shared, permit: StreamPermit) -> Result<HttpResponse, ApiError> {
    let read = shared.state.backup.clone().ok_or(ApiError::UnknownPath)?;
    let files = tokio::task::spawn_blocking(move || read())
        .await
        .map_err(|error| ApiError::Internal(error.to_string()))?
        .map_err(ApiError::Unavailable)?;
    let snapshot = shared.state.view.snapshot();
    let about = About {
        cluster: shared.state.inspect.as_ref().map(|inspect| inspect.cluster.clone()).unwrap_or_default(),
        created_at: clock::whole_seconds(clock::now()).to_string(),
        revision: snapshot.revision,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let (mut writer, mut first) = Writer::begin(&about);
    for (name, content) in files {
        first.extend(writer.file(&name, &content));
    }
    let objects: Vec<_> = Kind::ALL.into_iter().flat_map(|kind| snapshot.list(kind, None).cloned()).collect();
    let state = (Some(writer), objects.into_iter(), first);
    let pieces = stream::unfold(state, |(writer, mut objects, mut piece)| async move {
        let mut writer = writer?;
        while piece.len() < CHUNK_BYTES {
            match objects.next() {
                Some(object) => piece.extend(writer.object(&object)),
                None => {
                    piece.extend(writer.end());
                    return Some((Bytes::from(piece), (None, objects, Vec::new())));
                }
            }
        }
        Some((Bytes::from(piece), (Some(writer), objects, Vec::new())))
    });
    let stop = shared.stop.clone();
    let pieces = pieces
        .map(move |piece| {
            let _ = &permit;
            Ok::<_, std::io::Error>(piece)
        })
        .take_until(async move { stop.cancelled().await });
    Ok(HttpResponse::Ok()
        .content_type("application/vnd.troupe.backup")
        .insert_header(("Cache-Control", "no-store"))
        .streaming(Box::pin(pieces)))
}
