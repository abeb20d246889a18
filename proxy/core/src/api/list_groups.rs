//! ListGroups (key 16): each side's groups that are at home there; mirrored commits of the others are hidden.
//!
//! A client asks every broker and puts the answers together, so each node answers for its own broker alone.

use super::fan::{Ask, Plan};
use super::view;
use crate::error_code as code;
use crate::schema::Struct;
use crate::session::{Class, Cx, Step};

pub(super) struct ListGroups {
    request: Struct,
}

impl ListGroups {
    pub(super) fn new(request: Struct) -> ListGroups {
        ListGroups { request }
    }
}

impl Plan for ListGroups {
    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask> {
        let node = cx.core.node;
        vec![Ask::new(cx.upstream(node.side, node.broker, Class::Native), self.request.clone())]
    }

    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step {
        let side = cx.core.node.side;
        let mut response = match answers.into_iter().flatten().next() {
            Some(response) => response,
            None => {
                let Some(mut response) = cx.empty_response() else { return Step::Done };
                response.set("ErrorCode", code::COORDINATOR_NOT_AVAILABLE);
                response
            }
        };
        if let Some(groups) = response.array_mut("Groups") {
            groups
                .retain(|g| g.as_struct().is_some_and(|g| cx.snapshot.group_home(g.str("GroupId")) == side));
        }
        Step::Reply(response)
    }

    fn patience_ms(&self) -> i64 {
        view::PATIENCE_MS
    }
}
