//! CNI configurations and flannel's file: other programs' texts. What is taken from them can be a pod prefix.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::fuzzing;
use meshd_core::address::is_forbidden_prefix;

fuzz_target!(|text: &str| {
    for found in [fuzzing::cni_configuration(text), fuzzing::flannel(text)] {
        for prefix in &found.prefixes {
            assert_eq!(*prefix, prefix.trunc());
            assert!(!is_forbidden_prefix(prefix), "{prefix}");
        }
        for warning in &found.warnings {
            assert!(warning.len() < 1_024, "a warning of {} bytes", warning.len());
            assert!(!warning.chars().any(char::is_control), "{warning:?}");
        }
    }
});
