//! Writes address blocks as X.509 has them (RFC 3779), so that standard tools show and check the
//! outer bound of what a certificate holder may claim.
//!
//! The form is canonical (sorted, adjacent blocks combined, ranges only where no prefix fits), which
//! openssl insists on, and which makes equal sets equal bytes: a reader compares rather than parses.

use std::net::IpAddr;

use ipnet::IpNet;
use yasna::DERWriter;

/// `id-pe-ipAddrBlocks`.
pub(super) const OID: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 1, 7];

/// An inclusive range of addresses, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    low: u128,
    high: u128,
}

/// Every address: what a CA may hand out.
pub(super) fn encode_all() -> Vec<u8> {
    let everything = Block { low: 0, high: u128::MAX };
    let everything_v4 = Block { low: 0, high: u128::from(u32::MAX) };
    encode_blocks(&[everything_v4], &[everything])
}

/// The union of `prefixes`.
pub(super) fn encode(prefixes: &[IpNet]) -> Vec<u8> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for prefix in prefixes {
        let block = Block { low: number(prefix.network()), high: number(prefix.broadcast()) };
        if prefix.addr().is_ipv4() { v4.push(block) } else { v6.push(block) }
    }
    encode_blocks(&combine(v4), &combine(v6))
}

/// The same blocks as text: a prefix where one fits, else `FIRST-LAST`.
pub(super) fn texts(prefixes: &[IpNet]) -> Vec<String> {
    let of = |v4: bool| {
        let family = prefixes.iter().filter(|prefix| prefix.addr().is_ipv4() == v4);
        let blocks = family
            .map(|net| Block { low: number(net.network()), high: number(net.broadcast()) })
            .collect();
        combine(blocks).into_iter().map(move |block| block.text(v4))
    };
    of(true).chain(of(false)).collect()
}

impl Block {
    fn text(self, v4: bool) -> String {
        let address = |number: u128| match u32::try_from(number) {
            Ok(number) if v4 => IpAddr::from(std::net::Ipv4Addr::from_bits(number)),
            _ => IpAddr::from(std::net::Ipv6Addr::from_bits(number)),
        };
        let varying = self.low ^ self.high;
        if varying & varying.wrapping_add(1) == 0 && self.low & varying == 0 {
            let width = if v4 { 32 } else { 128 };
            return format!("{}/{}", address(self.low), width - varying.count_ones());
        }
        format!("{}-{}", address(self.low), address(self.high))
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn combine(mut blocks: Vec<Block>) -> Vec<Block> {
    blocks.sort_unstable();
    let mut combined: Vec<Block> = Vec::with_capacity(blocks.len());
    for block in blocks {
        match combined.last_mut() {
            Some(last) if block.low <= last.high.saturating_add(1) => {
                last.high = last.high.max(block.high);
            }
            _ => combined.push(block),
        }
    }
    combined
}

fn encode_blocks(v4: &[Block], v6: &[Block]) -> Vec<u8> {
    yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            for (family, width, blocks) in [(1, 32, v4), (2, 128, v6)] {
                if blocks.is_empty() {
                    continue;
                }
                writer.next().write_sequence(|writer| {
                    writer.next().write_bytes(&[0, family]);
                    writer.next().write_sequence(|writer| {
                        for block in blocks {
                            write_block(writer.next(), *block, width);
                        }
                    });
                });
            }
        });
    })
}

fn write_block(writer: DERWriter<'_>, block: Block, width: u32) {
    let varying = block.low ^ block.high;
    let is_prefix = varying & varying.wrapping_add(1) == 0 && block.low & varying == 0;
    if is_prefix {
        return write_bits(writer, block.low, width - varying.count_ones(), width);
    }
    let low_bits = width - block.low.trailing_zeros().min(width);
    let high_bits = width - block.high.trailing_ones().min(width);
    writer.write_sequence(|writer| {
        write_bits(writer.next(), block.low, low_bits, width);
        write_bits(writer.next(), block.high, high_bits, width);
    });
}

/// The first `count` bits of a number of `width` bits.
fn write_bits(writer: DERWriter<'_>, value: u128, count: u32, width: u32) {
    let aligned = value << (128 - width);
    let kept = if count == 0 { 0 } else { aligned & (u128::MAX << (128 - count)) };
    let bytes = kept.to_be_bytes();
    let length = count.div_ceil(8) as usize;
    writer.write_bitvec_bytes(&bytes[..length], count as usize);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        data_encoding::HEXLOWER.encode(bytes)
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_example_of_the_rfc_is_written_bit_for_bit() {
        // RFC 3779, appendix B, with the unicast SAFI left out.
        let blocks = encode(&nets(&[
            "10.3.0.0/16",
            "10.2.64.0/24",
            "10.2.48.0/20",
            "10.1.0.0/16",
            "10.0.64.0/24",
            "10.0.32.0/20",
        ]));
        let want = [
            "302c302a040200013024",
            "0304040a0020",
            "0304000a0040",
            "0303000a01",
            "300c0304040a02300304000a0240",
            "0303000a03",
        ];
        assert_eq!(hex(&blocks), want.concat());
    }

    #[test]
    fn everything_is_an_empty_prefix_of_each_family() {
        let want = ["3016", "3009040200013003030100", "3009040200023003030100"].concat();
        assert_eq!(hex(&encode_all()), want);
        assert_eq!(encode_all(), encode(&nets(&["0.0.0.0/0", "::/0"])));
    }

    #[test]
    fn adjacent_nested_and_repeated_blocks_are_combined() {
        assert_eq!(
            encode(&nets(&["10.1.0.0/24", "10.1.1.0/24", "10.1.1.7/32", "10.1.0.0/24"])),
            encode(&nets(&["10.1.0.0/23"])),
        );
        // 10.1.1.0 to 10.1.2.255 is no prefix: a range.
        let range = encode(&nets(&["10.1.1.0/24", "10.1.2.0/24"]));
        assert!(hex(&range).contains("300c0304000a01010304000a0102"), "{}", hex(&range));
    }

    #[test]
    fn the_last_address_of_a_family_does_not_overflow() {
        let top = encode(&nets(&["ffff::/16", "255.255.255.255/32"]));
        assert_eq!(top, encode(&nets(&["255.255.255.255/32", "ffff::/16", "ffff::/17"])));
    }
}
