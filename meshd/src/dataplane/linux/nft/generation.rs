//! The generation of this host's nftables: the kernel counts it up with each change of any table, so what was read under
//! one generation still stands while it is the same. Asking costs two system calls, reading a process.

use std::{cell::Cell, io};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// `NFT_MSG_GETGEN` and `NFT_MSG_NEWGEN` of `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nf_tables.h).
const ASK: u16 = (10 << 8) | 16;
const ANSWER: u16 = (10 << 8) | 15;
/// `NFTA_GEN_ID`: 32 bits in network order.
const ID: u16 = 1;
const NLM_F_REQUEST: u16 = 1;
/// Of netlink (linux/netlink.h), and of nfnetlink behind it.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;
/// Bytes of an answer at most: it names the program that made the last change.
const BUFFER: usize = 512;

/// Asks the kernel for it, in the network namespace of the thread that made this.
#[derive(Debug)]
pub(super) struct Generations {
    socket: Option<Socket>,
    asked: Cell<u32>,
}

impl Generations {
    pub(super) fn new() -> Self {
        Self { socket: open().ok(), asked: Cell::new(0) }
    }

    /// The one of now; `None` where the kernel does not say.
    pub(super) fn now(&self) -> Option<u32> {
        let socket = self.socket.as_ref()?;
        let number = self.asked.get().wrapping_add(1);
        self.asked.set(number);
        socket.send(&question(number), 0).ok()?;
        // The kernel answers before the call above returns. Of what an earlier call left, nothing counts.
        loop {
            let mut bytes = Vec::with_capacity(BUFFER);
            socket.recv(&mut bytes, libc::MSG_DONTWAIT).ok()?;
            if word(&bytes, 8).map(u32::from_ne_bytes) == Some(number) {
                return answer(&bytes);
            }
        }
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn question(number: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADERS);
    bytes.extend(20_u32.to_ne_bytes());
    bytes.extend(ASK.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend(number.to_ne_bytes());
    // From nobody in particular, of no family.
    bytes.extend([0; 8]);
    bytes
}

fn word(bytes: &[u8], at: usize) -> Option<[u8; 4]> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// The id in an answer.
fn answer(bytes: &[u8]) -> Option<u32> {
    if half(bytes, 4)? != ANSWER {
        return None;
    }
    let mut rest = bytes.get(HEADERS..)?;
    loop {
        let length = usize::from(half(rest, 0)?);
        if half(rest, 2)? == ID && length >= 8 {
            return word(rest, 4).map(u32::from_be_bytes);
        }
        // Attributes begin at multiples of four, and none is shorter than its own header.
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = question(7);
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend(attributes.concat());
        bytes
    }

    #[test]
    fn the_id_is_found_wherever_it_stands() {
        let id = attribute(ID, &[0, 0, 1, 2]);
        let name = attribute(3, b"nft\0x");
        assert_eq!(answer(&message(ANSWER, &[id.clone(), name.clone()])), Some(258));
        assert_eq!(answer(&message(ANSWER, &[name, id])), Some(258));
    }

    #[test]
    fn what_is_no_answer_says_nothing() {
        let id = attribute(ID, &[0, 0, 1, 2]);
        // An error, nothing in it, cut off, and an attribute without a length.
        assert_eq!(answer(&message(2, std::slice::from_ref(&id))), None);
        assert_eq!(answer(&message(ANSWER, &[])), None);
        let whole = message(ANSWER, &[id]);
        for length in 0..whole.len() {
            assert_eq!(answer(&whole[..length]), None);
        }
        assert_eq!(answer(&message(ANSWER, &[vec![0; 64]])), None);
    }
}
