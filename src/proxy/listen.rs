//! The listening sockets, on the agent's side: bound once, and taken back from a proxy that outlived the agent.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{net::UnixStream, time::timeout};

use super::control::{
    socket::receive,
    wire::{Decoder, ToAgent},
};

/// A living proxy greets at once.
const GREETING: Duration = Duration::from_secs(5);

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", hint(.source))]
pub struct ListenError {
    /// Of tenants.toml.
    pub address: SocketAddr,
    /// Why not.
    pub source: io::Error,
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "; another program has it: see `ss -ltnp`, or choose another port in [proxy] listen",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root or CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// `<state_dir>/run/proxy.sock`.
pub(crate) fn control_path(state_dir: &Path) -> PathBuf {
    state_dir.join("run").join("proxy.sock")
}

/// Listeners on `addresses`, in their order: those that a living proxy holds are taken back from it, the others are bound.
///
/// # Errors
/// The first address that cannot be had.
pub(crate) async fn listeners(state_dir: &Path, addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ListenError> {
    let mut held = held_by_proxy(state_dir).await;
    let mut listeners = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let mine = held.iter().position(|listener| listener.local_addr().is_ok_and(|local| local == address));
        listeners.push(match mine {
            Some(at) => held.swap_remove(at),
            None => bind(address).map_err(|source| ListenError { address, source })?,
        });
    }
    Ok(listeners)
}

/// The standard library asks for a queue of 128; while a proxy is replaced everybody waits in it. The kernel caps this at
/// net.core.somaxconn, 4,096 by default.
const BACKLOG: i32 = 4_096;

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// What a living proxy listens on; nothing where there is none.
async fn held_by_proxy(state_dir: &Path) -> Vec<TcpListener> {
    let greeting = async {
        let stream = UnixStream::connect(control_path(state_dir)).await.ok()?;
        let mut decoder = Decoder::default();
        match receive(&stream, &mut decoder).await.ok()?? {
            ToAgent::Hello { listeners, .. } => decoder.descriptors(listeners).ok(),
            _ => None,
        }
    };
    let held = timeout(GREETING, greeting).await.ok().flatten().unwrap_or_default();
    held.into_iter().map(TcpListener::from).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn an_address_that_is_taken_is_named_with_a_way_out() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = taken.local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let error = listeners(dir.path(), &[address]).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("ss -ltnp"), "{error}");
    }
}
