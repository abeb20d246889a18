//! A decoded message: values under the names of its table.
//!
//! The accessors take a field's name and know its type from the table. A name the table does not have, or an accessor
//! of another type, is a programmer's error and panics with both names; nothing that comes from the wire can cause it.

use super::table::{Field, Type};
use super::text::Str;
use crate::ids::TopicId;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// The value of a field. Integers of all sizes are `Int`; `None` is null.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Int(i64),
    Float(f64),
    Uuid([u8; 16]),
    String(Option<Str>),
    /// Bytes and records.
    Bytes(Option<Bytes>),
    Array(Option<Vec<Value>>),
    Struct(Option<Struct>),
}

/// The values of a message, or of a struct in it, one for each field of the table in all its versions.
#[derive(Clone)]
pub struct Struct {
    pub(super) fields: &'static [Field],
    /// None at all as long as every field is at its default: most structs in messages are never set.
    values: Vec<Value>,
    pub(super) unknown: Option<Box<UnknownTags>>,
}

/// Tagged fields that no table knows, by rising tag: kept, and written again.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct UnknownTags(pub(super) Vec<(u32, Bytes)>);

impl Value {
    /// 0, false, or empty; a struct of defaults.
    pub(super) const fn empty_of(ty: Type) -> Value {
        match ty {
            Type::String => Value::String(Some(Str::new())),
            Type::Bytes | Type::Records => Value::Bytes(Some(Bytes::new())),
            Type::Array(_) => Value::Array(Some(Vec::new())),
            Type::Struct(fields) => Value::Struct(Some(Struct::new(fields))),
            Type::Bool => Value::Bool(false),
            Type::Float64 => Value::Float(0.0),
            Type::Uuid => Value::Uuid([0; 16]),
            _ => Value::Int(0),
        }
    }

    /// Null, for the types that know it.
    pub(super) const fn null_of(ty: Type) -> Value {
        match ty {
            Type::String => Value::String(None),
            Type::Bytes | Type::Records => Value::Bytes(None),
            Type::Array(_) => Value::Array(None),
            Type::Struct(_) => Value::Struct(None),
            _ => Value::empty_of(ty),
        }
    }

    /// Whether this is what [`Struct::new`] would put into the field.
    pub(super) fn is_default_of(&self, field: &Field) -> bool {
        match (self, &field.value) {
            (Value::Float(value), _) => value.to_bits() == 0,
            (Value::Struct(Some(value)), Value::Struct(Some(_))) => value.is_default(),
            (value, default) => value == default,
        }
    }

    /// As a clone; most values are numbers.
    #[inline]
    pub(super) fn copy(&self) -> Value {
        if let Value::Int(number) = self { Value::Int(*number) } else { self.clone() }
    }

    /// Whether the value is of the Rust type that fields of `ty` have. Lengths and ranges are checked by the encoder.
    fn fits(&self, ty: Type) -> bool {
        match self {
            Value::Bool(_) => matches!(ty, Type::Bool),
            Value::Int(_) => ty.int_range().is_some(),
            Value::Float(_) => matches!(ty, Type::Float64),
            Value::Uuid(_) => matches!(ty, Type::Uuid),
            Value::String(_) => matches!(ty, Type::String),
            Value::Bytes(_) => matches!(ty, Type::Bytes | Type::Records),
            Value::Array(_) => matches!(ty, Type::Array(_)),
            Value::Struct(_) => matches!(ty, Type::Struct(_)),
        }
    }

    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Value::String(None) | Value::Bytes(None) | Value::Array(None) | Value::Struct(None))
    }

    /// The integer, if it is one.
    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        if let Value::Int(value) = self { Some(*value) } else { None }
    }

    /// The text, if it is a string and not null.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(Some(value)) = self { Some(value.as_str()) } else { None }
    }

    /// The struct, if it is one and not null.
    #[must_use]
    pub fn as_struct(&self) -> Option<&Struct> {
        if let Value::Struct(Some(value)) = self { Some(value) } else { None }
    }
}

impl Struct {
    /// All fields at their defaults.
    #[must_use]
    pub const fn new(fields: &'static [Field]) -> Struct {
        Struct { fields, values: Vec::new(), unknown: None }
    }

