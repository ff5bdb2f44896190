//! Messages of D-Bus: calls as bytes, and bytes as replies.

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};
use zvariant::serialized::{Context, Data};
use zvariant::{DynamicType, Endian, ObjectPath, OwnedValue, Signature, Type, Value, to_bytes};

/// The length of the part of a message that says how long the rest is.
pub(crate) const START_BYTES: usize = 16;
/// The longest message that is read. Replies and signals of systemd's manager have a few hundred bytes.
const LIMIT_BYTES: usize = 1 << 20;

/// Kinds of messages, and fields of their headers.
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A header: byte order, kind, flags, version, length of the body, serial number, and fields.
type Header<V> = (u8, u8, u8, u8, u32, u32, Vec<(u8, V)>);

/// The value of a field in a header that is written.
enum Field<'a> {
    Plain(Value<'a>),
    /// The types in the body. As a [`Value`] they would be those of a structure, in parentheses.
    Types(&'a Signature),
}

impl Type for Field<'_> {
    const SIGNATURE: &'static Signature = &Signature::Variant;
}

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(value) => value.serialize(serializer),
            Self::Types(types) => {
                let mut variant = serializer.serialize_struct("Variant", 2)?;
                variant.serialize_field("signature", &Signature::Signature)?;
                variant.serialize_field("value", &types.to_string_no_parens())?;
                variant.end()
            }
        }
    }
}

/// Whose method is called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Object {
    pub(crate) destination: &'static str,
    pub(crate) path: &'static str,
    pub(crate) interface: &'static str,
}

/// What a call comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// It was carried out.
    Done,
    /// It was refused, with the name of the error and what it says.
    Refused { name: String, text: String },
}

/// A call with these arguments.
pub(crate) fn call<B>(object: Object, member: &str, serial: u32, body: &B) -> zvariant::Result<Vec<u8>>
where
    B: Serialize + DynamicType,
{
    let signature = body.signature();
    let body = to_bytes(context(b'l', 0)?, body)?;
    let fields = vec![
        (PATH, Field::Plain(ObjectPath::try_from(object.path)?.into())),
        (INTERFACE, Field::Plain(object.interface.into())),
        (MEMBER, Field::Plain(member.into())),
        (DESTINATION, Field::Plain(object.destination.into())),
        (SIGNATURE, Field::Types(&signature)),
    ];
    let length = u32::try_from(body.len()).map_err(|_long| zvariant::Error::OutOfBounds)?;
    let header: Header<Field<'_>> = (b'l', CALL, 0, 1, length, serial, fields);
    let mut bytes = to_bytes(context(b'l', 0)?, &header)?.bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend_from_slice(body.bytes());
    Ok(bytes)
}

/// The length of a message that starts like this; `None` if it is none, or too long.
pub(crate) fn length(start: &[u8; START_BYTES]) -> Option<usize> {
    let number = |at: usize| {
        let bytes: [u8; 4] = start.get(at..at + 4)?.try_into().ok()?;
        let number = if start[0] == b'B' { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
        usize::try_from(number).ok()
    };
    let header = START_BYTES.checked_add(number(12)?)?.checked_next_multiple_of(8)?;
    let length = header.checked_add(number(4)?)?;
    (b"lB".contains(&start[0]) && start[3] == 1 && length <= LIMIT_BYTES).then_some(length)
}

/// The reply to the call with that serial number, if that is what the message is.
pub(crate) fn reply(message: &[u8], serial: u32) -> zvariant::Result<Option<Reply>> {
    let order = message.first().copied().unwrap_or_default();
    let data = Data::new(message, context(order, 0)?);
    let ((_, kind, _, _, _, _, fields), header): (Header<OwnedValue>, usize) = data.deserialize()?;
    let field = |code: u8| fields.iter().find(|(field, _)| *field == code).map(|(_, value)| &**value);
    if field(REPLY_SERIAL) != Some(&Value::U32(serial)) {
        return Ok(None);
    }
    Ok(match kind {
        RETURN => Some(Reply::Done),
        ERROR => {
            let text = |field: Option<&Value<'_>>| match field {
                Some(Value::Str(text)) => text.to_string(),
                _ => String::new(),
            };
            let body = message.get(header.next_multiple_of(8)..).unwrap_or_default();
            let has_text = matches!(field(SIGNATURE), Some(Value::Signature(found)) if found.to_string_no_parens().starts_with('s'));
            let said = if has_text {
                Data::new(body, context(order, 0)?).deserialize::<String>()?.0
            } else {
                String::new()
            };
            Some(Reply::Refused { name: text(field(ERROR_NAME)), text: said })
        }
        _ => None,
    })
}

