//! Configuration: several files and the environment. Each line that begins with `#file` ends one; `#env NAME=VALUE` sets a
//! variable. Errors are short and obey no terminal; what is accepted is the same when it is read again.
#![no_main]

use std::ffi::OsString;

use libfuzzer_sys::fuzz_target;
use meshd::fuzzing;

fuzz_target!(|text: &str| {
    let mut files = vec![String::new()];
    let mut environment: Vec<(OsString, OsString)> = Vec::new();
    for line in text.lines() {
        if line.starts_with("#file") {
            files.push(String::new());
        } else if let Some((name, value)) =
            line.strip_prefix("#env ").and_then(|variable| variable.split_once('='))
        {
            environment.push((name.into(), value.into()));
        } else if let Some(file) = files.last_mut() {
            file.push_str(line);
            file.push('\n');
        }
    }
    let files: Vec<&str> = files.iter().map(String::as_str).take(8).collect();
    match fuzzing::config(&files, environment.clone()) {
        Ok(config) => {
            let again = fuzzing::config(&files, environment).expect("the same texts");
            assert!(config.changes(&again).is_empty(), "the same texts differ");
            let gossip = config.gossip.listen.port();
            assert!(gossip != config.wireguard.port);
        }
        Err(errors) => {
            let said = errors.to_string();
            assert!(!errors.0.is_empty() && !said.is_empty());
            let shown = |c: char| c == '\n' || !c.is_control();
            assert!(said.chars().all(shown), "{said:?}");
            assert!(said.len() < 1 << 20);
        }
    }
});
