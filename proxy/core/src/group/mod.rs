//! What all sessions know of consumer groups.

/// Groups that have been seen, and those that are being moved.
#[derive(Debug, Default)]
pub struct GroupRegistry {}
