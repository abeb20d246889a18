//! Requests that are asked of several brokers at once, and answered when all have spoken or their time is up.

use crate::schema::Struct;
use crate::session::{Answer, Cx, Operation, Step, UpstreamKey};

/// One part of a request, for one broker.
pub(super) struct Ask {
    pub upstream: UpstreamKey,
    pub body: Struct,
}

/// What is special about an API that is fanned out.
pub(super) trait Plan: Send {
    /// What to ask, in the version of the client's request.
    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask>;

    /// What is still to be asked once all of `answers` are in; called until it is nothing. Not called when the time
    /// is up.
    fn more(&mut self, _cx: &mut Cx<'_>, _answers: &[Option<Struct>]) -> Vec<Ask> {
        Vec::new()
    }

    /// Puts the client's answer together. `answers[i]` belongs to ask `i`; `None` where none came.
    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step;

    /// How long answers are waited for, milliseconds.
    fn patience_ms(&self) -> i64;
}

/// A fanned-out request.
pub(super) struct Fan<P> {
    plan: P,
    answers: Vec<Option<Struct>>,
    waiting: Vec<bool>,
    until_ms: i64,
}

impl<P: Plan> Fan<P> {
    pub(super) fn new(plan: P) -> Fan<P> {
        Fan { plan, answers: Vec::new(), waiting: Vec::new(), until_ms: 0 }
    }

    fn send(&mut self, cx: &mut Cx<'_>, asks: &[Ask]) {
        for ask in asks {
            let part = u32::try_from(self.answers.len()).unwrap_or(u32::MAX);
            let sent = cx.forward(ask.upstream, &ask.body, part);
            self.answers.push(None);
            self.waiting.push(sent);
        }
    }

    fn finish(&mut self, cx: &mut Cx<'_>) -> Step {
        while cx.now_ms < self.until_ms {
            if self.waiting.contains(&true) {
                cx.deadline_ms = Some(self.until_ms);
                return Step::Pending;
            }
            let more = self.plan.more(cx, &self.answers);
            if more.is_empty() {
                break;
            }
            self.send(cx, &more);
        }
        self.plan.merge(cx, std::mem::take(&mut self.answers))
    }
}

impl<P: Plan> Operation for Fan<P> {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        let asks = self.plan.asks(cx);
        self.until_ms = cx.now_ms.saturating_add(self.plan.patience_ms());
        self.send(cx, &asks);
        self.finish(cx)
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, part: u32, answer: Answer) -> Step {
        let index = part as usize;
        let Some(waiting) = self.waiting.get_mut(index) else { return Step::Pending };
        *waiting = false;
        if let Answer::Frame { frame, body_at, version } = answer {
            match cx.decode(cx.header.api_key, &frame, body_at, version) {
                Ok(response) => self.answers[index] = Some(response),
                Err(reason) => return Step::Close(reason),
            }
        }
        self.finish(cx)
    }

    fn on_wake(&mut self, cx: &mut Cx<'_>) -> Step {
        self.finish(cx)
    }
}

/// The longest throttle time of all parts (RULES R33).
pub(super) fn throttle_ms(answers: &[Option<Struct>]) -> i32 {
    answers.iter().flatten().map(|a| a.i32("ThrottleTimeMs")).max().unwrap_or(0)
}
