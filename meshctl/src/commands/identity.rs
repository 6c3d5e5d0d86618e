//! Identity documents with which this host joins: what they must be for, and where they are read from.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use meshd_proto::control::IdentityAudienceRequest;

use crate::{
    connection::{CHANGE, connect},
    failure::Failure,
    output::{Output, remark},
    views::AudienceView,
};

/// The daemon says that one is too large; this only keeps a wrong file from being read to its end.
const LONGEST: u64 = 32 * 1024;

/// Prints the audience alone on stdout, so that it can be handed to whatever gets the document.
pub(crate) async fn audience(socket: &Path, output: Output, token: String) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let reply = client.identity_audience(IdentityAudienceRequest { token }).await?.into_inner();
    let view = AudienceView::from(reply);
    if !output.is_for_programs() {
        remark(&format!("the audience of the document of {} for this host:", view.issuer));
    }
    output.print(&view, |_, to| {
        to.extend(view.audience.as_bytes());
        to.push(b'\n');
        Ok(())
    })
}

/// The document in `file`, or on stdin: it stands in no command line.
pub(crate) fn read(file: &Path, token_from_stdin: bool) -> Result<String, Failure> {
    let what = "cannot read the identity document";
    let fix = "give a file with a JWT and nothing else";
    let mut text = String::new();
    let read = if file == Path::new("-") {
        if token_from_stdin {
            let why = "stdin holds the token already";
            return Err(Failure::local(what, why, "put one of the two into a file"));
        }
        io::stdin().lock().take(LONGEST).read_to_string(&mut text)
    } else {
        File::open(file).and_then(|file| file.take(LONGEST).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::local(what, format!("{}: {error}", file.display()), fix))?;
    if text.trim().is_empty() {
        return Err(Failure::local(what, format!("{} is empty", file.display()), fix));
    }
    Ok(text.trim().to_owned())
}
