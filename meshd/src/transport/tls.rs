//! TLS of the QUIC port: mutual, 1.3 only, hybrid key exchange preferred, no resumption.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor};
use thiserror::Error;

use super::{dates::AtItsTime, limits};

/// Between members; both sides show certificates.
pub(super) const ALPN_MESH: &[u8] = b"meshd/1";
/// A joiner, which has no certificate yet, and a member.
pub(super) const ALPN_ENROL: &[u8] = b"meshd-enrol/1";

/// Certificates or keys that TLS does not take.
#[derive(Debug, Error)]
#[error("cannot set up TLS; {0}; the files below the state directory's pki/ may be damaged")]
pub struct TlsError(String);

fn error(error: impl std::fmt::Display) -> TlsError {
    TlsError(error.to_string())
}

/// What this host shows to others and trusts in them.
pub struct TlsIdentity {
    /// Leaf, then its intermediate, then links to older roots.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8 of the identity key.
    pub key: PrivateKeyDer<'static>,
    /// The mesh's roots that count.
    pub roots: Vec<TrustAnchor<'static>>,
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn store(roots: &[TrustAnchor<'static>]) -> Arc<RootCertStore> {
    Arc::new(RootCertStore { roots: roots.to_vec() })
}

/// The server side: a client certificate is asked for, and must chain if shown. Which ALPN may go
/// without one is decided after the handshake.
pub(super) fn server(identity: &TlsIdentity) -> Result<quinn::ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(store(&identity.roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(error)?;
    let mut tls = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(error)?
        .with_client_cert_verifier(Arc::new(AtItsTime(verifier)))
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(error)?;
    tls.alpn_protocols = vec![ALPN_MESH.to_vec(), ALPN_ENROL.to_vec()];
    // A resumed session would skip the verification of the client's certificate.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    tls.max_early_data_size = 0;
    let crypto = QuicServerConfig::try_from(tls).map_err(error)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(limits::transport_config())
        .max_incoming(limits::HANDSHAKES)
        .incoming_buffer_size(limits::INCOMING_BUFFER / limits::HANDSHAKES as u64)
        .incoming_buffer_size_total(limits::INCOMING_BUFFER)
        .migration(false);
    Ok(config)
}

/// The client side between members.
pub(super) fn client(identity: &TlsIdentity) -> Result<quinn::ClientConfig, TlsError> {
    let tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(error)?
        .dangerous()
        .with_custom_certificate_verifier(at_its_time(&identity.roots)?)
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(error)?;
    finish_client(tls, ALPN_MESH)
}

/// The client side of a joiner, which knows the root's key from its token and nothing else.
pub(super) fn enrol_client(
    roots: &[TrustAnchor<'static>],
) -> Result<quinn::ClientConfig, TlsError> {
    let tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(error)?
        .with_root_certificates(store(roots))
        .with_no_client_auth();
    finish_client(tls, ALPN_ENROL)
}

/// The same for a member that asks for its next certificate.
pub(super) fn renew_client(
    roots: &[TrustAnchor<'static>],
) -> Result<quinn::ClientConfig, TlsError> {
    let tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(error)?
        .dangerous()
        .with_custom_certificate_verifier(at_its_time(roots)?)
        .with_no_client_auth();
    finish_client(tls, ALPN_ENROL)
}

fn at_its_time(roots: &[TrustAnchor<'static>]) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(store(roots), provider())
        .build()
        .map_err(error)?;
    Ok(Arc::new(AtItsTime(verifier)))
}

fn finish_client(mut tls: ClientConfig, alpn: &[u8]) -> Result<quinn::ClientConfig, TlsError> {
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).map_err(error)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(limits::transport_config());
    Ok(config)
}
