//! `cert renew`, `cert issue` and `cert show`.

mod files;
mod issue;
mod show;

use std::{io::Write as _, path::Path};

use meshd_proto::control::RenewCertificateRequest;

use super::{authority, devices::waiting, list};
use crate::{
    cli::Cert,
    connection::{CHANGE, connect},
    failure::Failure,
    output::Output,
    views::CertificateView,
};

pub(crate) async fn run(socket: &Path, output: Output, verb: Cert) -> Result<(), Failure> {
    match verb {
        Cert::Renew => renew(socket, output).await,
        Cert::Ca(verb) => authority::run(socket, output, verb).await,
        Cert::Issue(arguments) => issue::run(socket, output, arguments).await,
        Cert::Show { file: Some(file) } => show::file(output, &file),
        Cert::Show { file: None } => show::own(socket, output).await,
    }
}

async fn renew(socket: &Path, output: Output) -> Result<(), Failure> {
    let mut client = connect(socket, Some(CHANGE)).await?;
    let reply = client.renew_certificate(RenewCertificateRequest {}).await?.into_inner();
    let certificate = CertificateView::from(reply);
    output.print(&certificate, |_, to| {
        let (from, until) = (&certificate.not_before, &certificate.not_after);
        if certificate.renewed {
            writeln!(to, "this host's certificate is renewed; it is valid until {until}")?;
        } else {
            writeln!(to, "nothing new: the signer gave the same certificate again, of {from}, which is so new that it stays")?;
            writeln!(to, "  it is valid until {until}")?;
        }
        writeln!(to, "  grants  {}", list(&certificate.prefixes))?;
        let missing = &certificate.not_granted;
        if !missing.is_empty() {
            writeln!(to, "  {}", waiting(missing, certificate.asked_in_seconds))?;
        }
        Ok(())
    })
}
