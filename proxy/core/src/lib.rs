//! The pure core of Crossover: bytes and events in, bytes and effects out.
//!
//! Nothing here opens a socket, reads a clock, draws a random number or writes a log line; time is an argument.

pub mod api;
pub mod bug;
pub mod cutover;
pub mod error_code;
pub mod group;
pub mod ids;
pub mod node;
pub mod producer;
pub mod route;
pub mod schema;
pub mod session;
pub mod timeline;
pub mod wire;
