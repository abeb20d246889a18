//! Request and response headers (KIP-482: `RequestHeader.json`, `ResponseHeader.json`).
//!
//! A request has header version 1, or 2 (with tagged fields) where its body is flexible; a response has 0, or 1 where
//! its body is flexible. The response of ApiVersions always has 0, so that a client can read the refusal of a version.

use super::frame::PREFIX_LEN;
use crate::schema::{
    self, Cursor, EncodeError, Kind, Message, Misfit, Problem, STRING_MAX, Str, Struct, Type,
    UNKNOWN_TAG_BYTES_MAX, WalkError, put_varint,
};
use bytes::{BufMut, Bytes, BytesMut};

const API_VERSIONS: i16 = 18;

/// What can be wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("bad header: {0}")]
    Malformed(#[from] WalkError),
    /// The API has no table. What can be read of the header comes along, for an answer or a log line.
    #[error("unknown API key {api_key} (version {api_version})")]
    UnknownApi { api_key: i16, api_version: i16, correlation_id: i32 },
}

/// The header of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    pub api_key: i16,
    /// As the client sent it: it may be one the tables do not have.
    pub api_version: i16,
    pub correlation_id: i32,
    pub client_id: Option<Str>,
    /// Where the body starts in the frame.
    pub body_offset: usize,
}

/// Reads the header of a request frame (without its length prefix); the body is not looked at.
///
/// # Errors
/// [`HeaderError`] for a frame that is no request, or one of an API without a table.
pub fn peek_request(frame: &Bytes) -> Result<RequestHeader, HeaderError> {
    let mut cursor = Cursor::new(frame, false);
    cursor.field = "header";
    let api_key = i16::from_be_bytes(cursor.take()?);
    let api_version = i16::from_be_bytes(cursor.take()?);
    let correlation_id = i32::from_be_bytes(cursor.take()?);
    let Some(message) = schema::request(api_key) else {
        return Err(HeaderError::UnknownApi { api_key, api_version, correlation_id });
    };
    let client_id = read_client_id(&mut cursor)?;
    if message.is_flexible(api_version) {
        skip_tags(&mut cursor)?;
    }
    Ok(RequestHeader { api_key, api_version, correlation_id, client_id, body_offset: cursor.at })
}

/// Never compact, not even in header version 2.
fn read_client_id(cursor: &mut Cursor<&Bytes>) -> Result<Option<Str>, WalkError> {
    let Some(length) = cursor.length(Type::String, true)? else { return Ok(None) };
    let range = cursor.skip(length)?;
    Str::from_utf8(cursor.body.slice(range)).map(Some).ok_or_else(|| cursor.error(Problem::Utf8))
}

fn skip_tags(cursor: &mut Cursor<&Bytes>) -> Result<(), WalkError> {
    let start = cursor.at;
    let mut last = None;
    for _ in 0..cursor.tag_count()? {
        let (tag, end) = cursor.tag_head(last)?;
        last = Some(tag);
        cursor.at = end;
    }
    if cursor.at - start > UNKNOWN_TAG_BYTES_MAX { Err(cursor.error(Problem::TagBytes)) } else { Ok(()) }
}

/// Reads the header of a response frame (without its length prefix): the correlation id, and where the body starts.
///
/// # Errors
/// [`HeaderError`] for a frame that is too short or has bad tagged fields.
pub fn decode_response_header(
    message: &Message,
    version: i16,
    frame: &Bytes,
) -> Result<(i32, usize), HeaderError> {
    let mut cursor = Cursor::new(frame, false);
    cursor.field = "header";
    let correlation_id = i32::from_be_bytes(cursor.take()?);
    if has_response_tags(message, version) {
        skip_tags(&mut cursor)?;
    }
    Ok((correlation_id, cursor.at))
}

/// A whole request frame, its length prefix included.
///
/// # Errors
/// [`EncodeError`] for a body the table does not allow, or a client id that is too long.
pub fn encode_request(
    message: &Message,
    version: i16,
    correlation_id: i32,
    client_id: Option<&Str>,
    body: &Struct,
) -> Result<Bytes, EncodeError> {
    debug_assert_eq!(message.kind, Kind::Request);
    let client_id = client_id.map(Str::as_bytes);
    if let Some(id) = client_id.filter(|id| id.len() > STRING_MAX) {
        return Err(EncodeError { field: "ClientId", problem: Misfit::Length(id.len()) });
    }
    let mut out = start_frame();
    out.put_i16(message.key);
    out.put_i16(version);
    out.put_i32(correlation_id);
    out.put_i16(client_id.map_or(-1, |id| id.len() as i16));
    out.put_slice(client_id.map(|id| &**id).unwrap_or_default());
    if message.is_flexible(version) {
        put_varint(&mut out, 0);
    }
    schema::encode(message, version, body, &mut out)?;
    finish_frame(out)
}

/// A whole response frame, its length prefix included.
///
/// # Errors
/// [`EncodeError`] for a body the table does not allow.
pub fn encode_response(
    message: &Message,
    version: i16,
    correlation_id: i32,
    body: &Struct,
) -> Result<Bytes, EncodeError> {
    debug_assert_eq!(message.kind, Kind::Response);
    let mut out = start_frame();
    out.put_i32(correlation_id);
    if has_response_tags(message, version) {
        put_varint(&mut out, 0);
    }
    schema::encode(message, version, body, &mut out)?;
    finish_frame(out)
}

fn has_response_tags(message: &Message, version: i16) -> bool {
    message.key != API_VERSIONS && message.is_flexible(version)
}

fn start_frame() -> BytesMut {
    let mut out = BytesMut::with_capacity(512);
    out.put_i32(0);
    out
}

fn finish_frame(mut out: BytesMut) -> Result<Bytes, EncodeError> {
    let length = out.len() - PREFIX_LEN;
    let too_long = |_| EncodeError { field: "", problem: Misfit::Length(length) };
    let prefix = i32::try_from(length).map_err(too_long)?;
    if let Some(place) = out.first_chunk_mut::<PREFIX_LEN>() {
        *place = prefix.to_be_bytes();
    }
    Ok(out.freeze())
}
