//! Mutual TLS between nodes: what protects `kdbr`, and whom a certificate is for.
//!
//! Both ends show a certificate of one of the cluster's CAs. Three things must fit, or the connection ends: the chain, at both
//! ends; the address that was dialled, in the acceptor's certificate; and at both ends the node's name, which the certificate
//! holds as a URI: `kdbr://CLUSTER_ID/NODE_ID`, or `kdbr:///NODE_ID` for the node of that name in whatever cluster trusts the
//! CA. A cluster's id is not known before its first node has run.
//!
//! TLS 1.3 only. Nothing is resumed: each connection shows certificates that are valid now.

use std::path::PathBuf;
use std::sync::Arc;

use kahawai_kdbr::Secrets;
use kahawai_types::{ClusterId, NodeId, ReplicaId};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, Error, RootCertStore, ServerConfig, version};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::warn;

use crate::tls::{TlsError, certificates, private_key};

const SCHEME: &str = "kdbr://";

/// What keeps strangers out of replication.
#[derive(Clone, Debug, Default)]
pub struct Protection {
    /// What all nodes know.
    pub secrets: Secrets,
    /// Certificates; without them replication is in plaintext.
    pub tls: Option<PeerTls>,
}

impl Protection {
    /// Nobody is kept out.
    pub(crate) fn is_none(&self) -> bool {
        self.secrets == Secrets::NONE && self.tls.is_none()
    }
}

/// Where a node's certificate is: PEM files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerTlsFiles {
    /// Its certificate chain.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// The CAs whose certificates the other nodes may show; two, while one takes the other's place.
    pub authorities: PathBuf,
}

/// A node's certificate, and the CAs that it trusts.
#[derive(Clone)]
pub struct PeerTls {
    pub(super) acceptor: TlsAcceptor,
    pub(super) connector: TlsConnector,
}

impl std::fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerTls(..)")
    }
}

impl PeerTls {
    /// Reads the files of the node `node`.
    ///
    /// # Errors
    /// A file that cannot be used, a key of another certificate, or a certificate that is not for this node.
    pub fn read(files: &PeerTlsFiles, node: &NodeId) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(&files.certificate)?;
        let wrong_chain = |error: Error| TlsError::new(&files.certificate, error);
        let wrong_authority = |error: &dyn std::error::Error| TlsError::new(&files.authorities, error);
        let mut roots = RootCertStore::empty();
        for authority in certificates(&files.authorities)? {
            roots.add(authority).map_err(|error| wrong_authority(&error))?;
        }
        let roots = Arc::new(roots);
        let names = node_names(&chain);
        if !names.iter().any(|(_, name)| name == node) {
            let reason = format!("the certificate is not for {node}: its names need the URI kdbr:///{node}");
            return Err(TlsError::new(&files.certificate, reason));
        }
        warn_of_refusal(&chain, &roots, &provider);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| wrong_authority(&error))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(wrong_chain)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), private_key(&files.key)?)
            .map_err(wrong_chain)?;
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(wrong_chain)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, private_key(&files.key)?)
            .map_err(wrong_chain)?;
        client.resumption = Resumption::disabled();
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            connector: TlsConnector::from(Arc::new(client)),
        })
    }
}

/// The others may know other CAs than we do, and a node that leads alone needs nobody: so this is said, and no reason to end.
fn warn_of_refusal(chain: &[CertificateDer<'static>], roots: &RootCertStore, provider: &CryptoProvider) {
    let Some((own, intermediates)) = chain.split_first() else { return };
    let algorithms = provider.signature_verification_algorithms.all;
    for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
        let verified = webpki::EndEntityCert::try_from(own).and_then(|own| {
            own.verify_for_usage(algorithms, &roots.roots, intermediates, UnixTime::now(), usage, None, None)
                .map(|_| ())
        });
        if let Err(problem) = verified {
            warn!(%problem, "other nodes will refuse this node's certificate for kdbr");
            return;
        }
    }
}

/// The nodes that a certificate is for, each with its cluster if it names one.
fn node_names(chain: &[CertificateDer<'_>]) -> Vec<(Option<String>, NodeId)> {
    let Some(own) = chain.first() else { return Vec::new() };
    let Ok(own) = webpki::EndEntityCert::try_from(own) else { return Vec::new() };
    let names = own.valid_uri_names().filter_map(|uri| {
        let (cluster, node) = uri.strip_prefix(SCHEME)?.split_once('/')?;
        Some(((!cluster.is_empty()).then(|| cluster.to_owned()), NodeId(node.to_owned())))
    });
    names.collect()
}

/// Compares who a peer says it is with the certificate that it showed.
pub(super) fn check_peer(
    chain: &[CertificateDer<'_>],
    cluster: ClusterId,
    replica: &ReplicaId,
) -> Result<(), String> {
    let names = node_names(chain);
    let id = cluster.to_string();
    let fits = |(named, node): &(Option<String>, NodeId)| {
        *node == replica.node && named.as_ref().is_none_or(|named| named.eq_ignore_ascii_case(&id))
    };
    if names.iter().any(fits) {
        return Ok(());
    }
    let mut listed: Vec<String> = names
        .iter()
        .map(|(cluster, node)| format!("{SCHEME}{}/{node}", cluster.as_deref().unwrap_or_default()))
        .collect();
    if listed.is_empty() {
        listed.push("no node".into());
    }
    let says = format!("it says that it is {SCHEME}{id}/{}", replica.node);
    Err(format!("the peer's certificate is for {}, and {says}", listed.join(" and ")))
}

/// What the certificate at `host:port` has to name.
pub(super) fn server_name(address: &str) -> Option<ServerName<'static>> {
    let (host, _) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned()).ok()
}

/// A failure of TLS, for people.
pub(super) fn explain(error: &Error) -> String {
    match error {
        Error::InvalidMessage(_) => {
            "the peer does not speak TLS, and this node replicates over TLS only".into()
        }
        Error::AlertReceived(alert) => format!("the peer refuses our certificate: {alert:?}"),
        Error::NoCertificatesPresented => "the peer shows no certificate".into(),
        Error::InvalidCertificate(problem) => format!("the peer's certificate: {problem}"),
        other => format!("TLS: {other}"),
    }
}
