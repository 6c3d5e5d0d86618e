//! Links: which is ours, making, changing and deleting it.

use meshd_core::plan::{Backend, LINK_ALIAS};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        AfSpecInet, AfSpecInet6, AfSpecUnspec, Inet6DevConf, InetDevConf, InfoKind, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage,
    },
};
use nix::errno::Errno;

use super::netlink::Netlink;
use crate::dataplane::DataplaneError;

/// Link group of a device between its creation and its alias. The kernel takes the group in the
/// message that makes the device, the alias only in a second one; so a crash between the two leaves
/// no device that nobody knows as ours. ASCII "mesh".
const NEW_GROUP: u32 = 0x6d65_7368;
/// `IFNAMSIZ` without the terminating NUL.
const NAME_MAX: usize = 15;

/// A link as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) kind: Option<InfoKind>,
    pub(crate) alias: Option<String>,
    pub(crate) group: u32,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    v4: Option<InetDevConf>,
    v6: Option<Inet6DevConf>,
}

impl Link {
    /// The value of a sysctl below `net/`, if it is one of this link, of this name, that came with it: to read them all
    /// costs nothing then.
    pub(crate) fn sysctl(&self, name: &str, path: &str) -> Option<String> {
        let (family, key) = path.strip_prefix("net/")?.split_once("/conf/")?;
        let value = match (family, key.strip_prefix(name)?.strip_prefix('/')?) {
            ("ipv4", "forwarding") => self.v4?.forwarding,
            ("ipv4", "rp_filter") => self.v4?.rp_filter,
            ("ipv6", "accept_ra") => self.v6?.accept_ra,
            ("ipv6", "addr_gen_mode") => self.v6?.addr_gen_mode,
            ("ipv6", "disable_ipv6") => self.v6?.disable_ipv6,
            ("ipv6", "forwarding") => self.v6?.forwarding,
            _ => return None,
        };
        Some(value.to_string())
    }

    /// Who runs it when it is a WireGuard device that meshd made.
    pub(crate) fn own_backend(&self) -> Option<Backend> {
        let ours = self.alias.as_deref() == Some(LINK_ALIAS);
        match self.kind {
            Some(InfoKind::Wireguard) if ours || self.group == NEW_GROUP => Some(Backend::Kernel),
            Some(InfoKind::Tun) if ours => Some(Backend::Userspace),
            _ => None,
        }
    }

    /// The error of one who wanted the name for us.
    pub(crate) fn taken(&self, name: &str) -> DataplaneError {
        let what = match &self.kind {
            Some(InfoKind::Wireguard) => "a WireGuard device".to_owned(),
            Some(kind) => format!("an interface of kind {kind}"),
            None => "a hardware interface".to_owned(),
        };
        DataplaneError::NameTaken { name: name.to_owned(), what }
    }
}

/// Refuses names that cannot be an interface or that would change where a sysctl goes.
pub(crate) fn check_name(name: &str) -> Result<(), DataplaneError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let good = (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(plain)
        && !matches!(name, "." | ".." | "all" | "default" | "lo");
    if good { Ok(()) } else { Err(DataplaneError::BadName { name: name.to_owned() }) }
}

/// The link of that name, if there is one.
pub(crate) fn find(netlink: &Netlink, name: &str) -> Result<Option<Link>, DataplaneError> {
    check_name(name)?;
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let answer = match netlink.get(RouteNetlinkMessage::GetLink(request)) {
        Err(Errno::ENODEV) => return Ok(None),
        answer => answer.map_err(|errno| refused("read", name, errno))?,
    };
    Ok(match answer {
        Some(RouteNetlinkMessage::NewLink(message)) => Some(parse(&message)),
        _ => None,
    })
}

/// The name of a link; `None` when it is gone.
pub(crate) fn name_of(netlink: &Netlink, index: u32) -> Option<String> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    match netlink.get(RouteNetlinkMessage::GetLink(request)) {
        Ok(Some(RouteNetlinkMessage::NewLink(message))) => {
            message.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
        }
        _ => None,
    }
}

