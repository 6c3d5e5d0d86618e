//! Opened to `tests/fuzz`, see [`crate::fuzzing`].

use meshd_core::trust::pem;
use meshd_proto::NodeKey;

use super::{ledger, store};

pub(crate) fn store_entry(key: &[u8], entry: &[u8]) -> Result<(NodeKey, Vec<u8>), String> {
    store::read_entry(key, entry)
}

pub(crate) fn make_store_entry(key: &NodeKey, record: &[u8]) -> Vec<u8> {
    store::make_entry(key, record)
}

pub(crate) fn ledger_file(bytes: &[u8]) -> Result<(Vec<Vec<u8>>, usize), usize> {
    ledger::split(bytes)
}

pub(crate) fn make_ledger_file(entries: &[Vec<u8>]) -> Vec<u8> {
    entries.iter().flat_map(|entry| ledger::frame(entry)).collect()
}

pub(crate) fn recode_pem(text: &[u8]) -> Result<String, String> {
    pem::decode(text).map(|der| pem::encode(&der))
}
