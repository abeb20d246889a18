//! Producers over a flip: what a batch says of itself, the ids producers go by, and what was appended for them.

pub mod batch;
pub mod carry;
pub mod crc;
pub mod gate;
pub mod pid;
pub mod transaction;
