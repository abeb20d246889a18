//! JSON Schemas of the model types. The two macros write a type and its schema from one definition, so that the
//! OpenAPI document cannot describe something else than what is sent.

use serde_json::{Map, Value, json};

/// A type with a JSON Schema.
pub(crate) trait Schema {
    /// Whether a field of this type may be absent.
    const OPTIONAL: bool = false;

    /// The schema; named types are added to `components` and referred to.
    fn schema(components: &mut Map<String, Value>) -> Value;
}

macro_rules! plain_schema {
    ($($ty:ty => $schema:tt),* $(,)?) => { $(
        impl Schema for $ty {
            fn schema(_: &mut Map<String, Value>) -> Value {
                json!($schema)
            }
        }
    )* };
}

plain_schema! {
    bool => { "type": "boolean" },
    u16 => { "type": "integer", "minimum": 0 },
    u32 => { "type": "integer", "minimum": 0 },
    u64 => { "type": "integer", "minimum": 0 },
    i32 => { "type": "integer", "format": "int32" },
    i64 => { "type": "integer", "format": "int64" },
    f64 => { "type": "number" },
    String => { "type": "string" },
    Map<String, Value> => { "type": "object" },
}

impl<T: Schema> Schema for Vec<T> {
    fn schema(components: &mut Map<String, Value>) -> Value {
        json!({ "type": "array", "items": T::schema(components) })
    }
}

impl<T: Schema> Schema for Option<T> {
    const OPTIONAL: bool = true;

    fn schema(components: &mut Map<String, Value>) -> Value {
        json!({ "anyOf": [T::schema(components), { "type": "null" }] })
    }
}

/// Adds a named type once and refers to it.
pub(crate) fn component(
    components: &mut Map<String, Value>,
    name: &str,
    build: impl FnOnce(&mut Map<String, Value>) -> Value,
) -> Value {
    if !components.contains_key(name) {
        components.insert(name.to_owned(), Value::Null);
        let schema = build(components);
        components.insert(name.to_owned(), schema);
    }
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Structs with public fields, their serde and their schema.
macro_rules! model {
    ($(
        $(#[doc = $doc:literal])*
        $(#[derive($($extra:ident),*)])?
        $(#[serde($($attr:tt)*)])?
        pub struct $name:ident { $( $(#[doc = $field_doc:literal])* pub $field:ident: $ty:ty, )* }
    )*) => { $(
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        $(#[derive($($extra),*)])?
        $(#[serde($($attr)*)])?
        pub struct $name { $( $(#[doc = $field_doc])* pub $field: $ty, )* }

        impl $crate::schema::Schema for $name {
            fn schema(components: &mut serde_json::Map<String, serde_json::Value>) -> serde_json::Value {
                $crate::schema::component(components, stringify!($name), |components| {
                    let attributes = concat!("" $(, stringify!($($attr)*))?);
                    let mut properties = serde_json::Map::new();
                    let mut required: Vec<&str> = Vec::new();
                    $(
                        let mut field = <$ty as $crate::schema::Schema>::schema(components);
                        let text = concat!("" $(, $field_doc)*).trim();
                        if let (false, Some(object)) = (text.is_empty(), field.as_object_mut()) {
                            object.insert("description".to_owned(), text.into());
                        }
                        if !<$ty as $crate::schema::Schema>::OPTIONAL && !attributes.contains("default") {
                            required.push(stringify!($field));
                        }
                        properties.insert(stringify!($field).to_owned(), field);
                    )*
                    serde_json::json!({
                        "type": "object",
                        "description": concat!("" $(, $doc)*).trim(),
                        "properties": properties,
                        "required": required,
                        "additionalProperties": !attributes.contains("deny_unknown_fields"),
                    })
                })
            }
        }
    )* };
}

/// Enums of words, spelled once for JSON, text and schema.
macro_rules! words {
    ($(
        $(#[doc = $doc:literal])*
        pub enum $name:ident { $( $(#[doc = $variant_doc:literal])* $variant:ident = $word:literal, )* }
    )*) => { $(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name { $( $(#[doc = $variant_doc])* #[serde(rename = $word)] $variant, )* }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The word in JSON, metrics and logs.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),* }
            }

            /// The inverse of `as_str`.
            #[must_use]
            pub fn parse(text: &str) -> Option<$name> {
                match text { $($word => Some($name::$variant),)* _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl $crate::schema::Schema for $name {
            fn schema(components: &mut serde_json::Map<String, serde_json::Value>) -> serde_json::Value {
                $crate::schema::component(components, stringify!($name), |_| {
                    serde_json::json!({
                        "type": "string",
                        "description": concat!("" $(, $doc)*).trim(),
                        "enum": [$($word),*],
                    })
                })
            }
        }
    )* };
}

pub(crate) use {model, words};
