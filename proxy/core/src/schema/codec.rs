//! From bytes to values and back, by the tables.

use super::cursor::{Cursor, Problem, STRING_MAX, UNKNOWN_TAG_BYTES_MAX, WalkError};
use super::table::{Field, Kind, Message, Type, Versions};
use super::text::Str;
use super::value::{Struct, UnknownTags, Value};
use super::walk;
use bytes::{BufMut, Bytes, BytesMut};

/// The memory a decoded request may take beyond its frame: this, or [`BUDGET_FACTOR`] times the body if that is more.
pub const REQUEST_BUDGET: usize = 64 << 20;

/// As [`REQUEST_BUDGET`], for responses: the Metadata of 200 000 partitions needs some 200 MiB, and brokers are trusted
/// further than clients.
pub const RESPONSE_BUDGET: usize = 512 << 20;

pub const BUDGET_FACTOR: usize = 8;

/// Decodes a body. Strings, bytes and records are slices of `body`.
///
/// Nearly everything that comes is well-formed, so it is read once: the decoder checks what [`walk::validate`] checks, and
/// keeps to the budget as it goes. Of what it refuses the walker says what is wrong.
///
/// # Errors
/// As [`walk::validate`], and [`Problem::Budget`] for a body whose values would take too much memory.
pub fn decode(message: &Message, version: i16, body: &Bytes) -> Result<Struct, WalkError> {
    let least = match message.kind {
        Kind::Request => REQUEST_BUDGET,
        Kind::Response => RESPONSE_BUDGET,
    };
    let budget = least.max(body.len().saturating_mul(BUDGET_FACTOR));
    let cursor = Cursor::new(body, message.is_flexible(version));
    if !message.versions.contains(version) {
        return Err(cursor.error(Problem::Version(version)));
    }
    let decoded = Decoder { cursor, version, memory: 0, budget }.whole(message.fields);
    decoded.map_err(|error| match walk::measure(message, version, body) {
        Ok(memory) if memory > budget => WalkError { at: 0, field: "", problem: Problem::Budget(memory) },
        Ok(_) => error,
        Err(error) => error,
    })
}

/// Room for so many elements is made before they have been read: a count is not to be trusted.
const AHEAD: usize = 1024;

struct Decoder<'b> {
    cursor: Cursor<&'b Bytes>,
    version: i16,
    /// What the values take so far, and what they may take, in bytes.
    memory: usize,
    budget: usize,
}

