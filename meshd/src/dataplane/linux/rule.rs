//! Policy rules `not fwmark MARK/MARK lookup TABLE`.

use std::collections::BTreeSet;

use meshd_core::plan::{Family, ForeignRule, PROTOCOL, Rule};
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteHeader, RouteProtocol},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use nix::errno::Errno;

use super::netlink::Netlink;
use crate::dataplane::DataplaneError;

/// Every rule of our shape with our protocol number, at any priority, and all that have another.
pub(crate) fn read(
    netlink: &Netlink,
) -> Result<(BTreeSet<Rule>, Vec<ForeignRule>), DataplaneError> {
    let (mut ours, mut others) = (BTreeSet::new(), Vec::new());
    for family in [Family::V4, Family::V6] {
        let mut request = RuleMessage::default();
        request.header.family = address_family(family);
        let answers = netlink.dump(&RouteNetlinkMessage::GetRule(request)).map_err(|errno| {
            DataplaneError::Kernel { action: "read", object: "policy rules".to_owned(), errno }
        })?;
        for answer in answers {
            let RouteNetlinkMessage::NewRule(message) = answer else { continue };
            ours.extend(parse(&message, family));
            others.extend(foreign(&message, family));
        }
    }
    Ok((ours, others))
}

fn foreign(message: &RuleMessage, family: Family) -> Option<ForeignRule> {
    let mut rule = ForeignRule { family, priority: 0, mark: 0, mask: 0 };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Protocol(number) if u8::from(*number) == PROTOCOL => return None,
            RuleAttribute::Priority(number) => rule.priority = *number,
            RuleAttribute::FwMark(bits) => rule.mark = *bits,
            RuleAttribute::FwMask(bits) => rule.mask = *bits,
            _ => {}
        }
    }
    Some(rule)
}

/// Adds the rule; there already is fine. Another program's rule of the same words stays beside it.
pub(crate) fn add(netlink: &Netlink, rule: &Rule) -> Result<(), DataplaneError> {
    if read(netlink)?.0.contains(rule) {
        return Ok(());
    }
    // Without NLM_F_EXCL: it compares all but the protocol number, so another program's rule would
    // be taken for ours.
    netlink
        .act(RouteNetlinkMessage::NewRule(message(rule)), NLM_F_CREATE)
        .map_err(|errno| DataplaneError::Kernel { action: "add", object: describe(rule), errno })
}

/// Removes the rule; gone already is fine.
pub(crate) fn remove(netlink: &Netlink, rule: &Rule) -> Result<(), DataplaneError> {
    match netlink.act(RouteNetlinkMessage::DelRule(message(rule)), 0) {
        Ok(()) | Err(Errno::ENOENT | Errno::ESRCH | Errno::EAFNOSUPPORT) => Ok(()),
        Err(errno) => {
            Err(DataplaneError::Kernel { action: "remove", object: describe(rule), errno })
        }
    }
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn describe(rule: &Rule) -> String {
    let family = match rule.family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    format!("{family} rule at priority {} to table {}", rule.priority, rule.table)
}

fn message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    message.header.action = RuleAction::ToTable;
    message.header.flags = RuleFlags::Invert;
    message.header.table = u8::try_from(rule.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes = vec![
        RuleAttribute::Table(rule.table),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::FwMark(rule.fwmark),
        RuleAttribute::FwMask(rule.fwmark),
        RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
    ];
    message
}

/// `None` unless it is exactly what [`message`] makes.
fn parse(message: &RuleMessage, family: Family) -> Option<Rule> {
    let header = &message.header;
    let plain = header.dst_len == 0
        && header.src_len == 0
        && header.tos == 0
        && header.action == RuleAction::ToTable
        && header.flags.contains(RuleFlags::Invert);
    if !plain {
        return None;
    }
    let (mut protocol, mut priority, mut table) = (0, 0, u32::from(header.table));
    let (mut mark, mut mask) = (0, 0);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Protocol(number) => protocol = u8::from(*number),
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::FwMark(bits) => mark = *bits,
            RuleAttribute::FwMask(bits) => mask = *bits,
            RuleAttribute::Iifname(_)
            | RuleAttribute::Oifname(_)
            | RuleAttribute::Source(_)
            | RuleAttribute::Destination(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_)
            | RuleAttribute::TunId(_)
            | RuleAttribute::L3MDev(true) => return None,
            _ => {}
        }
    }
    (protocol == PROTOCOL && mark == mask).then_some(Rule { family, priority, table, fwmark: mark })
}
