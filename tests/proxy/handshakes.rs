//! Clients that connect and say nothing.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use sq_agent::proxy::front::{Front, Trusted};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{client::Http, host::Host};

/// How long a connection on which only `first` is said stays open.
async fn open_for(host: &Host, first: &[u8]) -> Duration {
    let started = Instant::now();
    let mut tcp = TcpStream::connect(host.address).await.unwrap();
    tcp.write_all(first).await.unwrap();
    let _ = tcp.read(&mut [0; 1]).await;
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_silent_before_or_in_its_handshake_is_cut_after_10_seconds() {
    let host = Host::start(&[]).await;
    let trusted = Trusted::new(vec!["127.0.0.1/32".parse().unwrap()]);
    let behind = Host::start_behind(Front { trusted, proxy_protocol: true, ..Front::default() }, false, &[]).await;
    let cut = tokio::join!(
        open_for(&host, b""),
        open_for(&host, b"\x16\x03\x01\x02\0\x01\0\x01\xfc"),
        open_for(&behind, b"\r\n\r\n"),
        open_for(&behind, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0\x16\x03\x01")
    );
    for took in [cut.0, cut.1, cut.2, cut.3] {
        assert!((Duration::from_secs(9)..Duration::from_secs(13)).contains(&took), "{cut:?}");
    }
    host.stop().await;
    behind.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_silent_connections_keeps_nobody_out() {
    let mut host = Host::start(&[]).await;
    // With 600 descriptors there are places for 235 connections, and for 58 handshakes at once.
    let small = host.path().join("small");
    fs::write(&small, format!("#!/bin/sh\nulimit -n 600\nexec {:?} \"$@\"\n", env!("CARGO_BIN_EXE_sq-agent"))).unwrap();
    fs::set_permissions(&small, fs::Permissions::from_mode(0o755)).unwrap();
    host.agent_of(&small, true).await;
    let mut flood = Vec::new();
    for _ in 0..400 {
        flood.push(TcpStream::connect(host.address).await.unwrap());
    }
    let started = Instant::now();
    for _ in 0..5 {
        host.client().connect(Http::One).await.unwrap();
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "kept out for {took:?}");
    drop(flood);
    host.stop().await;
}
