//! Reads and writes files below `/proc/sys/net`, in the network namespace of the calling thread.

use std::{fs, io, path::PathBuf};

use crate::dataplane::DataplaneError;

/// The value without its line end.
pub(crate) fn read(path: &str) -> io::Result<String> {
    fs::read_to_string(file(path)?).map(|text| text.trim_end().to_owned())
}

/// Writes, unless the value is there already: `/proc/sys` may be read-only.
pub(crate) fn write(path: &str, value: &str) -> Result<(), DataplaneError> {
    let failed = |action, source| DataplaneError::Sysctl { action, path: path.to_owned(), source };
    if read(path).map_err(|e| failed("read", e))? == value {
        return Ok(());
    }
    file(path).and_then(|file| fs::write(file, value)).map_err(|e| failed("write", e))
}

fn file(path: &str) -> io::Result<PathBuf> {
    let is_plain = |part: &str| !matches!(part, "" | "." | "..");
    if path.starts_with("net/") && path.split('/').all(is_plain) {
        Ok(PathBuf::from("/proc/sys").join(path))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path below net/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_outside_of_net_are_refused() {
        for bad in ["kernel/hostname", "net/../kernel/hostname", "/net/ipv4", "net//x", "net/./x"] {
            assert_eq!(file(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad}");
        }
        assert!(file("net/ipv4/ip_forward").is_ok());
    }
}
