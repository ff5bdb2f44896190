//! The wire format of nf_tables: tables, chains, maps, rules, and the expressions that wharf's rules consist of.
//!
//! All numbers in nf_tables are big-endian. Registers are the 4-byte ones; `REGISTER` is the first.

use crate::link::PODS_GROUP;
use crate::netlink::{self, IPV4, Message};

pub(crate) const TABLE: &str = "wharf";

pub(super) const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
pub(super) const NEW_RULE: u16 = SUBSYSTEM | 6;
pub(super) const DELETE_RULE: u16 = SUBSYSTEM | 8;
const NEW_MAP: u16 = SUBSYSTEM | 9;
const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
const GET_ELEMENT: u16 = SUBSYSTEM | 13;
const DELETE_ELEMENT: u16 = SUBSYSTEM | 14;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const FAMILY_INET: u8 = 1;

const REGISTER: u32 = 8;
const VERDICT: u32 = 0;

/// The hook of a chain: the name of the hook's type, the hook's number, the priority.
pub(crate) type Hook = (&'static str, u32, i32);

/// The types of a map's keys and data, with the numbers by which `nft` knows how to show them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Field {
    Ipv4 = 7,
    Ipv6 = 8,
    Protocol = 12,
    Port = 13,
}

impl Field {
    pub(crate) fn len(self) -> u32 {
        if self == Self::Ipv6 { 16 } else { 4 }
    }
}

/// A rule's expressions, in order, written directly into a message.
#[derive(Debug)]
pub(crate) struct Rule<'a>(pub(super) &'a mut Message);

