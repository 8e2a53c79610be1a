//! The route table as a writer that has lost its mind would leave it.

use std::{
    cell::RefCell,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use crate::{
    guard::Durability,
    route::{RouteLimits, RouteState, Row, TableReader, TableWriter, Writes},
};

/// Longest that any look may take: all tries over a table without one empty row take a hundredth of it.
const BOUND: Duration = Duration::from_secs(2);

const KEY: [u8; 32] = [7; 32];

struct Table {
    file: File,
    /// As it was written.
    good: Vec<u8>,
    /// Words that are not zero in it: where a change tells most.
    telling: Vec<u32>,
}

thread_local! {
    static TABLE: RefCell<Table> = RefCell::new(Table::new());
}

impl Table {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("sq-agent-fuzz-table-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let limits = RouteLimits {
            interval_ns: 1,
            burst: 2,
            requests_per_day: 7,
            concurrency: 3,
            queue: 4,
            body_max: 5,
            memory_max: 6,
            storage_max: 8,
            durability: Durability::Off,
        };
        let row = |id: &str, slot: u32| Row {
            id: id.into(),
            port: 10_001,
            state: RouteState::Ready,
            epoch: 1,
            slot,
            tokens_valid_after: 0,
            limits,
            writes: Writes::OverStorage { used: 9 },
            api_keys: vec![[u8::try_from(slot).unwrap_or(0) + 7; 32]],
        };
        let mut writer = TableWriter::open(&path).unwrap_or_else(|error| panic!("{error}"));
        writer.publish(&[row("alice", 0), row("bob", 1)]).unwrap_or_else(|error| panic!("{error}"));
        drop(writer);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap_or_else(|error| panic!("{error}"));
        let good = fs::read(&path).unwrap_or_else(|error| panic!("{error}"));
        let _ = fs::remove_file(&path);
        let words = good.chunks_exact(8).enumerate();
        let telling = words.filter(|(_, word)| word.iter().any(|&byte| byte != 0)).filter_map(|(at, _)| u32::try_from(at).ok()).collect();
        Self { file, good, telling }
    }

    fn write(&self, at: usize, word: &[u8]) {
        self.file.write_all_at(word, (at * 8) as u64).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Each 13 bytes overwrite a word: which kind of place, which one, with what.
pub fn overwritten(patches: &[u8]) {
    TABLE.with_borrow(|table| {
        let mut touched = Vec::new();
        for patch in patches.chunks_exact(13).take(64) {
            let (place, word) = patch[1..].split_at(4);
            let place = u32::from_le_bytes(place.try_into().unwrap_or_default()) as usize;
            let words = table.good.len() / 8;
            let at = match patch[0] % 3 {
                // Near a word that says something.
                0 => table.telling[place % table.telling.len()] as usize + (place >> 16) % 9,
                1 => place % 512,
                _ => place,
            } % words;
            table.write(at, word);
            touched.push(at);
        }
        let start = Instant::now();
        if let Ok(reader) = TableReader::map(&table.file) {
            for id in ["alice", "bob", "nobody", ""] {
                let _ = reader.lookup(id);
            }
            let _ = (reader.lookup_api_key(&KEY), reader.lookup_api_key(&[8; 32]), reader.lookup_api_key(&[0; 32]));
            let _ = (reader.generation(), reader.is_retired(), reader.heartbeat());
        }
        assert!(start.elapsed() < BOUND, "a look took {:?}", start.elapsed());
        for at in touched {
            table.write(at, &table.good[at * 8..at * 8 + 8]);
        }
    });
}
