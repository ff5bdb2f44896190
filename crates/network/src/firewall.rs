//! Other firewalls that block pods.
//!
//! A forwarded packet passes the chains of all tables, and each of them may drop it. Docker, ufw and cautious
//! administrators set the policy of iptables' FORWARD chain to drop. Like every container engine, wharf inserts rules
//! for its links there. They accept packets from pods, replies, and packets to a host port, but nothing else that
//! somebody routes to a pod. They have the form that iptables writes, because it reads no other. Chains that are not
//! iptables' were written by hand or belong to firewalld: what these drop is reported, not changed.

use crate::netlink::{Family, IPV4, IPV6, Message, NetlinkError, Socket};
use crate::nft::commit;
use crate::nft::others::{self, Chain, FoundRule, Only};

/// The comment by which the rules are found again.
const COMMENT: &str = "wharf";

const FORWARD_HOOK: u32 = 2;
const DROP: u32 = 0;

/// iptables' name for its table.
const FILTER: &str = "filter";
/// Docker's chain for the rules of others, which comes before its own.
const DOCKER_USER: &str = "DOCKER-USER";

/// Lets packets to and from the links of pods pass; the links are in iptables' notation. Existing rules stay. Returns
/// what still blocks packets, for people.
pub(crate) fn open(links: &[String]) -> Result<Vec<String>, NetlinkError> {
    let socket = Socket::open(Family::Netfilter)?;
    let chains = others::chains(&socket)?;
    let mut obstacles = Vec::new();
    for chain in to_open(&chains) {
        if let Err(error) = open_chain(&socket, chain, links) {
            obstacles.push(format!(
                "the iptables chain {} may drop traffic of pods, and wharf cannot add a rule to it: {error}",
                chain.name
            ));
        }
    }
    for chain in foreign(&chains) {
        let rules = others::rules(&socket, chain, Only::Table)?;
        let is_named = |link: &&String| rules.iter().any(|rule| rule.names(link));
        obstacles.extend(links.iter().filter(|link| !is_named(link)).map(|link| obstacle(chain, link)));
    }
    Ok(obstacles)
}

/// Removes the rules from every chain. Returns whether there were any.
pub(crate) fn close() -> Result<bool, NetlinkError> {
    let socket = Socket::open(Family::Netfilter)?;
    let mut found = false;
    for chain in others::chains(&socket)?.iter().filter(|chain| is_iptables(chain)) {
        let deletions: Vec<Message> =
            ours(&socket, chain)?.iter().map(|rule| others::delete_rule(chain, rule)).collect();
        if !deletions.is_empty() {
            found = true;
            commit(&socket, deletions).map_err(|errno| failed(chain, errno))?;
        }
    }
    Ok(found)
}

fn open_chain(socket: &Socket, chain: &Chain, links: &[String]) -> Result<(), NetlinkError> {
    let present = ours(socket, chain)?;
    let accepts: Vec<Message> = links.iter().flat_map(|link| accepts(chain, link)).collect();
    let is_accepted = |link: &String| present.iter().filter(|rule| rule.names(link)).count() == 2;
    if present.len() == accepts.len() && links.iter().all(is_accepted) {
        return Ok(());
    }
    let outdated = present.iter().map(|rule| others::delete_rule(chain, rule));
    commit(socket, outdated.chain(accepts).collect()).map_err(|errno| failed(chain, errno))
}

fn ours(socket: &Socket, chain: &Chain) -> Result<Vec<FoundRule>, NetlinkError> {
    let mut rules = others::rules(socket, chain, Only::Chain)?;
    rules.retain(|rule| rule.comment == COMMENT);
    Ok(rules)
}

/// `-i LINK -j ACCEPT` and `-o LINK -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT`.
fn accepts(chain: &Chain, link: &str) -> [Message; 2] {
    [
        others::insert_rule(chain, COMMENT, |rule| {
            rule.out_interface(link).extension("conntrack", 3, &expected()).count().accept();
        }),
        others::insert_rule(chain, COMMENT, |rule| rule.in_interface(link).count().accept()),
    ]
}

