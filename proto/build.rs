//! Generates the Rust types of the messages, with no need for `protoc`.

use std::{env, error::Error};

fn main() -> Result<(), Box<dyn Error>> {
    let wire = [
        "meshd/v1/record.proto",
        "meshd/v1/gossip.proto",
        "meshd/v1/enrol.proto",
        "meshd/v1/certificate.proto",
        "meshd/v1/ledger.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(wire, ["proto"])?;
    prost_build::Config::new().bytes(["."]).compile_fds(files)?;

    #[cfg(feature = "control")]
    {
        let out = std::path::PathBuf::from(env::var("OUT_DIR")?).join("control");
        std::fs::create_dir_all(&out)?;
        let files = protox::compile(["meshd/v1/control.proto"], ["proto"])?;
        tonic_prost_build::configure().out_dir(out).compile_fds(files)?;
    }
    let _ = env::var("OUT_DIR");
    Ok(())
}
