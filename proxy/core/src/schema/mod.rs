//! Kafka's messages as data (DESIGN decision 8): one table per API describes all versions of its request and response;
//! one walker validates and patches bodies by it, one codec decodes and encodes them.
//!
//! ```
//! use crossover_core::schema;
//! # use bytes::BytesMut;
//! let message = schema::response(12).expect("Heartbeat has a table");
//! let mut body = schema::Struct::new(message.fields);
//! body.set("ErrorCode", 27);
//! let mut out = BytesMut::new();
//! schema::encode(message, 4, &body, &mut out)?;
//! assert_eq!(schema::decode(message, 4, &out.freeze())?.i16("ErrorCode"), 27);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod codec;
mod cursor;
mod table;
#[rustfmt::skip]
mod tables;
mod text;
mod value;
mod walk;

pub(crate) use codec::put_varint;
pub use codec::{BUDGET_FACTOR, EncodeError, Misfit, REQUEST_BUDGET, RESPONSE_BUDGET, decode, encode};
pub(crate) use cursor::Cursor;
pub use cursor::{Problem, STRING_MAX, TAGS_MAX, UNKNOWN_TAG_BYTES_MAX, WalkError};
pub use table::{DefaultValue, Field, Kind, Mark, Message, Type, Versions};
pub use text::Str;
pub use value::{Struct, Value};
pub use walk::{patch, validate, visit};

/// The table of a request's body; `None` for an API that clients do not use.
#[must_use]
pub fn request(key: i16) -> Option<&'static Message> {
    tables::request(key)
}

/// The table of a response's body.
#[must_use]
pub fn response(key: i16) -> Option<&'static Message> {
    tables::response(key)
}

/// The API keys that have tables, ascending.
#[must_use]
pub fn keys() -> &'static [i16] {
    tables::KEYS
}
