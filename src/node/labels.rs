//! Labels of a running cluster: who sends which, and whether the next step of a change of label is safe.
//!
//! A cluster changes its label in three rounds over its nodes: every node accepts the new label besides the old one,
//! then every node sends it, then every node accepts nothing else. A node that is a round ahead of another by two loses
//! it, so each round must be over before the next begins. That is what [`LabelPlan`] finds out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Node;
use crate::actors::keys::{CheckLabel, LabelCheck, Wrapping};
use crate::actors::membership::Members;
use crate::swim::ForeignLabels;
use crate::wire::{Label, PacketOptions};

/// Which labels this node sends, accepts and sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LabelStatus {
    /// The label that this node sends; empty for none.
    pub label: String,
    /// Whether it refuses labels that are neither its own nor accepted.
    pub verification: bool,
    /// Labels accepted besides its own.
    pub accepted: Vec<String>,
    /// How many live members send each label, this node included.
    pub sent: BTreeMap<String, usize>,
    /// The label that each live member sends, by name; `None` for a member that was not heard yet.
    pub members: BTreeMap<String, Option<String>>,
    /// Packets and streams that were refused for their label, by that label; at most 32 labels.
    pub refused: BTreeMap<String, u64>,
    /// Those refused for labels beyond these.
    pub refused_others: u64,
}

/// A round of a change of label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelStep {
    /// Accept the new label besides the old one.
    Accept,
    /// Send the new label.
    Send,
    /// Accept only the new label.
    Verify,
    /// Nothing is left to do on this node.
    Done,
}

/// What comes next on the way to a label, and who is in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LabelPlan {
    /// The label that the cluster is to have.
    pub to: String,
    /// The next round on this node.
    pub step: LabelStep,
    /// Whether it may begin.
    pub safe: bool,
    /// What to change, in words.
    pub change: String,
    /// The members that are not ready for it, and why.
    pub in_the_way: BTreeMap<String, String>,
}

impl Node {
    /// Which labels this node and the members send. `None` when this node does not gossip.
    #[must_use]
    pub fn labels(&self) -> Option<LabelStatus> {
        let wrapping = &self.system.transport.as_ref()?.wrapping;
        let options = wrapping.options();
        let members = self.heard_labels();
        let mut sent = BTreeMap::from([(text(&options.label), 1)]);
        for label in members.values().flatten() {
            *sent.entry(text(label)).or_default() += 1;
        }
        let foreign = foreign(&self.members(), wrapping);
        Some(LabelStatus {
            label: text(&options.label),
            verification: options.verify_label,
            accepted: options.accepted_labels.iter().map(text).collect(),
            sent,
            members: members.into_iter().map(|(name, label)| (name, label.as_ref().map(text))).collect(),
            refused: foreign.iter().map(|(label, count)| (text(label), count)).collect(),
            refused_others: foreign.others(),
        })
    }

    /// What comes next on this node on the way to the label `to`, by default its own, and whether it is safe. Asks every
    /// member whether it accepts the label, by pinging it under that label; Go's members are asked like ours.
    ///
    /// # Errors
    /// Why the question cannot be answered, in words.
    pub async fn plan_label(&self, to: Option<Label>) -> Result<LabelPlan, String> {
        let (Some(transport), Some(membership)) = (&self.system.transport, &self.system.membership) else {
            return Err("this node's store is not memberlist, so it has no label".to_owned());
        };
        let options = transport.wrapping.options();
        let to = to.unwrap_or_else(|| options.label.clone());
        let check = membership.send(CheckLabel(to.clone())).await;
        let check = check.map_err(|_| match membership.connected() {
            true => "the membership actor died over the check; ask again",
            false => "the node has ended",
        })??;
        Ok(plan(&options, &to, &check, &self.heard_labels()))
    }

    /// The label of every other live member, as far as it was heard.
    fn heard_labels(&self) -> BTreeMap<String, Option<Label>> {
        let members = self.members();
        let others = members.list.iter().filter(|member| member.is_live() && member.name.as_str() != self.id());
        others.map(|member| (member.name.to_string(), members.label_of(member).cloned())).collect()
    }
}

/// What was refused for its label, packets and streams together.
pub(super) fn foreign(members: &Members, wrapping: &Wrapping) -> ForeignLabels {
    let mut foreign = members.foreign_labels.clone();
    foreign.merge(&wrapping.foreign_streams());
    foreign
}

