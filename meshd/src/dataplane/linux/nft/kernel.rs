//! What the kernel itself says of nftables: asking it costs two system calls, asking the nft program a process.
//!
//! It counts a generation up with each change of any table, so what was read under one generation still stands while it
//! is the same. And it says whether there is a table of a name.

use std::{cell::Cell, io};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nfnetlink.h), in front of the kinds below (linux/netfilter/nf_tables.h).
const SUBSYSTEM: u16 = 10 << 8;
/// `NFT_MSG_NEWTABLE` and `NFT_MSG_GETTABLE`.
const TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
/// `NFT_MSG_NEWGEN` and `NFT_MSG_GETGEN`.
const GENERATION: u16 = SUBSYSTEM | 15;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
/// `NFTA_GEN_ID`: 32 bits in network order.
const GENERATION_ID: u16 = 1;
/// `NFTA_TABLE_NAME`: text with a zero behind it.
const TABLE_NAME: u16 = 1;
/// Of netlink (linux/netlink.h): an error, and what an answer is asked for with.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
/// Netlink's header, and that of nfnetlink behind it.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;
/// Bytes of an answer at most: one names the program that made the last change, one carries a table's comment.
const BUFFER: usize = 1024;

/// Asks the kernel, in the network namespace of the thread that made this.
#[derive(Debug)]
pub(super) struct Kernel {
    socket: Option<Socket>,
    asked: Cell<u32>,
}

impl Kernel {
    pub(super) fn new() -> Self {
        Self { socket: open().ok(), asked: Cell::new(0) }
    }

    /// The generation of now; `None` where the kernel does not say.
    pub(super) fn generation(&self) -> Option<u32> {
        generation(&self.ask(GET_GENERATION, 0, &[])?)
    }

    /// Whether there is a table `name` of a family, as nft calls that; `None` where the kernel does not say.
    pub(super) fn has_table(&self, family: &str, name: &str) -> Option<bool> {
        let family = match family {
            "inet" => libc::NFPROTO_INET,
            "arp" => libc::NFPROTO_ARP,
            _ => return None,
        };
        let name = attribute(TABLE_NAME, &[name.as_bytes(), b"\0"].concat());
        is_there(&self.ask(GET_TABLE, u8::try_from(family).ok()?, &name)?)
    }

    fn ask(&self, kind: u16, family: u8, attributes: &[u8]) -> Option<Vec<u8>> {
        let socket = self.socket.as_ref()?;
        let number = self.asked.get().wrapping_add(1);
        self.asked.set(number);
        socket.send(&question(number, kind, family, attributes), 0).ok()?;
        // The kernel answers before the call above returns. Of what an earlier call left, nothing counts.
        loop {
            let mut bytes = Vec::with_capacity(BUFFER);
            socket.recv(&mut bytes, libc::MSG_DONTWAIT).ok()?;
            if word(&bytes, 8).map(u32::from_ne_bytes) == Some(number) {
                return Some(bytes);
            }
        }
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn question(number: u32, kind: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADERS + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADERS + attributes.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend(number.to_ne_bytes());
    // From nobody in particular; version 0, no resource.
    bytes.extend([0, 0, 0, 0, family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn word(bytes: &[u8], at: usize) -> Option<[u8; 4]> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Whether the table that was asked for is there, by the kernel's answer.
fn is_there(bytes: &[u8]) -> Option<bool> {
    match half(bytes, 4)? {
        TABLE => Some(true),
        NLMSG_ERROR => {
            let code = word(bytes, HEADER).map(i32::from_ne_bytes)?;
            (code == -libc::ENOENT).then_some(false)
        }
        _ => None,
    }
}

/// The generation in an answer.
fn generation(bytes: &[u8]) -> Option<u32> {
    if half(bytes, 4)? != GENERATION {
        return None;
    }
    let mut rest = bytes.get(HEADERS..)?;
    loop {
        let length = usize::from(half(rest, 0)?);
        if half(rest, 2)? == GENERATION_ID && length >= 8 {
            return word(rest, 4).map(u32::from_be_bytes);
        }
        // Attributes begin at multiples of four, and none is shorter than its own header.
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
        question(7, kind, 0, &attributes.concat())
    }

    #[test]
    fn the_id_is_found_wherever_it_stands() {
        let id = attribute(GENERATION_ID, &[0, 0, 1, 2]);
        let name = attribute(3, b"nft\0x");
        assert_eq!(generation(&message(GENERATION, &[id.clone(), name.clone()])), Some(258));
        assert_eq!(generation(&message(GENERATION, &[name, id])), Some(258));
    }

    #[test]
    fn a_table_is_there_or_not_or_nobody_says() {
        let error = |code: i32| {
            let mut bytes = message(NLMSG_ERROR, &[]);
            bytes.splice(HEADER.., code.to_ne_bytes());
            bytes
        };
        assert_eq!(is_there(&message(TABLE, &[attribute(TABLE_NAME, b"meshd\0")])), Some(true));
        assert_eq!(is_there(&error(-libc::ENOENT)), Some(false));
        assert_eq!(is_there(&error(-libc::EPERM)), None);
        assert_eq!(is_there(&error(-libc::ENOENT)[..HEADER + 3]), None);
        assert_eq!(is_there(&message(GENERATION, &[])), None);
        assert_eq!(is_there(&[]), None);
    }

    #[test]
    fn what_is_no_answer_says_nothing() {
        let id = attribute(GENERATION_ID, &[0, 0, 1, 2]);
        // An error, nothing in it, cut off, and an attribute without a length.
        assert_eq!(generation(&message(2, std::slice::from_ref(&id))), None);
        assert_eq!(generation(&message(GENERATION, &[])), None);
        let whole = message(GENERATION, &[id]);
        for length in 0..whole.len() {
            assert_eq!(generation(&whole[..length]), None);
        }
        assert_eq!(generation(&message(GENERATION, &[vec![0; 64]])), None);
    }
}
