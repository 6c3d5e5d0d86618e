//! Which servers this host asks for names, by the files of its resolver.

use std::{collections::BTreeSet, fs::File, io::Read, net::IpAddr};

/// What programs read, and beside it what stands behind it where that names a server on this very host.
const FILES: [&str; 3] =
    ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/NetworkManager/resolv.conf"];
/// Bytes of a file that are read, and servers of one that count.
const MOST: (u64, usize) = (64 * 1024, 16);

/// Reads them. A file that is not there or cannot be read names none.
pub(super) fn read() -> BTreeSet<IpAddr> {
    let text = |path: &&str| {
        let mut bytes = Vec::new();
        File::open(path).ok()?.take(MOST.0).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    FILES.iter().filter_map(text).flat_map(|text| parse(&text)).collect()
}

/// See resolv.conf(5).
fn parse(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        // The interface of a link-local one.
        Some(address.split('%').next()?.parse::<IpAddr>().ok()?.to_canonical())
    };
    text.lines().filter_map(server).take(MOST.1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_found_among_whatever_else_a_file_says() {
        let text = "# nameserver 192.0.2.9\nsearch example.net\n\tnameserver\t192.0.2.53  # first\n\
                    nameserver fe80::1%eth0\nnameserver ::ffff:192.0.2.54\nnameserver\nnameservers 192.0.2.8\n\
                    nameserver example.net\noptions edns0";
        let expected: Vec<IpAddr> =
            ["192.0.2.53", "fe80::1", "192.0.2.54"].map(|a| a.parse().unwrap()).into();
        assert_eq!(parse(text), expected);
        assert_eq!(parse(&"nameserver 192.0.2.53\n".repeat(100)).len(), 16);
    }
}
