//! TLS 1.2 and 1.3 from PEM texts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ProducesTickets, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::front::Challenge;

/// By this protocol alone an ACME server asks for the certificate of a challenge (RFC 8737).
pub(crate) const ACME_TLS: &[u8] = b"acme-tls/1";

/// A certificate or key that cannot be served with. No text of the key is in it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("the certificate file holds no certificate in PEM form")]
    NoCertificate,
    #[error("the key file holds no private key in PEM form")]
    NoKey,
    #[error("certificate and key do not go together: {0}")]
    Mismatch(rustls::Error),
    #[error("no random numbers for session tickets: {0}")]
    Tickets(rustls::Error),
}

/// What the proxy serves with. Checks that the key belongs to the certificate.
pub(crate) fn server_config(cert_pem: &[u8], key_pem: &[u8], challenges: &[Challenge]) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let (chain, key) = pair(cert_pem, key_pem)?;
    let own = CertifiedKey::from_der(chain, key, &provider).map(Arc::new).map_err(TlsError::Mismatch)?;
    let mut proofs = HashMap::new();
    for challenge in challenges {
        if let Challenge::Certificate { name, cert_pem, key_pem } = challenge {
            // Its critical extension is none that a certificate checker knows, so this one is taken as it is.
            let (chain, key) = pair(cert_pem, key_pem.expose())?;
            let key = provider.key_provider.load_private_key(key).map_err(TlsError::Mismatch)?;
            proofs.insert(name.clone(), Arc::new(CertifiedKey::new(chain, key)));
        }
    }
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Mismatch)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Certificates { own, proofs }));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if !challenges.is_empty() {
        config.alpn_protocols.push(ACME_TLS.to_vec());
    }
    // All that is offered is good, and the best comes first: testssl.sh wants us to insist on that.
    config.ignore_client_order = true;
    config.ticketer = ticketer()?;
    Ok(Arc::new(config))
}

/// The keys of session tickets are the process's, and renewed by time: a client goes on with its session across a change of settings.
fn ticketer() -> Result<Arc<dyn ProducesTickets>, TlsError> {
    static TICKETER: Mutex<Option<Arc<dyn ProducesTickets>>> = Mutex::new(None);
    // Nothing under the lock can panic.
    let mut ticketer = TICKETER.lock().unwrap_or_else(PoisonError::into_inner);
    match &*ticketer {
        Some(ticketer) => Ok(Arc::clone(ticketer)),
        None => {
            let made = aws_lc_rs::Ticketer::new().map_err(TlsError::Tickets)?;
            Ok(Arc::clone(ticketer.insert(made)))
        }
    }
}

/// Which certificate a client gets.
#[derive(Debug)]
struct Certificates {
    own: Arc<CertifiedKey>,
    /// By name, for an ACME server.
    proofs: HashMap<String, Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let proves = hello.alpn().is_some_and(|protocols| protocols.eq([ACME_TLS]));
        if !proves {
            return Some(Arc::clone(&self.own));
        }
        self.proofs.get(&hello.server_name()?.to_ascii_lowercase()).cloned()
    }
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn pair(cert_pem: &[u8], key_pem: &[u8]) -> Result<Pair, TlsError> {
    let chain = CertificateDer::pem_slice_iter(cert_pem).collect::<Result<Vec<_>, _>>().map_err(|_| TlsError::NoCertificate)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| TlsError::NoKey)?;
    Ok((chain, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (pair.cert.pem(), pair.signing_key.serialize_pem())
    }

    #[test]
    fn a_key_that_does_not_match_its_certificate_is_refused_without_being_shown() {
        let ((cert, key), (_, other)) = (pair(), pair());
        assert!(server_config(cert.as_bytes(), key.as_bytes(), &[]).is_ok());
        let error = server_config(cert.as_bytes(), other.as_bytes(), &[]).unwrap_err();
        assert!(matches!(error, TlsError::Mismatch(_)));
        let inner = other.lines().nth(1).unwrap();
        assert!(!format!("{error:?} {error}").contains(inner));
    }

    #[test]
    fn files_that_hold_something_else_are_named() {
        let (cert, key) = pair();
        assert!(matches!(server_config(b"", key.as_bytes(), &[]), Err(TlsError::NoCertificate)));
        assert!(matches!(server_config(cert.as_bytes(), b"hello", &[]), Err(TlsError::NoKey)));
        assert!(matches!(server_config(cert.as_bytes(), cert.as_bytes(), &[]), Err(TlsError::NoKey)));
    }

    /// The version that a client with `versions` agrees on with us, or why not.
    fn handshake(versions: &[&'static rustls::SupportedProtocolVersion]) -> Result<Option<rustls::ProtocolVersion>, rustls::Error> {
        let (cert, key) = pair();
        let server = server_config(cert.as_bytes(), key.as_bytes(), &[]).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client = rustls::ClientConnection::new(Arc::new(client), "localhost".try_into().unwrap())?;
        let mut server = rustls::ServerConnection::new(server)?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(server.protocol_version())
    }

    #[test]
    fn tls_1_2_and_1_3_are_spoken() {
        use rustls::{
            ProtocolVersion::{TLSv1_2, TLSv1_3},
            version::{TLS12, TLS13},
        };
        assert_eq!(handshake(&[&TLS12]), Ok(Some(TLSv1_2)));
        assert_eq!(handshake(&[&TLS13]), Ok(Some(TLSv1_3)));
        assert_eq!(handshake(&[&TLS12, &TLS13]), Ok(Some(TLSv1_3)));
    }
}