    /// Of values that are all there, in the order of the table.
    pub(super) fn of(fields: &'static [Field], values: Vec<Value>) -> Struct {
        debug_assert_eq!(fields.len(), values.len());
        Struct { fields, values, unknown: None }
    }

    /// A struct as the array (or struct) field `name` holds it, with defaults.
    ///
    /// # Panics
    /// If the field holds no structs.
    #[inline]
    #[must_use]
    pub fn new_element(&self, name: &str) -> Struct {
        match self.fields[self.index(name)].ty {
            Type::Struct(fields) | Type::Array(&Type::Struct(fields)) => Struct::new(fields),
            _ => self.misuse(name, "structs"),
        }
    }

    #[must_use]
    pub fn schema(&self) -> &'static [Field] {
        self.fields
    }

    /// Whether the table has a field of this name.
    #[inline]
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|f| f.name == name)
    }

    #[inline]
    #[must_use]
    pub fn get(&self, name: &str) -> &Value {
        self.at(self.index(name))
    }

    #[inline]
    #[must_use]
    pub fn get_mut(&mut self, name: &str) -> &mut Value {
        let index = self.index(name);
        self.at_mut(index)
    }

    /// Puts a value into a field. Its range and length are checked when the message is encoded.
    ///
    /// # Panics
    /// If the value is not of the field's type.
    #[inline]
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.put(self.index(name), value.into());
    }

    fn put(&mut self, index: usize, value: Value) {
        if !value.fits(self.fields[index].ty) {
            self.misuse(self.fields[index].name, &format!("{value:?}"))
        }
        *self.at_mut(index) = value;
    }

    /// Puts a field back to its default.
    #[inline]
    pub fn reset(&mut self, name: &str) {
        let index = self.index(name);
        if let Some(value) = self.values.get_mut(index) {
            *value = self.fields[index].value.clone();
        }
    }

    /// A copy with these fields at their defaults: what is to be replaced, and may be large, is not copied first.
    ///
    /// # Panics
    /// If the table does not have one of them.
    #[must_use]
    pub fn clone_without(&self, names: &[&str]) -> Struct {
        let mut without = vec![false; self.fields.len()];
        names.iter().for_each(|name| without[self.index(name)] = true);
        let pairs = self.pairs().zip(without);
        let values =
            pairs.map(|((field, own), without)| if without { field.value.copy() } else { own.copy() });
        Struct { fields: self.fields, values: values.collect(), unknown: self.unknown.clone() }
    }

    /// Appends to an array; a null array becomes an array of one.
    ///
    /// # Panics
    /// If the value is not of the array's element type.
    #[inline]
    pub fn push(&mut self, name: &str, value: impl Into<Value>) {
        self.append(self.index(name), value.into());
    }

    fn append(&mut self, index: usize, value: Value) {
        let fits = matches!(self.fields[index].ty, Type::Array(element) if value.fits(*element));
        match self.at_mut(index) {
            Value::Array(array) if fits => array.get_or_insert_with(Vec::new).push(value),
            _ => self.misuse(self.fields[index].name, &format!("an element {value:?}")),
        }
    }

    #[inline]
    #[must_use]
    pub fn is_null(&self, name: &str) -> bool {
        self.get(name).is_null()
    }

    #[inline]
    #[must_use]
    pub fn bool(&self, name: &str) -> bool {
        if let Value::Bool(value) = self.get(name) { *value } else { self.misuse(name, "a bool") }
    }

    #[inline]
    #[must_use]
    pub fn i8(&self, name: &str) -> i8 {
        let value = self.typed_int(name, "an int8", |ty| matches!(ty, Type::Int8));
        i8::try_from(value).unwrap_or_else(|_| self.misuse(name, "an int8"))
    }

    #[inline]
    #[must_use]
    pub fn i16(&self, name: &str) -> i16 {
        let value = self.typed_int(name, "an int16", |ty| matches!(ty, Type::Int8 | Type::Int16));
        i16::try_from(value).unwrap_or_else(|_| self.misuse(name, "an int16"))
    }

    #[inline]
    #[must_use]
    pub fn i32(&self, name: &str) -> i32 {
        let narrow = |ty| matches!(ty, Type::Int8 | Type::Int16 | Type::Uint16 | Type::Int32);
        let value = self.typed_int(name, "an int32", narrow);
        i32::try_from(value).unwrap_or_else(|_| self.misuse(name, "an int32"))
    }

    /// An integer of any size.
    #[inline]
    #[must_use]
    pub fn i64(&self, name: &str) -> i64 {
        self.typed_int(name, "an integer", |_| true)
    }

    #[inline]
    #[must_use]
    pub fn float(&self, name: &str) -> f64 {
        if let Value::Float(value) = self.get(name) { *value } else { self.misuse(name, "a float64") }
    }

    #[inline]
    #[must_use]
    pub fn uuid(&self, name: &str) -> [u8; 16] {
        if let Value::Uuid(value) = self.get(name) { *value } else { self.misuse(name, "a uuid") }
    }

    /// The text; empty where it is null.
    #[inline]
    #[must_use]
    pub fn str(&self, name: &str) -> &str {
        self.opt_str(name).unwrap_or_default()
    }

    #[inline]
    #[must_use]
    pub fn opt_str(&self, name: &str) -> Option<&str> {
        self.opt_text(name).map(Str::as_str)
    }

    /// As [`Struct::opt_str`], to be cloned without a copy of the text.
    #[inline]
    #[must_use]
    pub fn opt_text(&self, name: &str) -> Option<&Str> {
        if let Value::String(value) = self.get(name) { value.as_ref() } else { self.misuse(name, "a string") }
    }

    /// The bytes or records; empty where they are null.
    #[inline]
    #[must_use]
    pub fn bytes(&self, name: &str) -> &[u8] {
        self.opt_bytes(name).map(|b| &**b).unwrap_or_default()
    }

    #[inline]
    #[must_use]
    pub fn opt_bytes(&self, name: &str) -> Option<&Bytes> {
        if let Value::Bytes(value) = self.get(name) { value.as_ref() } else { self.misuse(name, "bytes") }
    }

    /// The elements; none where the array is null.
    #[inline]
    #[must_use]
    pub fn array(&self, name: &str) -> &[Value] {
        self.opt_array(name).unwrap_or_default()
    }

    #[inline]
    #[must_use]
    pub fn opt_array(&self, name: &str) -> Option<&[Value]> {
        if let Value::Array(value) = self.get(name) {
            value.as_deref()
        } else {
            self.misuse(name, "an array")
        }
    }

    /// The elements to change; `None` where the array is null.
    #[inline]
    #[must_use]
    pub fn array_mut(&mut self, name: &str) -> Option<&mut Vec<Value>> {
        let index = self.index(name);
        if !matches!(self.fields[index].ty, Type::Array(_)) {
            self.misuse(name, "an array")
        }
        if let Value::Array(value) = self.at_mut(index) { value.as_mut() } else { None }
    }

    /// The integers of an array of integers.
    #[inline]
    pub fn ints(&self, name: &str) -> impl Iterator<Item = i64> + '_ {
        self.array(name).iter().filter_map(Value::as_int)
    }

    /// The texts of an array of strings.
    #[inline]
    pub fn strs(&self, name: &str) -> impl Iterator<Item = &str> + '_ {
        self.array(name).iter().filter_map(Value::as_str)
    }

    /// The structs of an array of structs.
    #[inline]
    pub fn structs(&self, name: &str) -> impl Iterator<Item = &Struct> + '_ {
        self.array(name).iter().filter_map(Value::as_struct)
    }

    #[inline]
    pub fn structs_mut(&mut self, name: &str) -> impl Iterator<Item = &mut Struct> + '_ {
        self.array_mut(name).into_iter().flatten().filter_map(|value| match value {
            Value::Struct(value) => value.as_mut(),
            _ => None,
        })
    }

    /// The struct in a field that is one; `None` where it is null.
    #[inline]
    #[must_use]
    pub fn opt_struct(&self, name: &str) -> Option<&Struct> {
        if let Value::Struct(value) = self.get(name) { value.as_ref() } else { self.misuse(name, "a struct") }
    }

    #[inline]
    #[must_use]
    pub fn opt_struct_mut(&mut self, name: &str) -> Option<&mut Struct> {
        let index = self.index(name);
        if !matches!(self.fields[index].ty, Type::Struct(_)) {
            self.misuse(name, "a struct")
        }
        if let Value::Struct(value) = self.at_mut(index) { value.as_mut() } else { None }
    }

    /// Tagged fields that the table does not know.
    pub fn unknown_tags(&self) -> impl Iterator<Item = (u32, &Bytes)> + '_ {
        self.unknown.iter().flat_map(|tags| tags.0.iter().map(|(tag, content)| (*tag, content)))
    }

    pub(super) fn is_default(&self) -> bool {
        let mut pairs = self.values.iter().zip(self.fields);
        self.unknown.is_none() && pairs.all(|(value, field)| value.is_default_of(field))
    }

    /// Every field with its value.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&'static Field, &Value)> + '_ {
        self.fields.iter().enumerate().map(|(index, field)| (field, self.at(index)))
    }

    #[inline]
    fn at(&self, index: usize) -> &Value {
        self.values.get(index).unwrap_or(&self.fields[index].value)
    }

    #[inline]
    fn at_mut(&mut self, index: usize) -> &mut Value {
        if self.values.is_empty() {
            self.fill();
        }
        &mut self.values[index]
    }

    fn fill(&mut self) {
        self.values.extend(self.fields.iter().map(|field| field.value.copy()));
    }

    /// By the table's type, not by the value: the value comes from the wire, the choice of accessor does not.
    #[inline]
    fn typed_int(&self, name: &str, wanted: &str, narrow: impl Fn(Type) -> bool) -> i64 {
        let index = self.index(name);
        match *self.at(index) {
            Value::Int(value) if narrow(self.fields[index].ty) => value,
            _ => self.misuse(name, wanted),
        }
    }

    /// With a name that is known at compile time, and here inlined, a comparison is one of lengths and then of a few words.
    #[inline]
    fn index(&self, name: &str) -> usize {
        self.fields.iter().position(|f| f.name == name).unwrap_or_else(|| self.misuse(name, "a field"))
    }

    #[cold]
    fn misuse(&self, name: &str, wanted: &str) -> ! {
        let names: Vec<&str> = self.fields.iter().map(|f| f.name).collect();
        panic!("{name:?} is not {wanted} of the struct {names:?}")
    }
}

