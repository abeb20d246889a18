//! The notation of the message tables: what a Kafka message looks like, version by version, as plain data.

use super::value::Value;

pub(super) use Type::*;

/// The type of a field, as in the official definitions (`clients/src/main/resources/common/message/README.md`).
#[derive(Clone, Copy, Debug)]
pub enum Type {
    Bool,
    Int8,
    Int16,
    Uint16,
    Int32,
    Uint32,
    Int64,
    Float64,
    Uuid,
    String,
    Bytes,
    /// Record batches: opaque bytes here.
    Records,
    Array(&'static Type),
    Struct(&'static [Field]),
}

impl Type {
    /// The bytes a value takes on the wire; `None` where that depends on the value.
    #[must_use]
    pub const fn fixed_size(self) -> Option<usize> {
        match self {
            Bool | Int8 => Some(1),
            Int16 | Uint16 => Some(2),
            Int32 | Uint32 => Some(4),
            Int64 | Float64 => Some(8),
            Uuid => Some(16),
            String | Bytes | Records | Array(_) | Struct(_) => None,
        }
    }

    /// The least and greatest value of an integer type.
    #[must_use]
    pub const fn int_range(self) -> Option<(i64, i64)> {
        match self {
            Int8 => Some((i8::MIN as i64, i8::MAX as i64)),
            Int16 => Some((i16::MIN as i64, i16::MAX as i64)),
            Uint16 => Some((0, u16::MAX as i64)),
            Int32 => Some((i32::MIN as i64, i32::MAX as i64)),
            Uint32 => Some((0, u32::MAX as i64)),
            Int64 => Some((i64::MIN, i64::MAX)),
            _ => None,
        }
    }
}

/// A range of versions, both ends included. `max == i16::MAX` is the "+" of the definitions; empty when `min > max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    pub min: i16,
    pub max: i16,
}

/// No version at all.
pub(super) const NONE: Versions = Versions { min: 0, max: -1 };

impl Versions {
    #[must_use]
    pub const fn contains(self, version: i16) -> bool {
        self.min <= version && version <= self.max
    }
}

/// "n+".
pub(super) const fn since(min: i16) -> Versions {
    Versions { min, max: i16::MAX }
}

/// "n-m".
pub(super) const fn between(min: i16, max: i16) -> Versions {
    Versions { min, max }
}

/// What a field holds when a message does not carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    /// 0, false, the zero uuid, or empty; a struct of defaults.
    Zero,
    Null,
    True,
    Int(i64),
}

/// What a field means to the proxy, whatever the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    None,
    NodeId,
    /// The host of a broker (not of a client's endpoint or a controller).
    Host,
    /// The port of a broker.
    Port,
    TopicId,
    TopicName,
    Partition,
    /// An offset in a partition's log.
    Position,
    /// A leader epoch of a partition.
    Epoch,
    ProducerId,
    ProducerEpoch,
    Records,
    GroupId,
    TransactionalId,
    ErrorCode,
    /// A fetch session's id (KIP-227).
    SessionId,
    /// A fetch session's epoch (KIP-227).
    SessionEpoch,
}

/// One field of a message or of a struct in it.
#[derive(Debug)]
pub struct Field {
    /// The name in the official definitions, e.g. `ThrottleTimeMs`.
    pub name: &'static str,
    pub ty: Type,
    pub versions: Versions,
    /// The versions in which it may be null.
    pub nullable: Versions,
    /// The tag, and the versions in which the field is a tagged one (KIP-482).
    pub tag: Option<(u32, Versions)>,
    pub default: DefaultValue,
    /// Whether a value is silently dropped in versions that do not have the field.
    pub ignorable: bool,
    pub mark: Mark,
    /// The default as a value: a struct that nobody has written to needs no values of its own.
    pub(super) value: Value,
}

impl Field {
    /// Whether it stands among the ordinary fields in this version.
    #[must_use]
    pub const fn is_plain(&self, version: i16) -> bool {
        self.versions.contains(version) && !self.is_tagged(version)
    }

    #[must_use]
    pub const fn is_tagged(&self, version: i16) -> bool {
        match self.tag {
            Some((_, versions)) => versions.contains(version) && self.versions.contains(version),
            None => false,
        }
    }

    pub(super) const fn nullable(mut self, versions: Versions) -> Field {
        self.nullable = versions;
        self
    }

    pub(super) const fn tag(mut self, tag: u32, versions: Versions) -> Field {
        self.tag = Some((tag, versions));
        self
    }

    pub(super) const fn default_null(mut self) -> Field {
        self.default = DefaultValue::Null;
        let null = Value::null_of(self.ty);
        self.holding(null)
    }

    pub(super) const fn default_true(mut self) -> Field {
        self.default = DefaultValue::True;
        self.holding(Value::Bool(true))
    }

    pub(super) const fn default_int(mut self, value: i64) -> Field {
        self.default = DefaultValue::Int(value);
        self.holding(Value::Int(value))
    }

    /// A value cannot be dropped in a constant; the one that is forgotten here owns nothing.
    const fn holding(mut self, value: Value) -> Field {
        std::mem::forget(std::mem::replace(&mut self.value, value));
        self
    }

    pub(super) const fn ignorable(mut self) -> Field {
        self.ignorable = true;
        self
    }

    pub(super) const fn mark(mut self, mark: Mark) -> Field {
        self.mark = mark;
        self
    }
}

/// A plain, mandatory, unmarked field; the methods of [`Field`] add to it.
pub(super) const fn field(name: &'static str, ty: Type, versions: Versions) -> Field {
    Field {
        name,
        ty,
        versions,
        nullable: NONE,
        tag: None,
        default: DefaultValue::Zero,
        ignorable: false,
        mark: Mark::None,
        value: Value::empty_of(ty),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Response,
}

/// The body of a request or response, in all its versions.
#[derive(Debug)]
pub struct Message {
    pub key: i16,
    pub name: &'static str,
    pub kind: Kind,
    /// The versions the table describes.
    pub versions: Versions,
    /// The versions with compact lengths and tagged fields (KIP-482).
    pub flexible: Versions,
    pub fields: &'static [Field],
}

impl Message {
    #[must_use]
    pub const fn is_flexible(&self, version: i16) -> bool {
        self.flexible.contains(version)
    }
}
