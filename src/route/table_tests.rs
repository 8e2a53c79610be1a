//! Both ends of the table together, against the simplest thing that could do the same: a `HashMap`.

use super::*;

struct Table {
    _dir: tempfile::TempDir,
    writer: TableWriter,
    reader: TableReader,
}

fn table() -> Table {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sq-agent-test-routes");
    let writer = TableWriter::open(&path).unwrap();
    let reader = TableReader::map(writer.share().unwrap()).unwrap();
    Table { _dir: dir, writer, reader }
}

fn limits(n: u64) -> RouteLimits {
    RouteLimits { interval_ns: n, burst: n as u32 + 1, concurrency: 3, queue: 4, body_max: 5 + n }
}

fn row(id: &str, slot: u32) -> Row {
    Row {
        id: id.into(),
        port: 10_001 + slot as u16,
        state: RouteState::Ready,
        epoch: 1 << 40 | u64::from(slot),
        slot,
        tokens_valid_after: 1_770_000_000,
        limits: limits(u64::from(slot % 3)),
        api_keys: Vec::new(),
    }
}

fn route(row: &Row) -> Route {
    let Row { port, state, epoch, slot, tokens_valid_after, limits, .. } = *row;
    Route { port, state, epoch, slot, tokens_valid_after, limits }
}

#[test]
fn a_published_row_is_found_by_its_id_and_by_its_api_key() {
    let mut table = table();
    let longest = "x".repeat(128);
    let mut rows = [row("user1@example.com", 7), row(&longest, 8), row("ü", 9)];
    rows[1].api_keys = vec![[1; 32], [2; 32]];
    assert_eq!(table.reader.lookup("user1@example.com"), Ok(None));
    assert_eq!(table.writer.publish(&rows).unwrap(), 1);
    for row in &rows {
        assert_eq!(table.reader.lookup(&row.id), Ok(Some(route(row))));
    }
    assert_eq!(table.reader.lookup("user2@example.com"), Ok(None));
    for key in [[1; 32], [2; 32]] {
        let (id, found) = table.reader.lookup_api_key(&key).unwrap().unwrap();
        assert_eq!((id.as_str(), found), (longest.as_str(), route(&rows[1])));
    }
    assert_eq!(table.reader.lookup_api_key(&[3; 32]), Ok(None));
}
