//! Of the proxy's settings, what concerns the way of a client up to its request: whose word on its address is believed, which certificates are
//! served beside the usual one, and what browsers are told.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{desired::Proxy, secret::Secret};

/// See the file's description. Everything may be left out, as an earlier agent does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Front {
    /// Load balancers: what they say of who the client is is believed.
    pub trusted: Trusted,
    /// Connections from them begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Seconds of Strict-Transport-Security; `None`: it is not said.
    pub hsts: Option<u64>,
    /// Host, and port if any, of `public_url`.
    pub public: Option<String>,
    /// Where the certificate comes from.
    pub source: Source,
    /// What an ACME server may come and look for.
    pub challenges: Vec<Challenge>,
    /// For the agent's side alone, which binds: where to listen. `None`: where it does.
    #[serde(skip)]
    pub addresses: Option<Addresses>,
}

/// Where to listen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// HTTPS.
    pub https: Vec<SocketAddr>,
    /// Plain HTTP.
    pub plain: Vec<SocketAddr>,
}

impl Addresses {
    /// What tenants.toml says.
    pub fn of(proxy: &Proxy) -> Self {
        Self { https: proxy.listen.clone(), plain: proxy.http_listen.clone() }
    }

    /// In the order in which they are handed to the proxy.
    pub(crate) fn all(&self) -> Vec<SocketAddr> {
        [self.https.as_slice(), &self.plain].concat()
    }
}

/// Where a certificate comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Made by the agent, for loopback.
    #[default]
    SelfSigned,
    /// `[proxy.tls]`.
    Files,
    /// `[proxy.acme]`.
    Acme,
}

impl Source {
    /// As the status says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::SelfSigned => "self-signed",
            Self::Files => "files",
            Self::Acme => "acme",
        }
    }
}

/// A proof that a name is ours, for the ACME server that asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Challenge {
    /// TLS-ALPN-01 (RFC 8737): whoever offers `acme-tls/1` for this name gets this certificate.
    Certificate {
        /// The name, lower case.
        name: String,
        /// PEM.
        cert_pem: Vec<u8>,
        /// PEM.
        key_pem: Secret,
    },
    /// HTTP-01 (RFC 8555, section 8.3): the answer at `/.well-known/acme-challenge/TOKEN`.
    Text {
        /// As the server chose it.
        token: String,
        /// The token and the account's thumbprint.
        answer: String,
    },
}

/// Networks whose word is believed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trusted(Vec<IpNet>);

impl Trusted {
    /// Those of tenants.toml.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether `address` lies in one of them. On a socket for both families one of IPv4 comes as `::ffff:a.b.c.d`, which is the same host.
    pub fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_trusted_by_network_whichever_way_it_is_written() {
        let trusted = Trusted::new(vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::7/128".parse().unwrap()]);
        for (address, expected) in [
            ("10.255.0.1", true),
            ("::ffff:10.1.2.3", true),
            ("11.0.0.1", false),
            ("2001:db8::7", true),
            ("2001:db8::8", false),
            ("::10.1.2.3", false),
        ] {
            assert_eq!(trusted.has(address.parse().unwrap()), expected, "{address}");
        }
        assert!(!Trusted::default().has(IpAddr::from([127, 0, 0, 1])), "nobody is trusted unless named");
    }
}
