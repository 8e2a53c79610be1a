//! The listening sockets, on the agent's side: bound once, and taken back from a proxy that outlived the agent.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

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

/// Listeners on `addresses`, in their order: those that are `held` already, by a living proxy, are taken; the others are bound.
///
/// # Errors
/// The first address that cannot be had.
pub(crate) fn listeners(mut held: Vec<TcpListener>, addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ListenError> {
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

/// Listeners on `wanted`, in their order. Those of `held` that were asked for by the same address (of `addresses`, in the same order) stay, so that
/// nothing that waits in them is lost; the others are bound.
///
/// # Errors
/// The first address that cannot be had.
pub(crate) fn change(held: &[TcpListener], addresses: &[SocketAddr], wanted: &[SocketAddr]) -> Result<Vec<TcpListener>, ListenError> {
    let mut free: Vec<_> = addresses.iter().zip(held).collect();
    let listener = |&address: &SocketAddr| {
        let bound = match free.iter().position(|(asked, _)| **asked == address) {
            Some(at) => free.swap_remove(at).1.try_clone(),
            None => bind(address),
        };
        bound.map_err(|source| ListenError { address, source })
    };
    wanted.iter().map(listener).collect()
}

/// The standard library asks for a queue of 128; while a proxy is replaced everybody waits in it. The kernel caps this at
/// net.core.somaxconn, 4,096 by default.
const BACKLOG: i32 = 4_096;

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_change_keeps_what_stays_and_closes_what_goes() {
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let held = listeners(Vec::new(), &[any, any]).unwrap();
        let (first, second) = (held[0].local_addr().unwrap(), held[1].local_addr().unwrap());
        // Two were asked for by the same words, so either of them may stay.
        let changed = change(&held, &[any, second], &[second, any]).unwrap();
        let now: Vec<_> = changed.iter().map(|listener| listener.local_addr().unwrap()).collect();
        assert_eq!(now, [second, first]);
        let taken = TcpListener::bind(any).unwrap();
        let error = change(&held, &[any, second], &[any, taken.local_addr().unwrap()]).unwrap_err();
        assert_eq!(error.address, taken.local_addr().unwrap());
        drop((held, change(&changed, &[second, any], &[second]).unwrap()));
        drop(changed);
        assert!(TcpListener::bind(first).is_ok(), "what goes is closed");
    }

    #[test]
    fn an_address_that_is_taken_is_named_with_a_way_out() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = taken.local_addr().unwrap();
        let error = listeners(Vec::new(), &[address]).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("ss -ltnp"), "{error}");
        assert_eq!(listeners(vec![taken], &[address]).unwrap()[0].local_addr().unwrap(), address, "what is held already is taken");
    }
}