fn context(order: u8, position: usize) -> zvariant::Result<Context> {
    let endian = match order {
        b'l' => Endian::Little,
        b'B' => Endian::Big,
        _ => return Err(zvariant::Error::IncorrectType),
    };
    Ok(Context::new_dbus(endian, position))
}

/// What a server sends back, for tests.
#[cfg(test)]
pub(crate) fn answer(serial: u32, refusal: Option<(&str, &str)>) -> Vec<u8> {
    let mut fields = vec![(REPLY_SERIAL, Value::from(serial))];
    let mut body = Vec::new();
    if let Some((name, text)) = refusal {
        fields.push((ERROR_NAME, Value::from(name)));
        fields.push((SIGNATURE, Value::from(Signature::try_from("s").unwrap())));
        body = to_bytes(context(b'l', 0).unwrap(), text).unwrap().bytes().to_vec();
    }
    let kind = if refusal.is_some() { ERROR } else { RETURN };
    let header: Header<Value<'_>> = (b'l', kind, 1, 1, body.len().try_into().unwrap(), 99, fields);
    let mut bytes = to_bytes(context(b'l', 0).unwrap(), &header).unwrap().bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    [bytes, body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: Object = Object { destination: "org.x", path: "/org/x", interface: "org.x.Y" };

    fn whole_length(message: &[u8]) -> Option<usize> {
        length(message[..START_BYTES].try_into().unwrap())
    }

    #[test]
    fn a_call_is_written_as_the_specification_says() {
        let bytes = call(OBJECT, "Do", 7, &("a.scope", true)).unwrap();
        assert_eq!(bytes[..12], [b'l', CALL, 0, 1, 16, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(whole_length(&bytes), Some(bytes.len()));
        assert_eq!(bytes[bytes.len() - 16..], *b"\x07\0\0\0a.scope\0\x01\0\0\0");
        assert!(bytes.windows(6).any(|part| part == b"g\0\x02sb\0"), "the signature: {bytes:?}");
    }

    #[test]
    fn a_reply_is_told_from_all_else() {
        let done = answer(7, None);
        assert_eq!(reply(&done, 7).unwrap(), Some(Reply::Done));
        assert_eq!(reply(&done, 8).unwrap(), None, "it is another's");
        let refused = answer(7, Some(("org.x.Error", "no such unit")));
        assert_eq!(whole_length(&refused), Some(refused.len()));
        let expected = Reply::Refused { name: "org.x.Error".to_owned(), text: "no such unit".to_owned() };
        assert_eq!(reply(&refused, 7).unwrap(), Some(expected));
        let signal = call(OBJECT, "JobRemoved", 7, &("x",)).unwrap();
        assert_eq!(reply(&signal, 7).unwrap(), None);
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for damaged in [&b""[..], b"l\x02", b"x\x02\x01\x01\0\0\0\0\x01\0\0\0\0\0\0\0"] {
            assert!(reply(damaged, 1).is_err(), "{damaged:?}");
        }
        let mut start: [u8; START_BYTES] = answer(1, None)[..START_BYTES].try_into().unwrap();
        start[7] = 0xff;
        assert_eq!(length(&start), None, "it is too long");
        assert_eq!(length(&[0; START_BYTES]), None);
    }
}
