//! TLS to Consul.
//!
//! Files are read when the store is opened, so that a mistake is told at once, and again for every new connection:
//! certificates that were replaced are used without a restart. What cannot be read then is told, and the last good ones
//! stay.

use std::io;
#[cfg(feature = "consul-tls")]
use std::sync::Arc;

use tokio::net::TcpStream;

use super::ConsulTls;
use super::connect::Io;
use crate::kv::{StoreError, StoreKind};

/// Whether and how a connection is made secure.
#[derive(Clone)]
pub(super) struct Tls {
    #[cfg(feature = "consul-tls")]
    with: Option<Arc<with_rustls::Settings>>,
}

impl Tls {
    /// Connections as they are.
    pub(super) fn none() -> Self {
        Self {
            #[cfg(feature = "consul-tls")]
            with: None,
        }
    }

    /// TLS with the Consul at this host.
    #[cfg(feature = "consul-tls")]
    pub(super) fn new(config: ConsulTls, host: &str) -> Result<Self, StoreError> {
        Ok(Self { with: Some(Arc::new(with_rustls::Settings::new(config, host).map_err(unavailable)?)) })
    }

    /// TLS with the Consul at this host: not in this build.
    #[cfg(not(feature = "consul-tls"))]
    pub(super) fn new(_: ConsulTls, _: &str) -> Result<Self, StoreError> {
        Err(unavailable("TLS needs the crate's feature `consul-tls`".to_owned()))
    }

    /// The connection as HTTP is spoken over it.
    #[cfg_attr(not(feature = "consul-tls"), allow(clippy::unused_async))]
    pub(super) async fn secure(&self, stream: TcpStream) -> io::Result<Box<dyn Io>> {
        #[cfg(feature = "consul-tls")]
        if let Some(settings) = &self.with {
            return Ok(Box::new(settings.handshake(stream).await?));
        }
        Ok(Box::new(stream))
    }

    /// What an error of TLS means, and what to do about it. `None` when it is none.
    pub(super) fn explain(&self, error: &io::Error) -> Option<String> {
        #[cfg(feature = "consul-tls")]
        if let Some(settings) = &self.with {
            return settings.explain(error);
        }
        let _ = error;
        None
    }
}

fn unavailable(reason: String) -> StoreError {
    StoreError::Unavailable { store: StoreKind::Consul, reason }
}

