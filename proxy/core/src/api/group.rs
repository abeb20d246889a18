//! Group membership as one client connection sees it. (JoinGroup, SyncGroup, Heartbeat, LeaveGroup.)

/// The group memberships of one client connection.
#[derive(Debug, Default)]
pub struct Members {}
