//! DescribeGroups (key 15): each group described by its home.
//!
//! Source: `DescribeGroupsRequest.json`, KIP-1043 (version 6); RULES R27.

use super::group_batch::GroupBatch;
use crate::schema::Struct;

pub(super) fn describe_groups(request: Struct) -> GroupBatch {
    GroupBatch::new(request, "Groups", "Groups", false)
}
