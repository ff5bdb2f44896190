//! Chains and rules of other tables, as far as wharf reads them or adds to them.
//!
//! They belong to other programs, which flush and rewrite them at any time. So nothing is remembered of them: what
//! there is, is asked of the kernel each time.

use super::encode::{DELETE_RULE, NEW_RULE, Rule, SUBSYSTEM, comment, compared, user_data};
use crate::netlink::{self, Message, NetlinkError, Operation, Socket};

const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;

/// A chain of any table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    /// The family, with the number that nf_tables uses.
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) name: String,
    /// The number of the hook, if the chain has one.
    pub(crate) hook: Option<u32>,
    /// The policy for packets that none of its rules decides: 0 drops them.
    pub(crate) policy: Option<u32>,
}

/// A rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundRule {
    handle: Vec<u8>,
    pub(crate) comment: String,
    expressions: Vec<u8>,
}

impl FoundRule {
    /// Whether it compares a link's name with this one. A final `+` stands for any ending.
    pub(crate) fn names(&self, link: &str) -> bool {
        let mut name = compared(link);
        if link.ends_with('+') {
            // The whole value, in the form of an attribute: its length, its kind, itself.
            let length = u16::try_from(name.len() + 4).unwrap_or(u16::MAX);
            name = [&length.to_ne_bytes()[..], &1_u16.to_ne_bytes(), &name].concat();
        }
        self.expressions.windows(name.len()).any(|window| window == name)
    }
}

/// All chains of all tables.
pub(crate) fn chains(socket: &Socket) -> Result<Vec<Chain>, NetlinkError> {
    let request = || Message::new(GET_CHAIN, netlink::DUMP).fixed(&[0; 4]);
    socket.dump(&request, parse_chain).operation(|| "list the chains of nf_tables".to_owned())
}

/// The rules of a table, or of one chain in it.
pub(crate) fn rules(socket: &Socket, chain: &Chain, only: Only) -> Result<Vec<FoundRule>, NetlinkError> {
    let request = || {
        let mut message = Message::new(GET_RULE, netlink::DUMP).fixed(&[chain.family, 0, 0, 0]);
        message.text(1, &chain.table);
        if matches!(only, Only::Chain) {
            message.text(2, &chain.name);
        }
        message
    };
    socket.dump(&request, parse_rule).operation(|| format!("list the rules of the table {}", chain.table))
}

/// What to list.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Only {
    Chain,
    Table,
}

/// Inserts a rule at the head of a chain.
pub(crate) fn insert_rule(chain: &Chain, remark: &str, content: impl FnOnce(&mut Rule<'_>)) -> Message {
    let mut message = Message::new(NEW_RULE, netlink::CREATE).fixed(&[chain.family, 0, 0, 0]);
    message.text(1, &chain.table);
    message.text(2, &chain.name);
    message.nest(4, |expressions| content(&mut Rule(expressions)));
    message.attribute(7, &user_data(remark));
    message
}

/// Deletes a listed rule.
pub(crate) fn delete_rule(chain: &Chain, rule: &FoundRule) -> Message {
    let mut message = Message::new(DELETE_RULE, 0).fixed(&[chain.family, 0, 0, 0]);
    message.text(1, &chain.table);
    message.text(2, &chain.name);
    message.attribute(3, &rule.handle);
    message
}

fn parse_chain(payload: &[u8]) -> Option<Chain> {
    let (header, attributes) = payload.split_at_checked(4)?;
    let text = |kind| netlink::find(attributes, kind).map(netlink::text);
    let number = |bytes: &[u8]| Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?));
    let hook = netlink::find(attributes, 4).and_then(|hook| netlink::find(hook, 1));
    Some(Chain {
        family: header[0],
        table: text(1)?,
        name: text(3)?,
        hook: hook.and_then(number),
        policy: netlink::find(attributes, 5).and_then(number),
    })
}

fn parse_rule(payload: &[u8]) -> Option<FoundRule> {
    let attributes = payload.get(4..)?;
    let find = |kind| netlink::find(attributes, kind).unwrap_or_default();
    Some(FoundRule { handle: find(3).to_vec(), comment: comment(find(7)), expressions: find(4).to_vec() })
}
