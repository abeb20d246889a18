//! Changes of things that may live on both sides (RULES R26): rehearsed where the owner is not, made at the owner, then
//! made at the other side. Whoever refuses first stops it there, so that half a change needs a fault in between; the
//! client is then told to repeat the request, and the repetition completes it.

use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::route::{STATE_TOPIC, TopicRoute};
use crate::schema::{Struct, Value};
use crate::session::{Cx, UpstreamKey};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::fan::Ask;

/// An error code and what the client is told with it.
pub(super) type Refusal = (i16, String);

/// One thing of the request.
pub(super) struct Item {
    /// Where it is changed, the owner first.
    pub places: Result<Vec<UpstreamKey>, Refusal>,
    /// Where it is as wanted already: an earlier request got that far.
    pub done: Vec<ClusterSide>,
    /// A side that has it no more has done what was asked.
    pub gone_is_fine: bool,
}

impl Item {
    pub(super) fn at(places: Result<Vec<UpstreamKey>, Refusal>) -> Item {
        Item { places, done: Vec::new(), gone_is_fine: false }
    }

    fn upstream(&self, round: Round) -> Option<UpstreamKey> {
        let places = self.places.as_ref().ok()?;
        let place = match round {
            Round::Owner => places.first(),
            Round::Rehearsal | Round::Other => places.get(1),
        };
        place.copied().filter(|upstream| !self.done.contains(&upstream.node.side))
    }

    /// Whether the side has it no more, and that is what was wanted.
    pub(super) fn is_gone(&self, error: i16) -> bool {
        self.gone_is_fine && [code::UNKNOWN_TOPIC_OR_PARTITION, code::UNKNOWN_TOPIC_ID].contains(&error)
    }

    fn is_well(&self, error: i16) -> bool {
        error == code::NONE || self.is_gone(error)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    Rehearsal,
    Owner,
    Other,
}

const ROUNDS: [Round; 3] = [Round::Rehearsal, Round::Owner, Round::Other];

/// One part, and which items are in it.
struct Part {
    round: Round,
    side: ClusterSide,
    items: Vec<usize>,
}

/// What is special about an API that changes things on both sides.
pub(super) trait Changes {
    /// A request of one side with these items.
    fn body(&self, cx: &Cx<'_>, side: ClusterSide, items: &[usize], rehearsal: bool) -> Struct;

    /// What an answer of `side` says of an item.
    fn found<'a>(
        &self,
        cx: &Cx<'_>,
        item: usize,
        side: ClusterSide,
        answer: &'a Struct,
    ) -> Option<&'a Struct>;
}

/// The rounds of a request.
#[derive(Default)]
pub(super) struct Rounds {
    pub items: Vec<Item>,
    can_rehearse: bool,
    begun: usize,
    parts: Vec<Part>,
}

/// How an item fared.
pub(super) enum Fared<'a> {
    /// The owner's word, which may be a refusal. Where only the other side had to do it, that one's.
    Told(&'a Struct),
    Refused(Refusal),
}

enum Said<'a> {
    NotAsked,
    Nothing,
    Word(&'a Struct),
}

impl Rounds {
    /// `can_rehearse`: the API can be asked whether it would do it (`ValidateOnly`).
    pub(super) fn new(items: Vec<Item>, can_rehearse: bool) -> Rounds {
        Rounds { items, can_rehearse, ..Rounds::default() }
    }

    /// The asks of the next round that has any.
    pub(super) fn next(
        &mut self,
        cx: &Cx<'_>,
        changes: &impl Changes,
        answers: &[Option<Struct>],
    ) -> Vec<Ask> {
        while let Some(round) = ROUNDS.get(self.begun).copied() {
            self.begun += 1;
            let mut by_upstream: BTreeMap<UpstreamKey, Vec<usize>> = BTreeMap::new();
            for (index, item) in self.items.iter().enumerate() {
                let Some(upstream) = item.upstream(round) else { continue };
                let earlier = ROUNDS[..self.begun - 1].iter();
                let stands = earlier.clone().all(|r| self.is_well(cx, changes, index, *r, answers));
                if stands && (round != Round::Rehearsal || self.can_rehearse) {
                    by_upstream.entry(upstream).or_default().push(index);
                }
            }
            let mut asks = Vec::new();
            for (upstream, items) in by_upstream {
                let side = upstream.node.side;
                asks.push(Ask::new(upstream, changes.body(cx, side, &items, round == Round::Rehearsal)));
                self.parts.push(Part { round, side, items });
            }
            if !asks.is_empty() {
                return asks;
            }
        }
        Vec::new()
    }

    /// Whether all sides of an item have done it.
    pub(super) fn is_done(
        &self,
        cx: &Cx<'_>,
        changes: &impl Changes,
        item: usize,
        answers: &[Option<Struct>],
    ) -> bool {
        let asked = |round: &Round| self.items[item].upstream(*round).is_some();
        self.items[item].places.is_ok()
            && ROUNDS.iter().all(|round| self.is_well(cx, changes, item, *round, answers))
            && [Round::Owner, Round::Other]
                .iter()
                .filter(|round| asked(round))
                .all(|round| matches!(self.said(cx, changes, item, *round, answers), Said::Word(_)))
    }

    fn is_well(
        &self,
        cx: &Cx<'_>,
        changes: &impl Changes,
        item: usize,
        round: Round,
        answers: &[Option<Struct>],
    ) -> bool {
        match self.said(cx, changes, item, round, answers) {
            Said::NotAsked => true,
            Said::Nothing => false,
            Said::Word(word) => self.items[item].is_well(word.i16("ErrorCode")),
        }
    }

