//! Reading the primitives of the protocol without trusting a single length.

use super::table::Type;
use std::ops::Range;

/// The most tagged fields one struct may carry.
pub const TAGS_MAX: u32 = 64;

/// The most bytes of tagged fields that no table knows, per struct.
pub const UNKNOWN_TAG_BYTES_MAX: usize = 64 * 1024;

/// The longest string in bytes, compact or not (as Kafka's generated code has it).
pub const STRING_MAX: usize = i16::MAX as usize;

/// Why bytes are not a message of their table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at byte {at}, in field {field:?}")]
pub struct WalkError {
    /// Offset in the body.
    pub at: usize,
    /// The field being read; empty for the message itself.
    pub field: &'static str,
    pub problem: Problem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("version {0} has no table")]
    Version(i16),
    #[error("it ends early")]
    Truncated,
    #[error("impossible length {0}")]
    Length(i64),
    #[error("null where it may not be")]
    Null,
    #[error("a variable-length integer of more than 32 bits")]
    Varint,
    #[error("a string that is not UTF-8")]
    Utf8,
    #[error("tag {0} does not rise above the one before it")]
    TagOrder(u32),
    #[error("{0} tagged fields")]
    TagCount(u32),
    #[error("too many bytes of unknown tagged fields")]
    TagBytes,
    #[error("tag {0} does not fill its announced size")]
    TagSize(u32),
    #[error("{0} bytes too many")]
    Trailing(usize),
    #[error("decoding would take {0} bytes of memory")]
    Budget(usize),
}

/// A position in a body.
pub(crate) struct Cursor<B> {
    pub(crate) body: B,
    pub(crate) at: usize,
    /// What is being read, for errors.
    pub(crate) field: &'static str,
    /// Whether lengths are compact.
    pub(crate) flexible: bool,
}

impl<B: AsRef<[u8]>> Cursor<B> {
    pub(crate) fn new(body: B, flexible: bool) -> Cursor<B> {
        Cursor { body, at: 0, field: "", flexible }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.body.as_ref().len().saturating_sub(self.at)
    }

    pub(crate) fn error(&self, problem: Problem) -> WalkError {
        WalkError { at: self.at, field: self.field, problem }
    }

    /// Steps over `size` bytes.
    pub(crate) fn skip(&mut self, size: usize) -> Result<Range<usize>, WalkError> {
        let end = self.at.checked_add(size).filter(|end| *end <= self.body.as_ref().len());
        let end = end.ok_or_else(|| self.error(Problem::Truncated))?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], WalkError> {
        let rest = self.body.as_ref().get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let chunk = *rest.ok_or_else(|| self.error(Problem::Truncated))?;
        self.at += N;
        Ok(chunk)
    }

    /// An unsigned varint of at most 5 bytes and 32 bits (`ByteUtils.readUnsignedVarint`).
    pub(crate) fn varint(&mut self) -> Result<u32, WalkError> {
        let mut value = 0_u32;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.take::<1>()?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && byte > 0x0f {
                return Err(self.error(Problem::Varint));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error(Problem::Varint))
    }

    /// The length of a string, of bytes or of an array; `None` for null. Never more than the bytes that remain, which
    /// also bounds arrays: no element is smaller than a byte.
    pub(crate) fn length(&mut self, ty: Type, nullable: bool) -> Result<Option<usize>, WalkError> {
        let length = match ty {
            _ if self.flexible => i64::from(self.varint()?) - 1,
            Type::String => i64::from(i16::from_be_bytes(self.take()?)),
            _ => i64::from(i32::from_be_bytes(self.take()?)),
        };
        match usize::try_from(length) {
            Err(_) if length == -1 && nullable => Ok(None),
            Err(_) if length == -1 => Err(self.error(Problem::Null)),
            Ok(size) if matches!(ty, Type::String) && size > STRING_MAX => {
                Err(self.error(Problem::Length(length)))
            }
            Ok(size) if size <= self.remaining() => Ok(Some(size)),
            Ok(_) if !matches!(ty, Type::Array(_)) => Err(self.error(Problem::Truncated)),
            _ => Err(self.error(Problem::Length(length))),
        }
    }

    /// The byte before a nullable struct: negative is null (`readByte() < 0` in Kafka's generated code).
    pub(crate) fn presence(&mut self) -> Result<bool, WalkError> {
        Ok(i8::from_be_bytes(self.take()?) >= 0)
    }

    /// The number of tagged fields that follow.
    pub(crate) fn tag_count(&mut self) -> Result<u32, WalkError> {
        match self.varint()? {
            count if count > TAGS_MAX => Err(self.error(Problem::TagCount(count))),
            count => Ok(count),
        }
    }

    /// A tag that must rise above `last`, and the end of its content.
    pub(crate) fn tag_head(&mut self, last: Option<u32>) -> Result<(u32, usize), WalkError> {
        let tag = self.varint()?;
        if last.is_some_and(|last| tag <= last) {
            return Err(self.error(Problem::TagOrder(tag)));
        }
        let size = self.varint()? as usize;
        if size > self.remaining() {
            return Err(self.error(Problem::Length(size as i64)));
        }
        Ok((tag, self.at + size))
    }
}