impl PartialEq for Struct {
    fn eq(&self, other: &Struct) -> bool {
        std::ptr::eq(self.fields, other.fields)
            && self.pairs().zip(other.pairs()).all(|((_, one), (_, other))| one == other)
            && self.unknown == other.unknown
    }
}

impl fmt::Debug for Struct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Struct");
        for (field, value) in self.pairs() {
            out.field(field.name, value);
        }
        out.finish()
    }
}

macro_rules! value_from {
    ($($from:ty => $value:ident => $make:expr;)*) => {
        $(impl From<$from> for Value {
            fn from($value: $from) -> Value {
                $make
            }
        })*
    };
}

value_from! {
    bool => v => Value::Bool(v);
    i8 => v => Value::Int(v.into());
    i16 => v => Value::Int(v.into());
    u16 => v => Value::Int(v.into());
    i32 => v => Value::Int(v.into());
    u32 => v => Value::Int(v.into());
    i64 => v => Value::Int(v);
    f64 => v => Value::Float(v);
    [u8; 16] => v => Value::Uuid(v);
    TopicId => v => Value::Uuid(v.0);
    Str => v => Value::String(Some(v));
    &Str => v => Value::String(Some(v.clone()));
    Option<Str> => v => Value::String(v);
    &str => v => Value::String(Some(Str::from(v)));
    Option<&str> => v => Value::String(v.map(Str::from));
    String => v => Value::String(Some(Str::from(v)));
    Option<String> => v => Value::String(v.map(Str::from));
    &String => v => Value::String(Some(Str::from(v.as_str())));
    Arc<str> => v => Value::String(Some(Str::from(&*v)));
    &Arc<str> => v => Value::String(Some(Str::from(v)));
    Bytes => v => Value::Bytes(Some(v));
    Option<Bytes> => v => Value::Bytes(v);
    Vec<Value> => v => Value::Array(Some(v));
    Option<Vec<Value>> => v => Value::Array(v);
    Vec<Struct> => v => Value::Array(Some(v.into_iter().map(Value::from).collect()));
    Vec<i32> => v => Value::Array(Some(v.into_iter().map(Value::from).collect()));
    Struct => v => Value::Struct(Some(v));
    Option<Struct> => v => Value::Struct(v);
}
