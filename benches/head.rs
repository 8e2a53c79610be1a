//! What the check of a head costs a request.
#![allow(clippy::expect_used)] // a measurement: what fails, ends it

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sq_agent::proxy::{
    chunks::Chunks,
    head::{Search, check},
};

fn heads(criterion: &mut Criterion) {
    let token = "x".repeat(200);
    let bare =
        format!("GET /api/v2/select?p=diary&c=1.1.1/1.1.1/1.1.1 HTTP/1.1\r\nHost: sq.example.com\r\nAuthorization: Bearer {token}\r\n\r\n");
    let browser = bare.replace(
        "\r\n\r\n",
        &format!(
            "\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nAccept: */*\r\n\
             Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nReferer: https://app.example.com/\r\n\
             Origin: https://app.example.com\r\nConnection: keep-alive\r\nSec-Fetch-Dest: empty\r\nSec-Fetch-Mode: cors\r\n\
             Sec-Fetch-Site: same-site\r\nCookie: {}\r\nPriority: u=4\r\n\r\n",
            "c".repeat(150)
        ),
    );
    let mut group = criterion.benchmark_group("head");
    for (name, head) in [("wrk", &bare), ("browser", &browser)] {
        group.throughput(Throughput::Bytes(head.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let bytes = black_box(head.as_bytes());
                let end = Search::new().end(bytes).ok().flatten().expect("a whole head");
                check(&bytes[..end])
            });
        });
    }
    group.finish();
    let body = [format!("{:x}\r\n", 16 * 1024).as_bytes(), &[b'x'; 16 * 1024], b"\r\n0\r\n\r\n"].concat();
    criterion.bench_function("chunks, 16 KiB", |bencher| bencher.iter(|| Chunks::default().take(black_box(&body))));
}

criterion_group!(benches, heads);
criterion_main!(benches);
