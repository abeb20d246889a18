//! DeleteGroups (key 42): each group deleted at its home, and then the copies of its commits at the other side: a copy
//! that survives would bring the group back when its home is moved.
//!
//! Source: KIP-229, `DeleteGroupsRequest.json`; RULES R27.

use super::group_batch::GroupBatch;
use crate::schema::Struct;

pub(super) fn delete_groups(request: Struct) -> GroupBatch {
    GroupBatch::new(request, "GroupsNames", "Results", true)
}
