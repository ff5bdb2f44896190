//! A value of any type with every field set. It returns whatever serde's generated code asks for, so a new field of
//! a type is set without being named.

use std::fmt;

use serde::de::value::{Error, StrDeserializer, StringDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

/// The value with all fields of all structs set, lists and maps with one element, and enums with their first variant.
pub(super) fn filled<T: DeserializeOwned>() -> T {
    T::deserialize(Filler { field: String::new() }).unwrap()
}

/// Fills the field of this name.
struct Filler {
    field: String,
}

impl Filler {
    /// A text that the field accepts, for fields that do not accept any.
    fn text(&self) -> String {
        let text = match self.field.as_str() {
            "bounding" | "effective" | "permitted" | "inheritable" | "ambient" => "CAP_WAKE_ALARM",
            "initial" | "final" => "0",
            _ => "/filled",
        };
        text.to_owned()
    }
}

/// Methods that return one value.
macro_rules! with {
    ($($method:ident: $visit:ident($value:expr),)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit($value)
        })*
    };
}

impl<'de> Deserializer<'de> for Filler {
    type Error = Error;

    with! {
        deserialize_bool: visit_bool(true),
        deserialize_i8: visit_i8(1),
        deserialize_i16: visit_i16(1),
        deserialize_i32: visit_i32(1),
        deserialize_i64: visit_i64(1),
        deserialize_u8: visit_u8(1),
        deserialize_u16: visit_u16(1),
        deserialize_u32: visit_u32(1),
        deserialize_u64: visit_u64(1),
        deserialize_f32: visit_f32(1.0),
        deserialize_f64: visit_f64(1.0),
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.text())
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.text())
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.text())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(One(Some(self)))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Fields { left: vec!["filled"], now: "" })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Fields { left: fields.to_vec(), now: "" })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(Variant(variants[0]))
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// The elements of a list of one.
struct One(Option<Filler>);

impl<'de> SeqAccess<'de> for One {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.take().map(|filler| seed.deserialize(filler)).transpose()
    }
}

/// The fields of a struct, or the entry of a map.
struct Fields {
    left: Vec<&'static str>,
    now: &'static str,
}

impl<'de> MapAccess<'de> for Fields {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(next) = self.left.pop() else { return Ok(None) };
        self.now = next;
        let name: StringDeserializer<Error> = next.to_owned().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(Filler { field: self.now.to_owned() })
    }
}

/// A variant without content.
struct Variant(&'static str);

impl<'de> EnumAccess<'de> for Variant {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: StrDeserializer<'_, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, Error> {
        Err(self.unexpected())
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, Error> {
        Err(self.unexpected())
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Error> {
        Err(self.unexpected())
    }
}

impl Variant {
    fn unexpected(&self) -> Error {
        Error::custom(format!("{self}: a variant with content"))
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}

#[test]
fn every_field_is_there() {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Inner {
        #[serde(rename = "final")]
        last: Option<String>,
        numbers: Vec<u16>,
    }
    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Outer {
        inner: Option<Vec<Inner>>,
        on: bool,
    }
    let inner = Inner { last: Some("0".to_owned()), numbers: vec![1] };
    assert_eq!(filled::<Outer>(), Outer { inner: Some(vec![inner]), on: true });
}