impl Rule<'_> {
    fn expression(&mut self, name: &str, content: impl FnOnce(&mut Message)) -> &mut Self {
        self.0.nest(1, |element| {
            element.text(1, name);
            element.nest(2, content);
        });
        self
    }

    fn meta(&mut self, key: u32, register: u32) -> &mut Self {
        self.expression("meta", |data| {
            number(data, 1, register);
            number(data, 2, key);
        })
    }

    fn compare(&mut self, operation: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |data| {
            number(data, 1, REGISTER);
            number(data, 2, operation);
            data.nest(3, |value_of| value_of.attribute(1, value));
        })
    }

    /// Continues if the packet is IPv4 (2) or IPv6 (10).
    pub(crate) fn is_family(&mut self, family: u8) -> &mut Self {
        self.meta(15, REGISTER).compare(0, &[family])
    }

    pub(crate) fn arrives_elsewhere(&mut self, name: &str) -> &mut Self {
        self.meta(6, REGISTER).compare(1, &link_name(name))
    }

    /// Continues if the packet comes in through a link of pods.
    pub(crate) fn arrives_from_pods(&mut self) -> &mut Self {
        self.meta(21, REGISTER).compare(0, &PODS_GROUP.to_ne_bytes())
    }

    /// Continues if the packet leaves through a link of pods.
    pub(crate) fn leaves_to_pods(&mut self) -> &mut Self {
        self.meta(22, REGISTER).compare(0, &PODS_GROUP.to_ne_bytes())
    }

    /// Continues if the packet leaves through a bridge.
    pub(crate) fn leaves_by_bridge(&mut self) -> &mut Self {
        const KIND_OF_OUT_LINK: u32 = 27;
        self.meta(KIND_OF_OUT_LINK, REGISTER).compare(0, &link_name("bridge"))
    }

    /// Continues if the packet leaves through another link.
    pub(crate) fn leaves_pods(&mut self) -> &mut Self {
        self.meta(22, REGISTER).compare(1, &PODS_GROUP.to_ne_bytes())
    }

    /// Continues if a packet to this packet's source would not leave through the link through which this one came in.
    pub(crate) fn leads_back_elsewhere(&mut self) -> &mut Self {
        const LINK: u32 = 1;
        const OF_SOURCE_BY_THIS_LINK: u32 = 1 | 1 << 3;
        self.expression("fib", |data| {
            number(data, 1, REGISTER);
            number(data, 2, LINK);
            number(data, 3, OF_SOURCE_BY_THIS_LINK);
        })
        .compare(0, &[0; 4])
    }

    /// Loads a part of the network (1) or transport (2) header.
    pub(crate) fn load(&mut self, header: u32, range: std::ops::Range<u32>, register: u32) -> &mut Self {
        self.expression("payload", |data| {
            number(data, 1, REGISTER + register);
            number(data, 2, header);
            number(data, 3, range.start);
            number(data, 4, range.end - range.start);
        })
    }

    pub(crate) fn network_is(&mut self, offset: u32, value: &[u8]) -> &mut Self {
        let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.load(1, offset..offset.saturating_add(len), 0).compare(0, value)
    }

    /// Continues if the address at the offset has the prefix of `base`.
    pub(crate) fn network_within(&mut self, offset: u32, base: &[u8], prefix: u8) -> &mut Self {
        let len = u32::try_from(base.len()).unwrap_or(u32::MAX);
        let mut bits_left = u32::from(prefix);
        let mask: Vec<u8> = base
            .iter()
            .map(|_byte| {
                let bits = bits_left.min(8);
                bits_left -= bits;
                !u8::MAX.checked_shr(bits).unwrap_or_default()
            })
            .collect();
        self.load(1, offset..offset.saturating_add(len), 0).mask(&mask).compare(0, base)
    }

    fn mask(&mut self, mask: &[u8]) -> &mut Self {
        self.expression("bitwise", |data| {
            number(data, 1, REGISTER);
            number(data, 2, REGISTER);
            number(data, 3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
            data.nest(4, |value| value.attribute(1, mask));
            data.nest(5, |xor| xor.attribute(1, &vec![0; mask.len()]));
        })
    }

    pub(crate) fn load_protocol(&mut self, register: u32) -> &mut Self {
        self.meta(16, REGISTER + register)
    }

    /// Continues if the destination is an address of this machine.
    pub(crate) fn is_for_this_machine(&mut self) -> &mut Self {
        self.expression("fib", |data| {
            number(data, 1, REGISTER);
            number(data, 2, 3);
            number(data, 3, 2);
        })
        .compare(0, &2_u32.to_ne_bytes())
    }

    /// Continues if the connection's destination was translated.
    pub(crate) fn translated(&mut self) -> &mut Self {
        let status_bit = 32_u32.to_ne_bytes();
        self.expression("ct", |data| {
            number(data, 1, REGISTER);
            number(data, 2, 2);
        })
        .mask(&status_bit)
        .compare(1, &[0; 4])
    }

    /// Loads the destination that the connection had before it was translated, and says in which register the next
    /// value goes.
    pub(crate) fn load_asked_address(&mut self, family: u8, register: u32) -> u32 {
        let (key, registers) = if family == IPV4 { (20, 1) } else { (22, 4) };
        self.asked(key, register);
        register + registers
    }

    /// Loads the connection's transport protocol.
    pub(crate) fn load_asked_protocol(&mut self, register: u32) -> &mut Self {
        self.asked(10, register)
    }

    /// Loads the port that the connection had as its destination before it was translated.
    pub(crate) fn load_asked_port(&mut self, register: u32) -> &mut Self {
        self.asked(12, register)
    }

    /// Loads a part of the connection as the one that opened it wrote it.
    fn asked(&mut self, key: u32, register: u32) -> &mut Self {
        self.expression("ct", |data| {
            number(data, 1, REGISTER + register);
            number(data, 2, key);
            data.attribute(3, &[0]);
        })
    }

    /// Replaces the key in the registers with the map's value, or ends the rule.
    pub(crate) fn lookup(&mut self, map: &str, id: u32) -> &mut Self {
        self.expression("lookup", |data| {
            data.text(1, map);
            number(data, 2, REGISTER);
            number(data, 3, REGISTER);
            number(data, 4, id);
        })
    }

    /// Translates the connection's destination to the address in the first registers and the port after it.
    pub(crate) fn translate_destination(&mut self, family: u8, port_register: u32) {
        self.expression("nat", |data| {
            number(data, 1, 1);
            number(data, 2, family.into());
            number(data, 3, REGISTER);
            number(data, 5, REGISTER + port_register);
        });
    }

    /// Translates the connection's source to this address.
    pub(crate) fn translate_source(&mut self, family: u8, address: &[u8]) {
        self.expression("immediate", |data| {
            number(data, 1, REGISTER);
            data.nest(2, |value| value.attribute(1, address));
        });
        self.expression("nat", |data| {
            number(data, 1, 0);
            number(data, 2, family.into());
            number(data, 3, REGISTER);
        });
    }

    pub(crate) fn masquerade(&mut self) {
        self.expression("masq", |_data| {});
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        self.expression("immediate", |data| {
            number(data, 1, VERDICT);
            data.nest(2, |value| {
                value.nest(2, |verdict| {
                    verdict.attribute(1, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        });
    }

    /// Continues if the packet came in through a link. The comparison has the form that iptables uses, which cannot
    /// read rules of another form.
    pub(crate) fn in_interface(&mut self, name: &str) -> &mut Self {
        self.meta(6, REGISTER).compare(0, &compared(name))
    }

    /// The same for the link through which it leaves.
    pub(crate) fn out_interface(&mut self, name: &str) -> &mut Self {
        self.meta(7, REGISTER).compare(0, &compared(name))
    }

    /// Continues if a match of iptables' extensions does.
    pub(crate) fn extension(&mut self, name: &str, revision: u32, options: &[u8]) -> &mut Self {
        self.expression("match", |data| {
            data.text(1, name);
            number(data, 2, revision);
            data.attribute(3, options);
        })
    }

    pub(crate) fn count(&mut self) -> &mut Self {
        self.expression("counter", |_data| {})
    }

    pub(crate) fn accept(&mut self) {
        self.verdict(1, None);
    }

    pub(crate) fn drop_packet(&mut self) {
        self.verdict(0, None);
    }

    pub(crate) fn jump(&mut self, chain: &str) {
        self.verdict(-3, Some(chain));
    }

    pub(crate) fn leave_chain(&mut self) {
        self.verdict(-5, None);
    }
}

/// Makes a batch of messages, which the kernel accepts as a whole or not at all.
pub(crate) fn batch(messages: impl IntoIterator<Item = Message>) -> Vec<Message> {
    // The resource of a batch is its subsystem, big-endian like everything here.
    let mark = |kind| Message::new(kind, 0).fixed(&[0, 0, 0, 10]);
    let mut all = vec![mark(BATCH_BEGIN)];
    all.extend(messages);
    all.push(mark(BATCH_END));
    all
}

pub(crate) fn new_table() -> Message {
    let mut message = message(NEW_TABLE, netlink::CREATE);
    message.text(1, TABLE);
    message
}

pub(crate) fn get_table() -> Message {
    let mut message = message(SUBSYSTEM | 1, 0);
    message.text(1, TABLE);
    message
}

pub(crate) fn delete_table() -> Message {
    let mut message = message(SUBSYSTEM | 2, 0);
    message.text(1, TABLE);
    message
}

pub(crate) fn new_chain(name: &str, hook: Option<Hook>) -> Message {
    let mut message = message(NEW_CHAIN, netlink::CREATE);
    message.text(1, TABLE);
    message.text(3, name);
    if let Some((kind, hook, priority)) = hook {
        message.nest(4, |place| {
            number(place, 1, hook);
            place.attribute(2, &priority.to_be_bytes());
        });
        message.text(7, kind);
    }
    message
}

pub(crate) fn flush_chain(name: &str) -> Message {
    let mut message = message(DELETE_RULE, 0);
    message.text(1, TABLE);
    message.text(2, name);
    message
}

pub(crate) fn new_rule(chain: &str, content: impl FnOnce(&mut Rule<'_>)) -> Message {
    let mut message = message(NEW_RULE, netlink::CREATE | netlink::APPEND);
    message.text(1, TABLE);
    message.text(2, chain);
    message.nest(4, |expressions| content(&mut Rule(expressions)));
    message
}

/// A map from `key` to `data`; `id` identifies it within the batch.
pub(crate) fn new_map(name: &str, id: u32, key: &[Field], data: &[Field]) -> Message {
    let mut message = message(NEW_MAP, netlink::CREATE);
    message.text(1, TABLE);
    message.text(2, name);
    number(&mut message, 3, 8);
    number(&mut message, 4, concatenation(key));
    number(&mut message, 5, key.iter().map(|field| field.len()).sum());
    number(&mut message, 6, concatenation(data));
    number(&mut message, 7, data.iter().map(|field| field.len()).sum());
    number(&mut message, 10, id);
    message
}

/// An element of a map, in wire format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawElement {
    pub(crate) key: Vec<u8>,
    pub(crate) data: Vec<u8>,
    /// The comment that people see with the element.
    pub(crate) comment: String,
}

/// Adds elements to a map; an element whose key exists is refused.
pub(crate) fn add_elements<'a>(map: &str, elements: impl IntoIterator<Item = &'a RawElement>) -> Message {
    let mut message = message(NEW_ELEMENT, netlink::CREATE | netlink::EXCL);
    message.text(1, TABLE);
    message.text(2, map);
    message.nest(3, |list| {
        for element in elements {
            list.nest(1, |entry| {
                entry.nest(1, |key| key.attribute(1, &element.key));
                entry.nest(2, |data| data.attribute(1, &element.data));
                entry.attribute(6, &user_data(&element.comment));
            });
        }
    });
    message
}

pub(crate) fn delete_element(map: &str, key: &[u8]) -> Message {
    let mut message = message(DELETE_ELEMENT, 0);
    message.text(1, TABLE);
    message.text(2, map);
    message.nest(3, |list| list.nest(1, |entry| entry.nest(1, |value| value.attribute(1, key))));
    message
}

pub(crate) fn dump_elements(map: &str) -> Message {
    let mut message = Message::new(GET_ELEMENT, netlink::DUMP).fixed(&[FAMILY_INET, 0, 0, 0]);
    message.text(1, TABLE);
    message.text(2, map);
    message
}

/// Parses the elements in one message of a dump.
pub(crate) fn parse_elements(payload: &[u8]) -> Vec<RawElement> {
    let list = payload.get(4..).and_then(|rest| netlink::find(rest, 3)).unwrap_or_default();
    let value = |entry, kind| netlink::find(entry, kind).and_then(|value| netlink::find(value, 1));
    let parse = |entry| {
        Some(RawElement {
            key: value(entry, 1)?.to_vec(),
            data: value(entry, 2)?.to_vec(),
            comment: netlink::find(entry, 6).map(comment).unwrap_or_default(),
        })
    };
    netlink::attributes(list).filter_map(|(_kind, entry)| parse(entry)).collect()
}

/// The comment as `nft` stores it: kind 0, length, text with its NUL.
pub(super) fn user_data(comment: &str) -> Vec<u8> {
    let len = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![0, len];
    bytes.extend_from_slice(&comment.as_bytes()[..usize::from(len) - 1]);
    bytes.push(0);
    bytes
}

pub(super) fn comment(user_data: &[u8]) -> String {
    match user_data {
        [0, len, rest @ ..] => netlink::text(rest.get(..usize::from(*len)).unwrap_or(rest)),
        _ => String::new(),
    }
}

fn concatenation(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |all, field| all << 6 | u32::from(*field as u8))
}

fn message(kind: u16, flags: u16) -> Message {
    Message::new(kind, flags).fixed(&[FAMILY_INET, 0, 0, 0])
}

fn number(message: &mut Message, kind: u16, value: u32) {
    message.attribute(kind, &value.to_be_bytes());
}

/// A link's name as iptables compares it: with its terminating NUL, or the part before a final `+`, which stands for
/// any ending.
pub(super) fn compared(name: &str) -> Vec<u8> {
    name.strip_suffix('+').map_or_else(|| [name.as_bytes(), &[0]].concat(), |start| start.as_bytes().to_vec())
}

/// Link names are compared with their padding, so that `wharf0` does not match `wharf01`.
fn link_name(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    let len = name.len().min(15);
    padded[..len].copy_from_slice(&name.as_bytes()[..len]);
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_stored_as_nft_stores_it() {
        assert_eq!(user_data("abc"), b"\x00\x04abc\x00");
        assert_eq!(comment(b"\x00\x04abc\x00"), "abc");
        for damaged in [&b""[..], b"\x00", b"\x01\x04abc\x00"] {
            assert_eq!(comment(damaged), "");
        }
        assert_eq!(user_data(&"x".repeat(500)).len(), 257);
    }

    #[test]
    fn concatenated_types_are_numbered_as_nft_does() {
        assert_eq!(concatenation(&[Field::Protocol, Field::Port]), 781);
        assert_eq!(concatenation(&[Field::Ipv4, Field::Port]), 461);
    }
}
