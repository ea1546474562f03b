//! Server-sent events: changes of keys, and what happens on the node.

use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::api::Api;
use super::response::{Body, Refusal, Response};

/// How often a silent stream sends a comment, so that proxies keep it open and a reader that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) fn events(api: &Api) -> Result<Response, Refusal> {
    server_sent(api, api.node.events())
}

/// One `data:` line of JSON for each item. A comment comes first: whoever has read it misses nothing from then on.
pub(super) fn server_sent<T: Serialize>(
    api: &Api,
    items: impl Stream<Item = T> + Send + 'static,
) -> Result<Response, Refusal> {
    let too_many = || Refusal::new(503, "too many streams are open; close some, or ask again later");
    let permit = api.streams.clone().try_acquire_owned().map_err(|_| too_many())?;
    let frames = items.map(|item| {
        // JSON has no line breaks of its own, so an item cannot end its line.
        let json = serde_json::to_string(&item).unwrap_or_else(|_| "null".to_owned());
        Some(Bytes::from(format!("data: {json}\n\n")))
    });
    let first = tokio::time::Instant::now() + KEEP_ALIVE;
    let ticks = stream::unfold(tokio::time::interval_at(first, KEEP_ALIVE), |mut interval| async move {
        interval.tick().await;
        Some((Some(Bytes::from_static(b": still here\n\n")), interval))
    });
    let hello = stream::once(async { Some(Bytes::from_static(b": connected\n\n")) });
    // The end of the items is the end of the stream, although ticks never end.
    let frames = frames.chain(stream::once(async { None }));
    let node = api.node.clone();
    let closing = api.closing.clone();
    let over = async move {
        tokio::select! {
            () = closing.cancelled() => {}
            _ = node.closed() => {}
        }
    };
    let body = hello
        .chain(stream::select(frames, ticks))
        .take_while(|frame| std::future::ready(frame.is_some()))
        .filter_map(std::future::ready)
        .take_until(over)
        .map(move |frame| {
            let _held_until_the_stream_ends = &permit;
            frame
        });
    Ok(Response::new("text/event-stream", Body::Stream(Box::pin(body))))
}