impl Decoder<'_> {
    fn whole(mut self, fields: &'static [Field]) -> Result<Struct, WalkError> {
        let out = self.fields(fields)?;
        match self.cursor.remaining() {
            0 => Ok(out),
            extra => Err(self.cursor.error(Problem::Trailing(extra))),
        }
    }

    fn fields(&mut self, fields: &'static [Field]) -> Result<Struct, WalkError> {
        self.count(fields.len())?;
        let mut values = Vec::with_capacity(fields.len());
        for field in fields {
            values.push(match field.is_plain(self.version) {
                true => self.value(field, field.ty, field.nullable.contains(self.version))?,
                false => field.value.copy(),
            });
        }
        let mut out = Struct::of(fields, values);
        if self.cursor.flexible {
            self.tags(&mut out)?;
        }
        Ok(out)
    }

    fn value(&mut self, field: &'static Field, ty: Type, nullable: bool) -> Result<Value, WalkError> {
        self.cursor.field = field.name;
        Ok(match ty {
            Type::Bool => Value::Bool(self.cursor.take::<1>()? != [0]),
            Type::Int8 => Value::Int(i8::from_be_bytes(self.cursor.take()?).into()),
            Type::Int16 => Value::Int(i16::from_be_bytes(self.cursor.take()?).into()),
            Type::Uint16 => Value::Int(u16::from_be_bytes(self.cursor.take()?).into()),
            Type::Int32 => Value::Int(i32::from_be_bytes(self.cursor.take()?).into()),
            Type::Uint32 => Value::Int(u32::from_be_bytes(self.cursor.take()?).into()),
            Type::Int64 => Value::Int(i64::from_be_bytes(self.cursor.take()?)),
            Type::Float64 => Value::Float(f64::from_be_bytes(self.cursor.take()?)),
            Type::Uuid => Value::Uuid(self.cursor.take()?),
            Type::String => Value::String(match self.blob(ty, nullable)? {
                Some(bytes) => Some(Str::from_utf8(bytes).ok_or_else(|| self.cursor.error(Problem::Utf8))?),
                None => None,
            }),
            Type::Bytes | Type::Records => Value::Bytes(self.blob(ty, nullable)?),
            Type::Array(element) => Value::Array(self.array(field, ty, *element, nullable)?),
            Type::Struct(_) if nullable && !self.cursor.presence()? => Value::Struct(None),
            Type::Struct(fields) => Value::Struct(Some(self.fields(fields)?)),
        })
    }

    fn blob(&mut self, ty: Type, nullable: bool) -> Result<Option<Bytes>, WalkError> {
        let Some(length) = self.cursor.length(ty, nullable)? else { return Ok(None) };
        let range = self.cursor.skip(length)?;
        Ok(Some(self.cursor.body.slice(range)))
    }

    fn array(
        &mut self,
        field: &'static Field,
        ty: Type,
        element: Type,
        nullable: bool,
    ) -> Result<Option<Vec<Value>>, WalkError> {
        let Some(count) = self.cursor.length(ty, nullable)? else { return Ok(None) };
        self.count(count)?;
        let mut values = Vec::with_capacity(count.min(AHEAD));
        for _ in 0..count {
            values.push(self.value(field, element, false)?);
        }
        Ok(Some(values))
    }

    fn tags(&mut self, out: &mut Struct) -> Result<(), WalkError> {
        let mut unknown = UnknownTags::default();
        let mut unknown_bytes = 0;
        let mut last = None;
        for _ in 0..self.cursor.tag_count()? {
            let (tag, end) = self.cursor.tag_head(last)?;
            last = Some(tag);
            if let Some(field) = walk::tagged_field(out.schema(), tag, self.version) {
                let value = self.value(field, field.ty, field.nullable.contains(self.version))?;
                *out.get_mut(field.name) = value;
            } else {
                self.count(1)?;
                let size = end - self.cursor.at;
                unknown_bytes += size;
                let range = self.cursor.skip(size)?;
                unknown.0.push((tag, self.cursor.body.slice(range)));
            }
            if self.cursor.at != end {
                return Err(self.cursor.error(Problem::TagSize(tag)));
            }
            if unknown_bytes > UNKNOWN_TAG_BYTES_MAX {
                return Err(self.cursor.error(Problem::TagBytes));
            }
        }
        if !unknown.0.is_empty() {
            out.unknown = Some(Box::new(unknown));
        }
        Ok(())
    }

    fn count(&mut self, values: usize) -> Result<(), WalkError> {
        self.memory = self.memory.saturating_add(values.saturating_mul(size_of::<Value>()));
        match self.memory > self.budget {
            true => Err(self.cursor.error(Problem::Budget(self.memory))),
            false => Ok(()),
        }
    }
}

/// Why values are not a message of their table: always a fault of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field {field:?}: {problem}")]
pub struct EncodeError {
    /// The field being written; empty for the message itself.
    pub field: &'static str,
    pub problem: Misfit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    #[error("version {0} has no table")]
    Version(i16),
    #[error("a struct of another table")]
    Schema,
    #[error("a value of another type")]
    Type,
    #[error("null where it may not be")]
    Null,
    #[error("{0} is out of range")]
    Range(i64),
    #[error("too long: {0}")]
    Length(usize),
    #[error("set, but version {0} does not have it, and it may not be ignored")]
    NotInVersion(i16),
}

/// Appends a message to `out`, which is left as it was on an error.
///
/// A field that the version does not have must be at its default unless the table says that it may be ignored, as in
/// Kafka's own clients. A tagged field at its default is not written; tagged fields no table knows are written again.
///
/// # Errors
/// [`EncodeError`] for values the table does not allow in this version.
pub fn encode(
    message: &Message,
    version: i16,
    value: &Struct,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    if !message.versions.contains(version) {
        return Err(EncodeError { field: "", problem: Misfit::Version(version) });
    }
    let start = out.len();
    let flexible = message.is_flexible(version);
    let result = Encoder { out: &mut *out, version, flexible, field: "" }.fields(message.fields, value);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

struct Encoder<'o> {
    out: &'o mut BytesMut,
    version: i16,
    flexible: bool,
    field: &'static str,
}

