//! A backend at revision 7 that runs one operation at a time and never finishes it.

use std::sync::{Mutex, MutexGuard};

use tokio::sync::broadcast;

use crate::model::*;
use crate::{ApiError, Backend, Reply};

pub(super) struct Fake {
    state: Mutex<State>,
    pub(super) events: broadcast::Sender<Event>,
}

#[derive(Default)]
struct State {
    running: Option<OperationView>,
    log: Vec<String>,
}

impl Default for Fake {
    fn default() -> Fake {
        Fake { state: Mutex::default(), events: broadcast::channel(16).0 }
    }
}

impl Fake {
    pub(super) fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    fn begin(
        &self,
        kind: OperationKind,
        revision: u64,
        topics: Vec<String>,
    ) -> Result<OperationView, ApiError> {
        let mut state = self.lock();
        state.log.push(kind.to_string());
        if revision != 7 {
            return Err(ApiError::revision_mismatch(revision, 7));
        }
        if let Some(running) = &state.running {
            return Err(ApiError::operation_running(&running.id));
        }
        let view = operation("1", kind, topics);
        state.running = Some(view.clone());
        Ok(view)
    }
}

fn operation(id: &str, kind: OperationKind, topics: Vec<String>) -> OperationView {
    OperationView {
        id: id.into(),
        kind,
        topics,
        groups: Vec::new(),
        to: Side::Target,
        state: OperationState::Prepare,
        started_ms: 1,
        finished_ms: None,
        steps: Vec::new(),
        checks: Vec::new(),
        hold_ms: None,
        revision: None,
        reason: None,
        remedy: None,
        partitions: Vec::new(),
    }
}

fn reply<'a, T: Send + 'a>(value: Result<T, ApiError>) -> Reply<'a, T> {
    Box::pin(async move { value })
}

impl Backend for Fake {
    fn health(&self) -> Reply<'_, Health> {
        reply(Ok(Health { live: true, ready: false, reasons: vec!["the fake is never ready".into()] }))
    }

    fn status(&self) -> Reply<'_, Status> {
        reply(Ok(Status {
            revision: 7,
            ready: false,
            operation: None,
            last_operation: None,
            topics: Vec::new(),
            groups: Vec::new(),
            producers_not_moved: Vec::new(),
            may_stop_source: Verdict { answer: false, reasons: vec!["it owns topics".into()] },
            alarms: Vec::new(),
        }))
    }

    fn clusters(&self) -> Reply<'_, Vec<ClusterView>> {
        reply(Ok(Vec::new()))
    }

    fn topics(&self) -> Reply<'_, Vec<TopicView>> {
        reply(Ok(Vec::new()))
    }

    fn routes(&self) -> Reply<'_, Routes> {
        reply(Ok(Routes { revision: 7, routes: Vec::new() }))
    }

    fn transactions(&self) -> Reply<'_, Vec<TransactionView>> {
        reply(Ok(Vec::new()))
    }

    fn transaction_abort(&self, request: TransactionAbortRequest) -> Reply<'_, Vec<TransactionView>> {
        let id = request.transactional_id;
        reply(Err(ApiError::not_found(format!("No transaction of {id} is open."), "nothing to do")))
    }

    fn groups(&self) -> Reply<'_, Vec<GroupView>> {
        reply(Ok(Vec::new()))
    }

    fn plan(&self, request: PlanRequest) -> Reply<'_, Plan> {
        self.lock().log.push("plan".into());
        reply(Ok(Plan {
            revision: 7,
            to: request.to.unwrap_or(Side::Target),
            topics: request.topics,
            groups: request.groups,
            checks: Vec::new(),
            expected_pause_ms: None,
            refused: false,
            nothing_to_do: false,
        }))
    }

    fn cutover(&self, expected_revision: u64, request: FlipRequest) -> Reply<'_, OperationView> {
        reply(self.begin(OperationKind::Cutover, expected_revision, request.topics))
    }

    fn rollback(&self, expected_revision: u64, request: FlipRequest) -> Reply<'_, OperationView> {
        reply(self.begin(OperationKind::Rollback, expected_revision, request.topics))
    }

    fn abort(&self, _: AbortRequest) -> Reply<'_, OperationView> {
        let running = self.lock().running.take();
        let aborted = running.map(|view| OperationView { state: OperationState::Aborted, ..view });
        reply(aborted.ok_or_else(|| ApiError::not_found("No operation is running.", "nothing to do")))
    }

    fn group_move(&self, expected_revision: u64, _: GroupMoveRequest) -> Reply<'_, OperationView> {
        reply(self.begin(OperationKind::GroupMove, expected_revision, Vec::new()))
    }

    fn operation(&self, id: String) -> Reply<'_, OperationView> {
        reply(Ok(operation(&id, OperationKind::Cutover, Vec::new())))
    }

    fn ledger(&self, since: u64) -> Reply<'_, Ledger> {
        reply(Ok(Ledger { entries: Vec::new(), next: since }))
    }

    fn translate(&self, query: TranslateQuery) -> Reply<'_, Translation> {
        reply(Ok(Translation {
            topic: query.topic,
            partition: query.partition,
            virtual_offset: None,
            side: query.side,
            native_offset: Some(query.offset),
            era: None,
            explanation: "as asked".into(),
        }))
    }

    fn metrics(&self) -> Reply<'_, String> {
        reply(Ok("up 1\n".into()))
    }

    fn watch(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}