/// `struct xt_conntrack_mtinfo3` with nothing but states: `match_flags` says that, and `state_mask` says which.
fn expected() -> [u8; 168] {
    const MATCH_FLAGS: usize = 146;
    const STATE_MASK: usize = 150;
    const STATE: u16 = 1;
    const ESTABLISHED: u16 = 1 << 1;
    const RELATED: u16 = 1 << 2;
    const DNAT: u16 = 1 << 7;
    let mut options = [0; 168];
    options[MATCH_FLAGS..MATCH_FLAGS + 2].copy_from_slice(&STATE.to_ne_bytes());
    options[STATE_MASK..STATE_MASK + 2].copy_from_slice(&(ESTABLISHED | RELATED | DNAT).to_ne_bytes());
    options
}

fn failed(chain: &Chain, errno: nix::errno::Errno) -> NetlinkError {
    NetlinkError { operation: format!("change the chain {} of iptables", chain.name), errno }
}

/// Whether packets may be forwarded through the chain, and the table is iptables'.
fn is_iptables(chain: &Chain) -> bool {
    let passed = chain.hook == Some(FORWARD_HOOK) || chain.name == DOCKER_USER;
    matches!(chain.family, IPV4 | IPV6) && chain.table == FILTER && passed
}

fn drops(chain: &Chain) -> bool {
    chain.hook == Some(FORWARD_HOOK) && chain.policy == Some(DROP)
}

/// The chains of iptables' tables whose FORWARD drops.
fn to_open(chains: &[Chain]) -> Vec<&Chain> {
    let dropping =
        |family| chains.iter().any(|chain| chain.family == family && is_iptables(chain) && drops(chain));
    chains.iter().filter(|chain| is_iptables(chain) && dropping(chain.family)).collect()
}

/// One chain of each other table that drops. firewalld's policy is to accept; a rule at its end does the dropping.
fn foreign(chains: &[Chain]) -> Vec<&Chain> {
    let mut found: Vec<&Chain> = Vec::new();
    let firewalld = |chain: &Chain| chain.table == "firewalld" && chain.hook == Some(FORWARD_HOOK);
    for chain in chains.iter().filter(|chain| !is_iptables(chain) && (drops(chain) || firewalld(chain))) {
        let same_table = |other: &&Chain| (other.family, &other.table) == (chain.family, &chain.table);
        if !found.iter().any(same_table) {
            found.push(chain);
        }
    }
    found
}

fn obstacle(chain: &Chain, link: &str) -> String {
    if chain.table == "firewalld" {
        return format!(
            "firewalld drops the traffic of pods unless it trusts their links: firewall-cmd --permanent --zone=trusted \
             --add-interface={link}, then firewall-cmd --reload"
        );
    }
    let link = link.strip_suffix('+').map_or_else(|| link.to_owned(), |start| format!("\"{start}*\""));
    format!(
        "the nf_tables chain {} {} drops the traffic of pods: add 'iifname {link} accept' and 'oifname {link} ct state \
         established,related accept' to it, and for host ports 'oifname {link} ct status dnat accept'",
        chain.table, chain.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(family: u8, table: &str, name: &str, policy: Option<u32>) -> Chain {
        let hook = policy.map(|_policy| FORWARD_HOOK);
        Chain { family, table: table.into(), name: name.into(), hook, policy }
    }

    #[test]
    fn only_iptables_chains_that_drop_are_opened() {
        let docker = [
            chain(IPV4, "filter", "FORWARD", Some(DROP)),
            chain(IPV4, "filter", DOCKER_USER, None),
            chain(IPV4, "filter", "DOCKER", None),
            chain(IPV6, "filter", "FORWARD", Some(1)),
            chain(IPV6, "filter", DOCKER_USER, None),
            chain(1, "filter", "forward", Some(DROP)),
        ];
        let names: Vec<_> =
            to_open(&docker).iter().map(|chain| (chain.family, chain.name.as_str())).collect();
        assert_eq!(names, [(IPV4, "FORWARD"), (IPV4, DOCKER_USER)]);
        assert_eq!(foreign(&docker), [&docker[5]]);
        assert!(to_open(&[chain(IPV4, "filter", "FORWARD", Some(1))]).is_empty());
    }

    #[test]
    fn firewalld_is_known_by_its_table() {
        let found = [
            chain(1, "firewalld", "filter_FORWARD", Some(1)),
            chain(1, "firewalld", "filter_FORWARD_POLICIES_pre", None),
        ];
        let obstacles: Vec<String> = foreign(&found).iter().map(|chain| obstacle(chain, "wharf0")).collect();
        assert_eq!(obstacles.len(), 1);
        assert!(obstacles[0].contains("--add-interface=wharf0"), "{obstacles:?}");
    }
}