/// Makes a kernel WireGuard device, known as ours from its first moment. `EOPNOTSUPP` when this
/// kernel has none, `EEXIST` when the name is in use.
pub(crate) fn create_wireguard(netlink: &Netlink, name: &str) -> Result<(), Errno> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Group(NEW_GROUP),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
    ];
    netlink.act(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Gives the device the alias by which it is known as ours.
pub(crate) fn mark_as_ours(
    netlink: &Netlink,
    name: &str,
    index: u32,
) -> Result<(), DataplaneError> {
    set(netlink, "mark", name, index, |message| {
        message.attributes.push(LinkAttribute::IfAlias(LINK_ALIAS.to_owned()));
        message.attributes.push(LinkAttribute::Group(0));
    })
}

/// Sets the MTU in bytes.
pub(crate) fn set_mtu(
    netlink: &Netlink,
    name: &str,
    index: u32,
    mtu: u32,
) -> Result<(), DataplaneError> {
    set(netlink, "set the MTU of", name, index, |message| {
        message.attributes.push(LinkAttribute::Mtu(mtu));
    })
}

/// Brings it up.
pub(crate) fn set_up(netlink: &Netlink, name: &str, index: u32) -> Result<(), DataplaneError> {
    set(netlink, "bring up", name, index, |message| {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    })
}

/// Deletes it; gone already is fine.
pub(crate) fn delete(netlink: &Netlink, name: &str, index: u32) -> Result<(), DataplaneError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    match netlink.act(RouteNetlinkMessage::DelLink(message), 0) {
        Ok(()) | Err(Errno::ENODEV) => Ok(()),
        Err(errno) => Err(refused("delete", name, errno)),
    }
}

fn set(
    netlink: &Netlink,
    action: &'static str,
    name: &str,
    index: u32,
    fill: impl FnOnce(&mut LinkMessage),
) -> Result<(), DataplaneError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    fill(&mut message);
    netlink
        .act(RouteNetlinkMessage::SetLink(message), 0)
        .map_err(|errno| refused(action, name, errno))
}

fn refused(action: &'static str, name: &str, errno: Errno) -> DataplaneError {
    DataplaneError::Kernel { action, object: format!("interface {name}"), errno }
}

fn parse(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        kind: None,
        alias: None,
        group: 0,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        v4: None,
        v6: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::AfSpecUnspec(families) => (link.v4, link.v6) = settings(families),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

fn settings(families: &[AfSpecUnspec]) -> (Option<InetDevConf>, Option<Inet6DevConf>) {
    let v4 = families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet(parts) => parts.iter().find_map(|part| match part {
            AfSpecInet::DevConf(conf) => Some(*conf),
            _ => None,
        }),
        _ => None,
    });
    let v6 = families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet6(parts) => parts.iter().find_map(|part| match part {
            AfSpecInet6::DevConf(conf) => Some(*conf),
            _ => None,
        }),
        _ => None,
    });
    (v4, v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: Option<InfoKind>, alias: Option<&str>, group: u32) -> Link {
        Link {
            index: 1,
            kind,
            alias: alias.map(str::to_owned),
            group,
            mtu: 1420,
            up: true,
            v4: None,
            v6: None,
        }
    }

    #[test]
    fn only_wireguard_with_our_mark_is_ours() {
        let kernel = Some(InfoKind::Wireguard);
        assert_eq!(link(kernel.clone(), Some("meshd"), 0).own_backend(), Some(Backend::Kernel));
        assert_eq!(link(kernel.clone(), None, NEW_GROUP).own_backend(), Some(Backend::Kernel));
        assert_eq!(
            link(Some(InfoKind::Tun), Some("meshd"), 0).own_backend(),
            Some(Backend::Userspace)
        );
        assert_eq!(link(kernel, None, 0).own_backend(), None);
        assert_eq!(link(Some(InfoKind::Tun), None, 0).own_backend(), None);
        assert_eq!(link(Some(InfoKind::Bridge), Some("meshd"), NEW_GROUP).own_backend(), None);
        assert_eq!(link(None, Some("meshd"), 0).own_backend(), None);
    }

    #[test]
    fn names_that_could_lead_elsewhere_are_refused() {
        for bad in ["", "all", "default", "lo", ".", "..", "a/b", "a b", "0123456789abcdef", "ä"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        for good in ["mesh0", "wg-1", "a.b_c"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
    }
}