#[cfg(feature = "consul-tls")]
mod with_rustls {
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex, PoisonError};

    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
    use tokio_rustls::rustls::{
        AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    };

    use super::ConsulTls;

    /// The settings, and what they were last turned into.
    pub(super) struct Settings {
        config: ConsulTls,
        /// What must stand in Consul's certificate.
        name: ServerName<'static>,
        loaded: Mutex<(Files, Arc<ClientConfig>)>,
    }

    /// What is in the files: unchanged, they need not be parsed again.
    #[derive(PartialEq, Eq)]
    struct Files {
        ca: Option<Vec<u8>>,
        own: Option<(Vec<u8>, Vec<u8>)>,
    }

    impl Settings {
        pub(super) fn new(config: ConsulTls, host: &str) -> Result<Self, String> {
            let name = config.server_name.as_deref().unwrap_or(host.trim_matches(['[', ']'])).to_owned();
            let name = ServerName::try_from(name.clone())
                .map_err(|_| format!("{name:?} is no name that a certificate could have; set the server name"))?;
            if config.cert_path.is_some() != config.key_path.is_some() {
                return Err("a certificate needs its key, and a key its certificate".to_owned());
            }
            if config.insecure_skip_verify {
                tracing::warn!(
                    "Consul's certificate is not checked (tls_insecure_skip_verify): whoever can redirect the connection \
                     can read the ACL token and change the ring"
                );
            }
            let files = Files::read(&config)?;
            let parsed = files.parsed(&config)?;
            Ok(Self { config, name, loaded: Mutex::new((files, parsed)) })
        }

        pub(super) async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
            TlsConnector::from(self.current().await).connect(self.name.clone(), stream).await
        }

        /// The settings by what the files hold now; those before where they are unreadable.
        async fn current(&self) -> Arc<ClientConfig> {
            let config = self.config.clone();
            let read = tokio::task::spawn_blocking(move || Files::read(&config)).await;
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = match read {
                Ok(Ok(files)) if files == loaded.0 => return loaded.1.clone(),
                Ok(Ok(files)) => files.parsed(&self.config).map(|parsed| (files, parsed)),
                Ok(Err(reason)) => Err(reason),
                Err(_) => return loaded.1.clone(),
            };
            match fresh {
                Ok(fresh) => {
                    tracing::info!("the certificates for Consul were replaced");
                    *loaded = fresh;
                }
                Err(reason) => tracing::warn!(
                    reason,
                    "the certificates for Consul changed and cannot be used; the last good ones stay"
                ),
            }
            loaded.1.clone()
        }

        pub(super) fn explain(&self, error: &io::Error) -> Option<String> {
            let error = error.get_ref()?.downcast_ref::<Error>()?;
            let name = self.name.to_str();
            let authorities = match &self.config.ca_path {
                Some(path) => format!("the authorities in {}", path.display()),
                None => "the authorities of the system; name another by kv.consul.tls_ca_path".to_owned(),
            };
            let about_own = || match &self.config.cert_path {
                None => {
                    "it wants a certificate from us: set kv.consul.tls_cert_path and kv.consul.tls_key_path".to_owned()
                }
                Some(path) => format!(
                    "it does not accept our certificate in {}: is it signed by Consul's ca_file, still valid, and for \
                     clients?",
                    path.display()
                ),
            };
            Some(match error {
                Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                    format!("its certificate is not signed by {authorities}")
                }
                // Signed by somebody who has the same name and another key: an authority that was made anew.
                Error::InvalidCertificate(CertificateError::BadSignature) => {
                    format!("its certificate is not signed by {authorities}, but by another of the same name")
                }
                Error::InvalidCertificate(
                    error @ (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }),
                ) => {
                    let names = match error {
                        CertificateError::NotValidForNameContext { presented, .. } => {
                            format!(", but for {}", presented.join(", "))
                        }
                        _ => String::new(),
                    };
                    format!("its certificate is not for {name}{names}: set kv.consul.tls_server_name to a name in it")
                }
                Error::InvalidCertificate(
                    CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. },
                ) => format!("its certificate is not valid now: renew it, or set this machine's clock ({error})"),
                Error::InvalidCertificate(_) => format!("its certificate cannot be accepted: {error}"),
                Error::AlertReceived(
                    AlertDescription::CertificateRequired
                    | AlertDescription::BadCertificate
                    | AlertDescription::UnknownCA
                    | AlertDescription::UnsupportedCertificate
                    | AlertDescription::CertificateExpired
                    | AlertDescription::CertificateUnknown
                    | AlertDescription::AccessDenied
                    | AlertDescription::HandshakeFailure,
                ) => about_own(),
                Error::InvalidMessage(_) => {
                    "it speaks no TLS at this port: take the port of Consul's `ports.https`, or do without TLS"
                        .to_owned()
                }
                _ => format!("TLS: {error}"),
            })
        }
    }

    impl Files {
        fn read(config: &ConsulTls) -> Result<Self, String> {
            let read = |path: &PathBuf| {
                std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
            };
            Ok(Self {
                ca: config.ca_path.as_ref().map(read).transpose()?,
                own: match (&config.cert_path, &config.key_path) {
                    (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
                    _ => None,
                },
            })
        }

        fn parsed(&self, config: &ConsulTls) -> Result<Arc<ClientConfig>, String> {
            let provider = Arc::new(ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?;
            let builder = if config.insecure_skip_verify {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(NothingChecked(provider)))
            } else {
                builder.with_root_certificates(self.roots(config.ca_path.as_deref())?)
            };
            let Some((cert, key)) = &self.own else { return Ok(Arc::new(builder.with_no_client_auth())) };
            let shown = |path: &Option<PathBuf>| path.clone().unwrap_or_default().display().to_string();
            let chain = certificates(cert).map_err(|reason| format!("{}: {reason}", shown(&config.cert_path)))?;
            // What is in a private key must never be in a message: its reasons are not passed on.
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|_| format!("{}: there is no private key in PEM", shown(&config.key_path)))?;
            let built = builder.with_client_auth_cert(chain, key);
            built.map(Arc::new).map_err(|error| {
                format!("{} and {} cannot be used: {error}", shown(&config.cert_path), shown(&config.key_path))
            })
        }

        fn roots(&self, path: Option<&Path>) -> Result<RootCertStore, String> {
            let mut roots = RootCertStore::empty();
            let Some((ca, path)) = self.ca.as_ref().zip(path) else {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                return match roots.is_empty() {
                    true => Err("this system has no authorities; name one by kv.consul.tls_ca_path".to_owned()),
                    false => Ok(roots),
                };
            };
            for certificate in certificates(ca).map_err(|reason| format!("{}: {reason}", path.display()))? {
                roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
            }
            Ok(roots)
        }
    }

    fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        match found {
            Ok(found) if found.is_empty() => Err("there is no certificate in PEM".to_owned()),
            Ok(found) => Ok(found),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Accepts every certificate, for those who asked for it.
    #[derive(Debug)]
    struct NothingChecked(Arc<CryptoProvider>);

    impl ServerCertVerifier for NothingChecked {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}
