//! The first seconds of a connection: whose it is, as a load balancer may say, and its TLS handshake. Both within one time, on one of a bounded
//! number of places.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    front::Front,
    handshakes::Handshakes,
    live::Live,
    proxy_header::{self, BadHeader},
    tls::ACME_TLS,
};
use crate::route::Handshake;

/// A TLS handshake takes three packets; a phone on a bad line, some seconds.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);

/// Who is there, and what they say inside TLS.
pub(crate) struct Arrived {
    pub(crate) stream: TlsStream<TcpStream>,
    /// Whoever the connection comes from: the client, or the balancer nearest to it whose word is needed for more.
    pub(crate) peer: IpAddr,
}

/// Whose connection it is. What comes before TLS is read.
pub(crate) async fn peer(stream: &mut TcpStream, address: SocketAddr, front: &Front) -> Result<IpAddr, BadHeader> {
    let balancer = address.ip().to_canonical();
    if front.proxy_protocol && front.trusted.has(balancer) {
        Ok(proxy_header::read(stream).await?.unwrap_or(balancer))
    } else {
        Ok(balancer)
    }
}

/// Sees a connection through to where it can ask something; `None` where it does not come to that.
pub(crate) async fn arrive(mut stream: TcpStream, address: SocketAddr, live: &Live, handshakes: &Arc<Handshakes>) -> Option<Arrived> {
    let mut place = handshakes.begin();
    let arriving = async {
        let peer = peer(&mut stream, address, &live.front).await.map_err(|error| (Handshake::Failed, error.to_string()))?;
        let acceptor = TlsAcceptor::from(Arc::clone(&live.tls));
        let mut stream = acceptor.accept(stream).await.map_err(|error| (Handshake::Failed, error.to_string()))?;
        // Whoever looks for a challenge has seen it by now, and may ask for nothing (RFC 8737, section 3).
        if stream.get_ref().1.alpn_protocol() == Some(ACME_TLS) {
            let _ = stream.shutdown().await;
            return Err((Handshake::Challenge, "it looked for an ACME challenge".to_owned()));
        }
        Ok(Arrived { stream, peer })
    };
    let arrived = tokio::select! {
        arrived = timeout(HANDSHAKE, arriving) => arrived.unwrap_or_else(|_| Err((Handshake::Slow, "too slow".to_owned()))),
        () = place.lost() => Err((Handshake::Displaced, "others need its place".to_owned())),
    };
    live.meters.note_handshake(arrived.as_ref().map_or_else(|(came_to, _)| *came_to, |_| Handshake::Done));
    arrived.inspect_err(|(_, why)| tracing::debug!(peer = %address, why, "no TLS handshake")).ok()
}