fn plan(own: &PacketOptions, to: &Label, check: &LabelCheck, heard: &BTreeMap<String, Option<Label>>) -> LabelPlan {
    let accept: BTreeSet<&str> = check.accept.iter().map(String::as_str).collect();
    let sends = |label: &Label| if label.is_empty() { "sends no label".to_owned() } else { format!("sends {label}") };
    // Members that appeared since the check began were not asked.
    let silent = |name: &str| (!accept.contains(name)).then(|| format!("does not answer under {}", named(to)));
    let (step, in_the_way) = if own.label != *to {
        if own.accepts(to) {
            let silent = heard.keys().filter_map(|name| Some((name.clone(), silent(name)?)));
            (LabelStep::Send, silent.collect())
        } else {
            (LabelStep::Accept, BTreeMap::new())
        }
    } else if own.verify_label && own.accepted_labels.iter().all(|label| label == to) {
        (LabelStep::Done, BTreeMap::new())
    } else {
        let reason = |(name, label): (&String, &Option<Label>)| match label {
            Some(label) if label == to => None,
            Some(label) => Some((name.clone(), sends(label))),
            None => Some((name.clone(), silent(name).unwrap_or_else(|| "was not heard yet".to_owned()))),
        };
        (LabelStep::Verify, heard.iter().filter_map(reason).collect())
    };
    let change = match step {
        LabelStep::Accept => format!(
            "accept it: add {} to memberlist.accepted_labels, or set cluster_label_verification_disabled, on every node",
            named(to)
        ),
        LabelStep::Send => {
            format!("send it: set memberlist.cluster_label to {}, and go on accepting {}", named(to), named(&own.label))
        }
        LabelStep::Verify => {
            "accept nothing else: empty memberlist.accepted_labels and end cluster_label_verification_disabled"
                .to_owned()
        }
        LabelStep::Done => format!("nothing: this node sends and accepts {} alone", named(to)),
    };
    LabelPlan { to: text(to), step, safe: in_the_way.is_empty(), change, in_the_way }
}

fn named(label: &Label) -> String {
    if label.is_empty() { "no label".to_owned() } else { format!("the label {label}") }
}

/// A label as text; escaped when it is none.
pub(super) fn text(label: &Label) -> String {
    match std::str::from_utf8(label.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => label.as_bytes().escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn label(text: &str) -> Label {
        Label::new(text).unwrap()
    }

    fn options(own: &str, verify_label: bool, accepted: &[&str]) -> PacketOptions {
        let accepted_labels = accepted.iter().map(|text| label(text)).collect();
        PacketOptions { label: label(own), verify_label, accepted_labels, ..PacketOptions::default() }
    }

    fn heard(labels: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<Label>> {
        labels.iter().map(|(name, text)| ((*name).to_owned(), text.map(label))).collect()
    }

    fn check(accept: &[&str]) -> LabelCheck {
        LabelCheck { accept: accept.iter().map(|name| (*name).to_owned()).collect(), silent: Vec::new() }
    }

    #[test]
    fn the_three_rounds_follow_each_other() {
        let none = heard(&[("b", Some("")), ("c", Some(""))]);
        let first = plan(&options("", true, &[]), &label("prod"), &check(&[]), &none);
        assert_eq!((first.step, first.safe), (LabelStep::Accept, true), "to accept more hurts nobody");

        let early = plan(&options("", false, &[]), &label("prod"), &check(&["b"]), &none);
        assert_eq!((early.step, early.safe), (LabelStep::Send, false));
        assert_eq!(early.in_the_way.keys().collect::<Vec<_>>(), ["c"]);
        let second = plan(&options("", false, &[]), &label("prod"), &check(&["b", "c"]), &none);
        assert_eq!((second.step, second.safe), (LabelStep::Send, true));

        let mixed = heard(&[("b", Some("prod")), ("c", Some("")), ("d", None)]);
        let early = plan(&options("prod", false, &[]), &label("prod"), &check(&["b", "c", "d"]), &mixed);
        assert_eq!((early.step, early.safe), (LabelStep::Verify, false));
        assert_eq!(early.in_the_way["c"], "sends no label");
        assert_eq!(early.in_the_way["d"], "was not heard yet");
        let all = heard(&[("b", Some("prod")), ("c", Some("prod"))]);
        let third = plan(&options("prod", false, &[]), &label("prod"), &check(&["b", "c"]), &all);
        assert_eq!((third.step, third.safe), (LabelStep::Verify, true));

        let done = plan(&options("prod", true, &[]), &label("prod"), &check(&["b", "c"]), &all);
        assert_eq!(done.step, LabelStep::Done);
    }

    #[test]
    fn a_change_from_label_to_label_needs_no_moment_of_accepting_everything() {
        let old = heard(&[("b", Some("old"))]);
        let plan_of = |options, accept: &[&str], heard| plan(&options, &label("new"), &check(accept), heard);
        assert_eq!(plan_of(options("old", true, &[]), &[], &old).step, LabelStep::Accept);
        let send = plan_of(options("old", true, &["new"]), &["b"], &old);
        assert_eq!((send.step, send.safe), (LabelStep::Send, true));
        let verify = plan_of(options("new", true, &["old"]), &["b"], &old);
        assert_eq!((verify.step, verify.safe), (LabelStep::Verify, false));
        assert_eq!(verify.in_the_way["b"], r#"sends "old""#);
    }
}
