//! What all sessions know of consumer groups.

/// Groups that have been seen, and those that are being moved.
#[derive(Debug, Default)]
pub struct GroupRegistry {}

impl GroupRegistry {
    pub fn names(&self) -> Vec<std::sync::Arc<str>> { Vec::new() }
    pub fn tagged(&self, _group: &str) -> u32 { 0 }
    pub fn is_drained(&self, _group: &str) -> bool { true }
}
