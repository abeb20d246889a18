//! Requests that are asked of several brokers, in one round or more, and answered when all have spoken or their time is
//! up. A change of a topic asks first whether it may begin, and may need something durable between its rounds.

use super::key;
use crate::ids::ClusterSide;
use crate::schema::Struct;
use crate::session::{Answer, Cx, Errand, ErrandDone, Operation, Step, UpstreamKey};

/// Between two attempts to begin, milliseconds.
const BEGIN_RETRY_MS: i64 = 20;

/// One part of a request, for one broker.
pub(super) struct Ask {
    pub upstream: UpstreamKey,
    pub body: Struct,
    /// The API key and version of the part, where they are not those of the client's request.
    api: Option<(i16, i16)>,
}

impl Ask {
    /// A part of the client's own API, in the version it asked in.
    pub(super) fn new(upstream: UpstreamKey, body: Struct) -> Ask {
        Ask { upstream, body, api: None }
    }

    /// A part of another API.
    pub(super) fn of(self, api_key: i16, version: i16) -> Ask {
        Ask { api: Some((api_key, version)), ..self }
    }
}

/// The version in which ListOffsets is asked of a side on the proxy's own account.
pub(super) fn list_offsets_version(cx: &Cx<'_>, side: ClusterSide) -> i16 {
    /// The last one before fields that only tiered storage needs.
    const NEWEST: i16 = 7;
    cx.snapshot.topology(side).api_ranges.range(key::LIST_OFFSETS).map_or(1, |(_, max)| max.min(NEWEST))
}

/// What is special about an API that is fanned out.
pub(super) trait Plan: Send {
    /// Whether it may begin now; asked again until it may, or the hold bound has passed (RULES R25, R26).
    fn begin(&mut self, _cx: &mut Cx<'_>) -> bool {
        true
    }

    /// What to ask, in the version of the client's request.
    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask>;

    /// What is still to be asked once all of `answers` are in; called until it is nothing. Not called when the time is
    /// up.
    fn more(&mut self, _cx: &mut Cx<'_>, _answers: &[Option<Struct>]) -> Vec<Ask> {
        Vec::new()
    }

    /// What must be durable before it goes on. Called when nothing is left to be asked, until it is nothing; after an
    /// errand there may be more to be asked.
    fn errand(&mut self, _cx: &mut Cx<'_>, _answers: &[Option<Struct>]) -> Option<Errand> {
        None
    }

    fn errand_done(&mut self, _done: ErrandDone) {}

    /// Puts the client's answer together. `answers[i]` belongs to ask `i`; `None` where none came. There are none at all
    /// where it could not begin.
    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step;

    /// How long answers are waited for, milliseconds.
    fn patience_ms(&self) -> i64;

    /// Whether it is to be seen through although the client has gone: half of a change is worse than all of it.
    fn is_change(&self) -> bool {
        false
    }
}

/// A fanned-out request.
pub(super) struct Fan<P> {
    plan: P,
    begun: bool,
    answers: Vec<Option<Struct>>,
    /// By ask: the API key of the answer that is awaited.
    waiting: Vec<Option<i16>>,
    on_errand: bool,
    until_ms: i64,
}

impl<P: Plan> Fan<P> {
    pub(super) fn new(plan: P) -> Fan<P> {
        Fan { plan, begun: false, answers: Vec::new(), waiting: Vec::new(), on_errand: false, until_ms: 0 }
    }

    fn begin(&mut self, cx: &mut Cx<'_>) -> Step {
        if !self.plan.begin(cx) {
            if cx.now_ms >= self.until_ms {
                return self.plan.merge(cx, Vec::new());
            }
            cx.deadline_ms = Some(self.until_ms.min(cx.now_ms + BEGIN_RETRY_MS));
            return Step::Pending;
        }
        self.begun = true;
        let asks = self.plan.asks(cx);
        self.until_ms = cx.now_ms.saturating_add(self.plan.patience_ms());
        self.send(cx, asks);
        self.go_on(cx)
    }

    fn send(&mut self, cx: &mut Cx<'_>, asks: Vec<Ask>) {
        for ask in asks {
            let part = u32::try_from(self.answers.len()).unwrap_or(u32::MAX);
            let (api_key, version) = ask.api.unwrap_or((cx.header.api_key, cx.header.api_version));
            let sent = cx.call(ask.upstream, api_key, version, &ask.body, part);
            self.answers.push(None);
            self.waiting.push(sent.then_some(api_key));
        }
    }

    fn is_waiting(&self) -> bool {
        self.on_errand || self.waiting.iter().any(Option::is_some)
    }

    fn go_on(&mut self, cx: &mut Cx<'_>) -> Step {
        while cx.now_ms < self.until_ms {
            if self.is_waiting() {
                cx.deadline_ms = Some(self.until_ms);
                return Step::Pending;
            }
            let more = self.plan.more(cx, &self.answers);
            if !more.is_empty() {
                self.send(cx, more);
                continue;
            }
            let Some(errand) = self.plan.errand(cx, &self.answers) else { break };
            self.on_errand = true;
            cx.run_errand(0, errand);
        }
        self.plan.merge(cx, std::mem::take(&mut self.answers))
    }
}

impl<P: Plan> Operation for Fan<P> {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        self.until_ms = cx.now_ms.saturating_add(cx.core.limits.hold_ms_max);
        self.begin(cx)
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, part: u32, answer: Answer) -> Step {
        let index = part as usize;
        let Some(api_key) = self.waiting.get_mut(index).and_then(Option::take) else { return Step::Pending };
        if let Answer::Frame { frame, body_at, version } = answer {
            match cx.decode(api_key, &frame, body_at, version) {
                Ok(response) => self.answers[index] = Some(response),
                Err(reason) => return Step::Close(reason),
            }
        }
        self.go_on(cx)
    }

    fn on_errand_done(&mut self, cx: &mut Cx<'_>, _part: u32, done: ErrandDone) -> Step {
        self.on_errand = false;
        self.plan.errand_done(done);
        self.go_on(cx)
    }

    fn on_wake(&mut self, cx: &mut Cx<'_>) -> Step {
        if self.begun { self.go_on(cx) } else { self.begin(cx) }
    }

    fn on_client_gone(&mut self, _cx: &mut Cx<'_>) -> Step {
        if self.begun && self.plan.is_change() && self.is_waiting() { Step::Pending } else { Step::Done }
    }
}

/// The longest throttle time of all parts (RULES R33).
pub(super) fn throttle_ms(answers: &[Option<Struct>]) -> i32 {
    answers.iter().flatten().map(|a| a.i32("ThrottleTimeMs")).max().unwrap_or(0)
}
