//! Decoders of files and answers that are private otherwise, opened to `tests/fuzz`: the same code without the file system
//! or the socket around it.

use std::ffi::OsString;

use meshd_proto::NodeKey;

use crate::{
    config::{Config, ConfigErrors},
    host::cni::{self, PodPrefixes},
    state,
};

/// An entry of the record store.
pub fn store_entry(key: &[u8], entry: &[u8]) -> Result<(NodeKey, Vec<u8>), String> {
    state::fuzzing::store_entry(key, entry)
}

/// The same as it is put.
#[must_use]
pub fn make_store_entry(key: &NodeKey, record: &[u8]) -> Vec<u8> {
    state::fuzzing::make_store_entry(key, record)
}

/// The entries of a ledger's file and the length of all complete ones; an error gives the position of a damaged one.
pub fn ledger_file(bytes: &[u8]) -> Result<(Vec<Vec<u8>>, usize), usize> {
    state::fuzzing::ledger_file(bytes)
}

/// Entries as a ledger's file holds them.
#[must_use]
pub fn make_ledger_file(entries: &[Vec<u8>]) -> Vec<u8> {
    state::fuzzing::make_ledger_file(entries)
}

/// A file of PEM, to DER and back.
pub fn recode_pem(text: &[u8]) -> Result<String, String> {
    state::fuzzing::recode_pem(text)
}

/// A configuration of several files and the environment.
pub fn config(
    files: &[&str],
    environment: Vec<(OsString, OsString)>,
) -> Result<Config, ConfigErrors> {
    Config::from_texts(files, environment)
}

/// A file of `/etc/cni/net.d`.
#[must_use]
pub fn cni_configuration(text: &str) -> PodPrefixes {
    cni::from_configuration(text)
}

/// Flannel's `subnet.env`.
#[must_use]
pub fn flannel(text: &str) -> PodPrefixes {
    cni::from_flannel(text)
}

/// What a userspace WireGuard answers: how many peers are in it.
pub fn wireguard_answer(text: &str) -> std::io::Result<usize> {
    crate::dataplane::userspace::uapi::peers_of(text)
}
