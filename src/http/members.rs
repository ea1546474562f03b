//! The members of the gossip cluster.

use std::time::Instant;

use serde_json::{Value, json};

use super::response::Response;
use crate::node::Node;
use crate::swim::Member;
use crate::wire::Label;
use crate::wire::message::MemberState;

pub(super) fn list(node: &Node) -> Response {
    let members = node.members();
    let now = Instant::now();
    let mut list: Vec<_> = members.list.iter().collect();
    list.sort_by_key(|member| member.name.as_str());
    Response::json(&json!({
        "health_score": members.health_score,
        "queued_broadcasts": members.queued_broadcasts,
        "members": list.into_iter().map(|member| show(member, members.label_of(member), now)).collect::<Vec<_>>(),
    }))
}

fn show(member: &Member, label: Option<&Label>, now: Instant) -> Value {
    let state = match member.state {
        MemberState::Alive => "alive",
        MemberState::Suspect => "suspect",
        MemberState::Dead => "dead",
        MemberState::Left => "left",
    };
    // A member that we know from a rumour of its death only never told us what it speaks.
    let protocol = (member.vsn != [0; 6]).then_some(member.vsn);
    let since = now.saturating_duration_since(member.since).as_millis();
    json!({
        "name": member.name.as_str(),
        "address": member.socket_addr().map(|address| address.to_string()),
        "state": state,
        "incarnation": member.incarnation,
        "meta": text(&member.meta),
        "label": label.map(|label| text(label.as_bytes())),
        "protocol": protocol,
        "since_ms": u64::try_from(since).unwrap_or(u64::MAX),
    })
}

/// What a member says about itself, or its label: as text if it is one, else in hexadecimal digits after `0x`.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn a_meta_is_shown_whatever_it_is() {
        assert_eq!(text(b""), "");
        assert_eq!(text("zone=ä".as_bytes()), "zone=ä");
        assert_eq!(text(&[0xff, 0x00, 0x1f]), "0xff001f");
    }
}
