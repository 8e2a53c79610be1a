//! A server that keeps its connections, in the place of sq: it gives everybody with its key the same small text. To sq-agent it looks like an sq
//! (`sq host PORT --key K --data-dir D`, `sq version`), and like sq it has a thread a connection. std only, so that `rustc` alone builds it.

use std::{
    env,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

const TEXT: &str = "A small scroll of everybody.\nA small scroll of everybody.\nA small scroll of everybody.\nA small scroll of everybody.\n";

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let [_, _, port, _, key, ..] = &arguments[..] else {
        return println!("0.0.0");
    };
    let listener = TcpListener::bind(("127.0.0.1", port.parse().expect("a port"))).expect("the port is free");
    let authorization: &str = format!("\r\nauthorization: bearer {}\r\n", key.to_lowercase()).leak();
    for stream in listener.incoming().flatten() {
        thread::spawn(move || serve(stream, authorization));
    }
}

fn serve(mut stream: TcpStream, authorization: &str) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let (mut buffer, mut length) = ([0; 8 * 1024], 0);
    loop {
        let end = loop {
            if let Some(at) = buffer[..length].windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read(&mut buffer[length..]).ok()? {
                0 => return None,
                more => length += more,
            }
        };
        let head = std::str::from_utf8(&buffer[..end]).ok()?.to_ascii_lowercase();
        // No request here has a body.
        buffer.copy_within(end..length, 0);
        length -= end;
        let (status, text) = match () {
            () if head.starts_with("options ") => ("204 No Content", ""),
            () if !head.contains(authorization) => ("401 Unauthorized", ""),
            () if head.starts_with("get /healthz") => ("404 Not Found", ""),
            () => ("200 OK", TEXT),
        };
        let size = if status.starts_with("204") { String::new() } else { format!("Content-Length: {}\r\n", text.len()) };
        stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\n{size}\r\n{text}").as_bytes()).ok()?;
        if head.contains("\r\nconnection: close\r\n") {
            return None;
        }
    }
}