impl Encoder<'_> {
    fn error(&self, problem: Misfit) -> EncodeError {
        EncodeError { field: self.field, problem }
    }

    fn fields(&mut self, fields: &'static [Field], value: &Struct) -> Result<(), EncodeError> {
        if !std::ptr::eq(fields, value.fields) {
            return Err(self.error(Misfit::Schema));
        }
        for (field, value) in value.pairs() {
            if field.is_plain(self.version) {
                self.value(field, field.ty, field.nullable, value)?;
            } else if !field.is_tagged(self.version) && !field.ignorable && !value.is_default_of(field) {
                self.field = field.name;
                return Err(self.error(Misfit::NotInVersion(self.version)));
            }
        }
        if self.flexible { self.tags(value) } else { Ok(()) }
    }

    fn value(
        &mut self,
        field: &Field,
        ty: Type,
        nullable: Versions,
        value: &Value,
    ) -> Result<(), EncodeError> {
        self.field = field.name;
        if value.is_null() && !nullable.contains(self.version) {
            return Err(self.error(Misfit::Null));
        }
        match (ty, value) {
            (Type::Bool, Value::Bool(value)) => self.out.put_u8(u8::from(*value)),
            (Type::Float64, Value::Float(value)) => self.out.put_f64(*value),
            (Type::Uuid, Value::Uuid(value)) => self.out.put_slice(value),
            (_, Value::Int(value)) => self.int(ty, *value)?,
            (Type::String, Value::String(value)) => {
                self.length(ty, value.as_ref().map(|v| v.as_bytes().len()))?;
                self.out.put_slice(value.as_ref().map(|v| &**v.as_bytes()).unwrap_or_default());
            }
            (Type::Bytes | Type::Records, Value::Bytes(value)) => {
                self.length(ty, value.as_ref().map(Bytes::len))?;
                self.out.put_slice(value.as_deref().unwrap_or_default());
            }
            (Type::Array(element), Value::Array(values)) => {
                self.length(ty, values.as_ref().map(Vec::len))?;
                for value in values.iter().flatten() {
                    self.value(field, *element, super::table::NONE, value)?;
                }
            }
            (Type::Struct(fields), Value::Struct(value)) => {
                if nullable.contains(self.version) {
                    self.out.put_i8(if value.is_some() { 1 } else { -1 });
                }
                value.iter().try_for_each(|value| self.fields(fields, value))?;
            }
            _ => return Err(self.error(Misfit::Type)),
        }
        Ok(())
    }

    fn int(&mut self, ty: Type, value: i64) -> Result<(), EncodeError> {
        match ty {
            Type::Int8 => self.out.put_i8(self.narrow(value)?),
            Type::Int16 => self.out.put_i16(self.narrow(value)?),
            Type::Uint16 => self.out.put_u16(self.narrow(value)?),
            Type::Int32 => self.out.put_i32(self.narrow(value)?),
            Type::Uint32 => self.out.put_u32(self.narrow(value)?),
            Type::Int64 => self.out.put_i64(value),
            _ => return Err(self.error(Misfit::Type)),
        }
        Ok(())
    }

    fn narrow<T: TryFrom<i64>>(&self, value: i64) -> Result<T, EncodeError> {
        T::try_from(value).map_err(|_| self.error(Misfit::Range(value)))
    }

    /// The length of a string, of bytes or of an array, `None` for null.
    fn length(&mut self, ty: Type, length: Option<usize>) -> Result<(), EncodeError> {
        let most = if matches!(ty, Type::String) { STRING_MAX } else { i32::MAX as usize - 1 };
        if let Some(length) = length.filter(|l| *l > most) {
            return Err(self.error(Misfit::Length(length)));
        }
        match (ty, length) {
            _ if self.flexible => put_varint(self.out, length.map_or(0, |l| l as u32 + 1)),
            (Type::String, length) => self.out.put_i16(length.map_or(-1, |l| l as i16)),
            (_, length) => self.out.put_i32(length.map_or(-1, |l| l as i32)),
        }
        Ok(())
    }

    fn tags(&mut self, value: &Struct) -> Result<(), EncodeError> {
        let mut entries: Vec<(u32, Bytes)> = Vec::new();
        for (field, value) in value.pairs() {
            let Some((tag, _)) = field.tag.filter(|_| field.is_tagged(self.version)) else { continue };
            if value.is_default_of(field) {
                continue;
            }
            let mut content = BytesMut::new();
            let (version, flexible) = (self.version, self.flexible);
            let mut inner = Encoder { out: &mut content, version, flexible, field: field.name };
            inner.value(field, field.ty, field.nullable, value)?;
            entries.push((tag, content.freeze()));
        }
        entries.extend(value.unknown_tags().map(|(tag, content)| (tag, content.clone())));
        entries.sort_by_key(|(tag, _)| *tag);
        put_varint(self.out, entries.len() as u32);
        for (tag, content) in &entries {
            put_varint(self.out, *tag);
            put_varint(self.out, content.len() as u32);
            self.out.put_slice(content);
        }
        Ok(())
    }
}

/// An unsigned varint (`ByteUtils.writeUnsignedVarint`).
pub(crate) fn put_varint(out: &mut BytesMut, mut value: u32) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}
