//! Fetch (key 1).

/// The fetch sessions of one client connection.
#[derive(Debug, Default)]
pub struct ClientSessions {}
