//! The walker: steps through a body by its table, checks everything and allocates nothing.

use super::cursor::{Cursor, Problem, UNKNOWN_TAG_BYTES_MAX, WalkError};
use super::table::{Field, Mark, Message, Type};
use super::value::Value;
use std::ops::Range;

/// Checks that `body` is exactly one message of this version.
///
/// # Errors
/// [`WalkError`] for anything Kafka would not accept, and for tagged fields beyond the limits of this module.
pub fn validate(message: &Message, version: i16, body: &[u8]) -> Result<(), WalkError> {
    measure(message, version, body).map(|_| ())
}

/// As [`validate`], and shows every marked field that is not null, in wire order, with the bytes of its content
/// (lengths excluded; one call per element of an array). What was shown before an error is to be discarded.
///
/// # Errors
/// As [`validate`].
pub fn visit(
    message: &Message,
    version: i16,
    body: &[u8],
    mut see: impl FnMut(&'static Field, Range<usize>),
) -> Result<(), WalkError> {
    let visitor = |_: &mut &[u8], field, range| see(field, range);
    walk(message, version, body, visitor).map(|_| ())
}

/// As [`visit`], and lets `change` write over the content of each marked field, in place. What it writes is not
/// checked: it must keep a string UTF-8. After an error the body may be half changed and is to be discarded.
///
/// # Errors
/// As [`validate`].
pub fn patch(
    message: &Message,
    version: i16,
    body: &mut [u8],
    mut change: impl FnMut(&'static Field, &mut [u8]),
) -> Result<(), WalkError> {
    let visitor = |body: &mut &mut [u8], field, range| {
        if let Some(content) = body.get_mut(range) {
            change(field, content);
        }
    };
    walk(message, version, body, visitor).map(|_| ())
}

/// As [`validate`]; gives the memory in bytes that the decoded tree takes beyond the body.
pub(super) fn measure(message: &Message, version: i16, body: &[u8]) -> Result<usize, WalkError> {
    walk(message, version, body, |_: &mut &[u8], _, _| ())
}

fn walk<B, V>(message: &Message, version: i16, body: B, visitor: V) -> Result<usize, WalkError>
where
    B: AsRef<[u8]>,
    V: FnMut(&mut B, &'static Field, Range<usize>),
{
    let cursor = Cursor::new(body, message.is_flexible(version));
    if !message.versions.contains(version) {
        return Err(cursor.error(Problem::Version(version)));
    }
    let mut walker = Walker { cursor, version, memory: 0, visitor };
    walker.fields(message.fields)?;
    match walker.cursor.remaining() {
        0 => Ok(walker.memory),
        extra => Err(walker.cursor.error(Problem::Trailing(extra))),
    }
}

struct Walker<B, V> {
    cursor: Cursor<B>,
    version: i16,
    memory: usize,
    visitor: V,
}

impl<B, V> Walker<B, V>
where
    B: AsRef<[u8]>,
    V: FnMut(&mut B, &'static Field, Range<usize>),
{
    fn fields(&mut self, fields: &'static [Field]) -> Result<(), WalkError> {
        self.count(fields.len());
        for field in fields {
            if field.is_plain(self.version) {
                self.value(field, field.ty, field.nullable.contains(self.version))?;
            }
        }
        if self.cursor.flexible { self.tags(fields) } else { Ok(()) }
    }

    fn value(&mut self, field: &'static Field, ty: Type, nullable: bool) -> Result<(), WalkError> {
        self.cursor.field = field.name;
        match ty {
            Type::Array(element) => self.array(field, ty, *element, nullable),
            Type::Struct(_) if nullable && !self.cursor.presence()? => Ok(()),
            Type::Struct(fields) => self.fields(fields),
            Type::String | Type::Bytes | Type::Records => self.blob(field, ty, nullable),
            _ => {
                let range = self.cursor.skip(ty.fixed_size().unwrap_or(0))?;
                self.show(field, range);
                Ok(())
            }
        }
    }

    fn blob(&mut self, field: &'static Field, ty: Type, nullable: bool) -> Result<(), WalkError> {
        let Some(length) = self.cursor.length(ty, nullable)? else { return Ok(()) };
        let range = self.cursor.skip(length)?;
        if matches!(ty, Type::String) {
            let text = self.cursor.body.as_ref().get(range.clone()).unwrap_or_default();
            std::str::from_utf8(text).map_err(|_| self.cursor.error(Problem::Utf8))?;
        }
        self.show(field, range);
        Ok(())
    }

    fn array(
        &mut self,
        field: &'static Field,
        ty: Type,
        element: Type,
        nullable: bool,
    ) -> Result<(), WalkError> {
        let Some(count) = self.cursor.length(ty, nullable)? else { return Ok(()) };
        self.count(count);
        match element.fixed_size() {
            Some(size) if field.mark == Mark::None => {
                let size = count.checked_mul(size).ok_or_else(|| self.cursor.error(Problem::Truncated))?;
                self.cursor.skip(size).map(|_| ())
            }
            _ => (0..count).try_for_each(|_| self.value(field, element, false)),
        }
    }

    fn tags(&mut self, fields: &'static [Field]) -> Result<(), WalkError> {
        let mut last = None;
        let mut unknown_bytes = 0;
        for _ in 0..self.cursor.tag_count()? {
            let (tag, end) = self.cursor.tag_head(last)?;
            last = Some(tag);
            if let Some(field) = tagged_field(fields, tag, self.version) {
                self.value(field, field.ty, field.nullable.contains(self.version))?;
            } else {
                unknown_bytes += end - self.cursor.at;
                self.count(1);
                self.cursor.at = end;
            }
            if self.cursor.at != end {
                return Err(self.cursor.error(Problem::TagSize(tag)));
            }
            if unknown_bytes > UNKNOWN_TAG_BYTES_MAX {
                return Err(self.cursor.error(Problem::TagBytes));
            }
        }
        Ok(())
    }

    fn show(&mut self, field: &'static Field, range: Range<usize>) {
        if field.mark != Mark::None {
            (self.visitor)(&mut self.cursor.body, field, range);
        }
    }

    fn count(&mut self, values: usize) {
        self.memory = self.memory.saturating_add(values.saturating_mul(size_of::<Value>()));
    }
}

/// The known field behind a tag in this version.
pub(super) fn tagged_field(fields: &'static [Field], tag: u32, version: i16) -> Option<&'static Field> {
    fields.iter().find(|f| f.is_tagged(version) && f.tag.is_some_and(|(own, _)| own == tag))
}
