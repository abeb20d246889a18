//! OffsetDelete (key 47): forgets commits at the group's home.

use super::common;
use super::group::GroupApi;
use crate::ids::ClusterSide;
use crate::schema::Struct;
use crate::session::{Cx, Step};

pub(super) struct OffsetDelete(pub(super) Struct);

impl GroupApi for OffsetDelete {
    fn group(&self) -> String {
        self.0.str("GroupId").to_owned()
    }

    fn request(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Struct {
        let mut request = self.0.clone();
        for topic in request.structs_mut("Topics") {
            let physical = common::physical_name(cx, topic.str("Name"), home);
            topic.set("Name", physical);
        }
        request
    }

    fn response(&mut self, cx: &mut Cx<'_>, home: ClusterSide, mut response: Struct) -> Step {
        common::names_to_virtual(cx, &mut response, home);
        Step::Reply(response)
    }
}
