//! What surrounds a message on a connection: frames and headers.

pub mod frame;
pub mod header;