    fn said<'a>(
        &self,
        cx: &Cx<'_>,
        changes: &impl Changes,
        item: usize,
        round: Round,
        answers: &'a [Option<Struct>],
    ) -> Said<'a> {
        let part = self.parts.iter().position(|p| p.round == round && p.items.contains(&item));
        let Some(part) = part else { return Said::NotAsked };
        let answer = answers.get(part).and_then(Option::as_ref);
        answer
            .and_then(|answer| changes.found(cx, item, self.parts[part].side, answer))
            .map_or(Said::Nothing, Said::Word)
    }

    /// What the client is told of an item.
    pub(super) fn fared<'a>(
        &self,
        cx: &Cx<'_>,
        changes: &impl Changes,
        item: usize,
        answers: &'a [Option<Struct>],
    ) -> Fared<'a> {
        let item_of = &self.items[item];
        let owner = match &item_of.places {
            Ok(places) => places.first().map_or(ClusterSide::Source, |u| u.node.side),
            Err(refusal) => return Fared::Refused(refusal.clone()),
        };
        let other = owner.other();
        let said = |round| self.said(cx, changes, item, round, answers);
        let is_well = |word: &Struct| item_of.is_well(word.i16("ErrorCode"));
        match said(Round::Rehearsal) {
            Said::Word(word) if !is_well(word) => {
                let text = why(word);
                return Fared::Refused((
                    word.i16("ErrorCode"),
                    format!("the {other}, where the topic also is, refuses it: {text}; nothing was changed"),
                ));
            }
            Said::Nothing => {
                return silent(format!("the {other} has not answered; nothing was changed: try again"));
            }
            _ => {}
        }
        match (said(Round::Owner), said(Round::Other)) {
            (Said::Word(word), _) if !is_well(word) => Fared::Told(word),
            (Said::Nothing, _) => silent(format!("the {owner} has not answered: try again")),
            (_, Said::Nothing) => {
                silent(format!("done on the {owner}; the {other} has not answered: try again"))
            }
            (_, Said::Word(word)) if !is_well(word) => {
                silent(format!("done on the {owner}, refused by the {other}: {}; try again", why(word)))
            }
            // One of them may have had it no more.
            (Said::Word(first), Said::Word(second)) if first.i16("ErrorCode") != code::NONE => {
                Fared::Told(second)
            }
            (Said::Word(word), _) | (Said::NotAsked, Said::Word(word)) => Fared::Told(word),
            (Said::NotAsked, Said::NotAsked) => silent("the clusters were not asked: try again".to_owned()),
        }
    }
}

/// What a cluster says against it.
fn why(word: &Struct) -> String {
    let (error, text) = (word.i16("ErrorCode"), word.opt_str("ErrorMessage").unwrap_or_default());
    format!("error {error} {text}").trim().to_owned()
}

fn silent<'a>(text: String) -> Fared<'a> {
    Fared::Refused((code::REQUEST_TIMED_OUT, text))
}

/// Where a topic is changed: at its owner, and at the other side if that has a topic of its name too. Kafka's internal
/// topics are each cluster's own.
///
/// # Errors
/// A side that has it cannot be reached, or the route is frozen and `frozen_is_fine` is false: nothing is changed.
pub(super) fn places(cx: &Cx<'_>, name: &str, frozen_is_fine: bool) -> Result<Vec<UpstreamKey>, Refusal> {
    if name == STATE_TOPIC {
        let text = "it holds the copy of Crossover's state: delete it in the clusters when Crossover is gone";
        return Err((code::POLICY_VIOLATION, text.to_owned()));
    }
    let route = cx.snapshot.routes.topic(name);
    if let Some(why) = route.and_then(|r| r.frozen.as_ref()).filter(|_| !frozen_is_fine) {
        return Err((code::REQUEST_TIMED_OUT, format!("the topic is frozen: {why}")));
    }
    let owner = cx.snapshot.routes.owner(name);
    let is_shared = |r: &&Arc<TopicRoute>| is_there(cx, r, owner.other()) && !is_internal(cx, r, owner);
    let sides = [Some(owner), route.filter(is_shared).map(|_| owner.other())];
    let place = |side: ClusterSide| {
        let upstream = cx.any_upstream(side);
        upstream.filter(|_| side == owner || cx.snapshot.topology(side).reachable).ok_or_else(|| {
            (code::REQUEST_TIMED_OUT, format!("the {side}, where the topic is, cannot be reached: try again"))
        })
    };
    sides.into_iter().flatten().map(place).collect()
}

fn is_internal(cx: &Cx<'_>, route: &TopicRoute, side: ClusterSide) -> bool {
    cx.snapshot.topology(side).topic(route.physical(side)).is_some_and(|topic| topic.internal)
}

/// Whether a side has a topic of the route's name there.
pub(super) fn is_there(cx: &Cx<'_>, route: &TopicRoute, side: ClusterSide) -> bool {
    cx.snapshot.topology(side).topic(route.physical(side)).is_some()
}

/// Whether a side has another topic under the name than the one the route is of.
pub(super) fn is_recreated(cx: &Cx<'_>, route: &TopicRoute) -> bool {
    ClusterSide::BOTH.into_iter().any(|side| {
        let now = cx.snapshot.topology(side).topic(route.physical(side)).map(|topic| topic.id);
        let known = route.native_id(side);
        now.is_some_and(|now| !now.is_zero() && !known.is_zero() && now != known)
    })
}

/// The items' elements as the array of a request.
pub(super) fn elements(items: &[usize], element: impl FnMut(usize) -> Value) -> Vec<Value> {
    items.iter().copied().map(element).collect()
}
