//! Requests that name several groups: each group's part goes to the coordinator of its own home (RULES R27).
//!
//! The groups at home on the side of the client's node go together to the client's own broker, which judges for itself;
//! a group of the other side goes by a companion to its coordinator.

use super::fan;
use super::group::{self, Finder, Found};
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::schema::{Struct, Value};
use crate::session::{Answer, Class, CloseReason, Cx, Errand, ErrandDone, Operation, Step, UpstreamKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Two calls for each bundle: the lookup of its coordinator, and the request.
const CALLS: u32 = 2;

/// A request that names several groups.
pub(super) struct GroupBatch {
    request: Struct,
    /// The array of the request with the names, and that of the response.
    names: &'static str,
    results: &'static str,
    /// The groups are deleted: so are the copies of their commits at the other side.
    deletes: bool,
    /// Puts a group of a response into the client's terms.
    shown: fn(&Cx<'_>, ClusterSide, &mut Struct),
    bundles: Vec<Bundle>,
    /// What became of the copies, by the group's place in the request. `None`: not told yet.
    copies: BTreeMap<u32, Option<ErrandDone>>,
    copies_asked: bool,
}

/// Groups that go to one broker.
struct Bundle {
    groups: Vec<String>,
    home: ClusterSide,
    finder: Finder,
    state: State,
}

enum State {
    Finding,
    Sent(UpstreamKey),
    Answered(Option<Struct>),
}

impl GroupBatch {
    pub(super) fn new(
        request: Struct,
        names: &'static str,
        results: &'static str,
        deletes: bool,
    ) -> GroupBatch {
        GroupBatch {
            request,
            names,
            results,
            deletes,
            shown: |_, _, _| {},
            bundles: Vec::new(),
            copies: BTreeMap::new(),
            copies_asked: false,
        }
    }

    pub(super) fn shown_by(self, shown: fn(&Cx<'_>, ClusterSide, &mut Struct)) -> GroupBatch {
        GroupBatch { shown, ..self }
    }

    fn bundles(&self, cx: &Cx<'_>) -> Vec<Bundle> {
        let (mut own, mut others) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        // A name that comes again has the same answer.
        let names = self.request.strs(self.names).filter(|name| seen.insert(*name));
        for group in names.map(str::to_owned) {
            match cx.snapshot.group_home(&group) {
                home if home == cx.core.node.side => own.push(group),
                home => others.push((home, vec![group])),
            }
        }
        let own = (!own.is_empty()).then_some((cx.core.node.side, own));
        let bundle = |(index, (home, groups)): (u32, (ClusterSide, Vec<String>))| {
            let finder = Finder::new(groups.first().cloned().unwrap_or_default(), Class::Produce);
            Bundle { groups, home, finder: finder.with_lookup(index * CALLS), state: State::Finding }
        };
        (0..).zip(own.into_iter().chain(others)).map(bundle).collect()
    }

    fn send(&mut self, cx: &mut Cx<'_>, index: usize) {
        let Some(bundle) = self.bundles.get_mut(index) else { return };
        let found = if bundle.home == cx.core.node.side {
            Found::At(cx.upstream(bundle.home, cx.core.node.broker, Class::Produce))
        } else {
            bundle.finder.find(cx, bundle.home)
        };
        match found {
            Found::Later => {}
            Found::Nowhere => bundle.state = State::Answered(None),
            Found::At(upstream) => {
                let mut body = self.request.clone();
                body.set(self.names, bundle.groups.iter().map(Value::from).collect::<Vec<Value>>());
                let part = u32::try_from(index).unwrap_or(u32::MAX / CALLS) * CALLS + group::REQUEST;
                let sent = cx.forward(upstream, &body, part);
                bundle.state = if sent { State::Sent(upstream) } else { State::Answered(None) };
            }
        }
    }

    fn on_response(&mut self, cx: &mut Cx<'_>, index: usize, answer: Answer) -> Result<(), CloseReason> {
        let Some(bundle) = self.bundles.get_mut(index) else { return Ok(()) };
        let State::Sent(upstream) = bundle.state else { return Ok(()) };
        let native = upstream.class == Class::Native;
        let response = match answer {
            Answer::Frame { frame, body_at, version } => {
                let mut response = cx.decode(cx.header.api_key, &frame, body_at, version)?;
                for group in response.structs_mut(self.results) {
                    (self.shown)(cx, bundle.home, group);
                }
                Some(response)
            }
            Answer::Lost { .. } if native => return Err(CloseReason::UpstreamLost),
            Answer::Lost { .. } => None,
        };
        let is_bad = response.as_ref().is_none_or(|r| r.structs(self.results).any(group::is_elsewhere));
        if !native && is_bad && !bundle.finder.is_over(cx) {
            bundle.finder.forget(cx, bundle.home);
            bundle.state = State::Finding;
        } else {
            bundle.state = State::Answered(response);
        }
        Ok(())
    }

    /// Once all have spoken, the copies are dealt with, and then the client is answered.
    fn go_on(&mut self, cx: &mut Cx<'_>) -> Step {
        if !self.bundles.iter().all(|b| matches!(b.state, State::Answered(_))) {
            return Step::Pending;
        }
        if !std::mem::replace(&mut self.copies_asked, true) && self.deletes {
            let told = self.told();
            let mut gone = Vec::new();
            for (part, name) in (0..).zip(self.request.strs(self.names)) {
                // One that is not at its home any more may have left copies: its deletion was cut short.
                if [code::NONE, code::GROUP_ID_NOT_FOUND].contains(&error_of(told.get(name).copied())) {
                    gone.push((part, Arc::from(name)));
                }
            }
            for (part, group) in gone {
                self.copies.insert(part, None);
                cx.run_errand(part, Errand::ForgetCommits { group, partitions: None });
            }
        }
        if self.copies.values().any(Option::is_none) {
            return Step::Pending;
        }
        self.reply(cx)
    }

    /// What the groups' homes say of them.
    fn told(&self) -> HashMap<&str, &Struct> {
        let answered = self.bundles.iter().filter_map(|b| match &b.state {
            State::Answered(Some(response)) => Some(response),
            _ => None,
        });
        let groups = answered.flat_map(|response| response.structs(self.results));
        groups.map(|group| (group.str("GroupId"), group)).collect()
    }

    fn reply(&self, cx: &Cx<'_>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        let answers = self.bundles.iter().map(|b| match &b.state {
            State::Answered(response) => response.clone(),
            _ => None,
        });
        response.set("ThrottleTimeMs", fan::throttle_ms(&answers.collect::<Vec<_>>()));
        let told = self.told();
        for (part, group) in (0..).zip(self.request.strs(self.names)) {
            let found = told.get(group).copied();
            let error = error_of(found);
            let mut out = found.cloned().unwrap_or_else(|| response.new_element(self.results));
            let error = match self.copies.get(&part).cloned().flatten() {
                Some(Err(_)) => code::COORDINATOR_NOT_AVAILABLE,
                Some(Ok(true)) => code::NONE,
                Some(Ok(false)) | None => error,
            };
            out.set("GroupId", group);
            out.set("ErrorCode", error);
            response.push(self.results, out);
        }
        Step::Reply(response)
    }
}

/// The error in what a group's home says of it.
fn error_of(group: Option<&Struct>) -> i16 {
    group.map_or(code::COORDINATOR_NOT_AVAILABLE, |group| group.i16("ErrorCode"))
}

impl Operation for GroupBatch {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        self.bundles = self.bundles(cx);
        (0..self.bundles.len()).for_each(|index| self.send(cx, index));
        self.go_on(cx)
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, part: u32, answer: Answer) -> Step {
        let index = (part / CALLS) as usize;
        if part % CALLS == group::REQUEST {
            if let Err(reason) = self.on_response(cx, index, answer) {
                return Step::Close(reason);
            }
        } else if let Some(bundle) = self.bundles.get_mut(index)
            && bundle.finder.found(cx, bundle.home, answer)
            && matches!(bundle.state, State::Finding)
        {
            self.send(cx, index);
        }
        self.go_on(cx)
    }

    fn on_errand_done(&mut self, cx: &mut Cx<'_>, part: u32, done: ErrandDone) -> Step {
        self.copies.insert(part, Some(done));
        self.go_on(cx)
    }

    fn on_wake(&mut self, cx: &mut Cx<'_>) -> Step {
        cx.deadline_ms = None;
        for index in 0..self.bundles.len() {
            if matches!(self.bundles[index].state, State::Finding) {
                self.send(cx, index);
            }
        }
        self.go_on(cx)
    }

    fn on_client_gone(&mut self, _cx: &mut Cx<'_>) -> Step {
        // A group that is deleted at its home only would come back when it is moved.
        let under_way = self.bundles.iter().any(|b| matches!(b.state, State::Sent(_)));
        let copies = self.copies.values().any(Option::is_none);
        if self.deletes && (under_way || copies) { Step::Pending } else { Step::Done }
    }
}

#[cfg(test)]
mod tests;
