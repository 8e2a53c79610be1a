//! Both ends of the table together, against the simplest thing that could do the same: a `HashMap`.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use proptest::prelude::*;

use super::layout::{BUFFER_WORDS, HEADER_WORDS, KEYS_AT, LINE, TABLE_WORDS};
use super::writer::lines_in_use;
use super::*;

struct Table {
    _dir: tempfile::TempDir,
    path: PathBuf,
    writer: TableWriter,
    reader: TableReader,
}

/// Where the pages live in earnest, too.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn table() -> Table {
    let dir = scratch();
    let path = dir.path().join("sq-agent-test-routes");
    let writer = TableWriter::open(&path).unwrap();
    let reader = TableReader::map(writer.share().unwrap()).unwrap();
    Table { _dir: dir, path, writer, reader }
}

fn limits(n: u64) -> RouteLimits {
    RouteLimits {
        interval_ns: n,
        burst: n as u32 + 1,
        requests_per_day: 8 + n as u32,
        concurrency: 3,
        queue: 4,
        body_max: 5 + n,
        memory_max: 6 + n,
        storage_max: 7 + n,
        durability: [Durability::Process, Durability::Power, Durability::Off][n as usize % 3],
    }
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
        writes: [Writes::All, Writes::OverStorage { used: 1 << 41 | u64::from(slot) }, Writes::DiskLow][slot as usize % 3],
        api_keys: Vec::new(),
    }
}

fn route(row: &Row) -> Route {
    let Row { port, state, epoch, slot, tokens_valid_after, limits, writes, .. } = *row;
    Route { port, state, epoch, slot, tokens_valid_after, limits, writes }
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

#[test]
fn an_unchanged_table_keeps_its_generation_and_a_change_shows_in_every_later_one() {
    let mut table = table();
    let mut rows = [row("a", 1), row("b", 2)];
    assert_eq!(table.writer.publish(&rows).unwrap(), 1);
    assert_eq!(table.writer.publish(&rows).unwrap(), 1);
    rows[0].state = RouteState::Suspended;
    assert_eq!(table.writer.publish(&rows).unwrap(), 2);
    for generation in 3..10 {
        rows[1].epoch += 1;
        assert_eq!(table.writer.publish(&rows).unwrap(), generation);
        assert_eq!(table.reader.generation(), generation);
        for row in &rows {
            assert_eq!(table.reader.lookup(&row.id), Ok(Some(route(row))), "generation {generation}");
        }
    }
    assert_eq!(table.writer.publish(&[]).unwrap(), 10);
    assert_eq!(table.reader.lookup("a"), Ok(None));
}

#[test]
fn rows_that_contradict_each_other_are_refused_and_change_nothing() {
    let mut table = table();
    let good = [row("a", 1), row("b", 2)];
    table.writer.publish(&good).unwrap();
    let with_keys = |keys: &[[u8; 32]], mut row: Row| {
        row.api_keys = keys.to_vec();
        row
    };
    let many = |count: u32| (0..count).map(|n| row(&format!("t{n}"), n)).collect::<Vec<_>>();
    let refused: [(&str, Vec<Row>); 9] = [
        ("the tenant \"a\" has two rows", vec![row("a", 1), row("a", 2)]),
        ("slot 1 of \"b\" already belongs", vec![row("a", 1), row("b", 1)]),
        ("slot 32768 of \"a\" lies outside", vec![row("a", 32_768)]),
        ("the tenant id \"\" is 0 bytes", vec![row("", 1)]),
        ("is 129 bytes long", vec![row(&"x".repeat(129), 1)]),
        ("an API key of \"b\" is already that of \"a\"", vec![with_keys(&[[7; 32]], row("a", 1)), with_keys(&[[7; 32]], row("b", 2))]),
        ("an API key of \"a\" is already that of \"a\"", vec![with_keys(&[[7; 32], [7; 32]], row("a", 1))]),
        ("20001 tenants do not fit", many(20_001)),
        ("20001 API keys do not fit", vec![with_keys(&vec![[7; 32]; 20_001], row("a", 1))]),
    ];
    for (complaint, rows) in refused {
        let error = table.writer.publish(&rows).unwrap_err().to_string();
        assert!(error.contains(complaint), "{error}");
    }
    let mut many = many(1_025);
    many.iter_mut().zip(0..).for_each(|(row, n)| row.limits = limits(n));
    assert!(matches!(table.writer.publish(&many), Err(TableError::TooManyLimits { max: 1_024 })));
    assert_eq!(table.writer.publish(&many[..1_024]).unwrap(), 2);
    assert_eq!(table.writer.publish(&good).unwrap(), 3);
    assert_eq!(table.reader.lookup("a"), Ok(Some(route(&good[0]))));
}

#[test]
fn the_fullest_table_still_answers_for_every_id() {
    let mut table = table();
    let mut rows: Vec<_> = (0..20_000).map(|n| row(&format!("tenant-{n}@example.com"), n)).collect();
    for (row, n) in rows.iter_mut().zip(0_u32..) {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&n.wrapping_mul(0x9e37_79b9).to_le_bytes());
        row.api_keys.push(digest);
    }
    table.writer.publish(&rows).unwrap();
    for row in &rows {
        assert_eq!(table.reader.lookup(&row.id), Ok(Some(route(row))));
        let (id, found) = table.reader.lookup_api_key(&row.api_keys[0]).unwrap().unwrap();
        assert_eq!((id.as_str(), found), (row.id.as_str(), route(row)));
    }
    assert_eq!(table.reader.lookup("tenant-20000@example.com"), Ok(None));
}

#[test]
fn a_new_agent_takes_over_the_table_under_the_eyes_of_the_proxy() {
    let mut table = table();
    let rows = [row("a", 1), row("b", 2)];
    table.writer.publish(&rows).unwrap();
    table.writer.publish(&rows[..1]).unwrap();
    let inode = fs::metadata(&table.path).unwrap().ino();
    drop(table.writer);
    let mut writer = TableWriter::open(&table.path).unwrap();
    assert_eq!(fs::metadata(&table.path).unwrap().ino(), inode);
    assert_eq!((writer.generation(), table.reader.generation()), (2, 2));
    assert_eq!(table.reader.lookup("a"), Ok(Some(route(&rows[0]))), "the last published rows stand until the first publish");
    writer.heartbeat(77);
    assert_eq!(table.reader.heartbeat(), 77);
    for generation in 3..6 {
        let rows = [row("c", generation as u32)];
        assert_eq!(writer.publish(&rows).unwrap(), generation);
        assert_eq!(table.reader.lookup("c"), Ok(Some(route(&rows[0]))));
        assert_eq!((table.reader.lookup("a"), table.reader.lookup("b")), (Ok(None), Ok(None)), "generation {generation}");
    }
    assert_eq!(writer.publish(&[row("c", 5)]).unwrap(), 5);
    drop(writer);
    assert_eq!(TableWriter::open(&table.path).unwrap().publish(&[]).unwrap(), 6, "what another left is never taken for granted");
    assert_eq!(table.reader.lookup("c"), Ok(None));
}

#[test]
fn a_table_of_another_layout_is_replaced_and_its_readers_learn_of_it() {
    let table = table();
    assert!(!table.reader.is_retired());
    let file = OpenOptions::new().write(true).open(&table.path).unwrap();
    file.write_all_at(&3_u64.to_le_bytes(), 8).unwrap();
    assert!(matches!(TableReader::map(table.writer.share().unwrap()), Err(TableError::Layout { .. })));
    let mut writer = TableWriter::open(&table.path).unwrap();
    assert!(table.reader.is_retired());
    writer.publish(&[row("a", 1)]).unwrap();
    let reader = TableReader::map(writer.share().unwrap()).unwrap();
    assert_eq!((reader.is_retired(), reader.generation()), (false, 1));
}

#[test]
fn whatever_lies_in_the_way_is_replaced_and_never_written_to() {
    let dir = scratch();
    let (path, other) = (dir.path().join("routes"), dir.path().join("other"));
    fs::write(&other, "a file of somebody").unwrap();
    symlink(&other, &path).unwrap();
    TableWriter::open(&path).unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
    assert_eq!(fs::read_to_string(&other).unwrap(), "a file of somebody");
    let about = fs::metadata(&path).unwrap();
    assert_eq!((about.mode() & 0o777, about.len()), (0o640, 8 * TABLE_WORDS as u64));
    // A table that anybody may write is nobody's.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    TableWriter::open(&path).unwrap();
    assert_ne!(fs::metadata(&path).unwrap().ino(), about.ino());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = TableWriter::open(&path).err().unwrap().to_string();
    assert!(error.contains("cannot put in place the shared page") && error.contains("routes"), "{error}");
}

#[test]
fn what_the_proxy_is_given_is_open_for_reading_alone() {
    let table = table();
    let shared: OwnedFd = table.writer.share().unwrap();
    assert!(memmap2::MmapRaw::map_raw(&fs::File::from(shared)).is_err());
}

#[derive(Debug, Clone)]
enum Step {
    Publish(Vec<Row>),
    /// Another epoch for one of the rows: what happens most in earnest.
    Touch(prop::sample::Index, u64),
    Restart,
}

fn any_row() -> impl Strategy<Value = Row> {
    // Few ids, slots and keys, so that publishes meet the same ones again.
    let state = prop::sample::select(&[1_u8, 2, 3, 4, 5, 6]).prop_map(|word| RouteState::from_word(word).unwrap());
    let keys = prop::collection::vec((0..60_u8).prop_map(|n| [n; 32]), 0..2);
    ("[a-f]{1,2}", any::<u16>(), state, any::<u64>(), 0..3_u64, keys).prop_map(|(id, port, state, number, tier, api_keys)| {
        let slot = id.bytes().fold(0, |slot, letter| slot * 7 + u32::from(letter - b'a' + 1));
        let writes = if number % 3 == 0 { Writes::OverStorage { used: number } } else { Writes::All };
        Row { id, port, state, epoch: number, slot, tokens_valid_after: !number, limits: limits(tier), writes, api_keys }
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(any_row(), 0..20).prop_map(Step::Publish),
        6 => any::<(prop::sample::Index, u64)>().prop_map(|(at, epoch)| Step::Touch(at, epoch)),
        1 => Just(Step::Restart),
    ]
}

/// Routes by id, ids by key.
type Model<'a> = (HashMap<&'a str, Route>, HashMap<[u8; 32], &'a str>);

/// The table as a `HashMap` has it. `None` if it has to be refused.
fn model(rows: &[Row]) -> Option<Model<'_>> {
    let (mut routes, mut keys) = (HashMap::new(), HashMap::new());
    for row in rows {
        let fresh = routes.insert(row.id.as_str(), route(row)).is_none();
        if !fresh || row.api_keys.iter().any(|key| keys.insert(*key, row.id.as_str()).is_some()) {
            return None;
        }
    }
    Some((routes, keys))
}

proptest! {
    // Each case makes 16 MiB of files.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_publishes_give_what_a_hash_map_gives(steps in prop::collection::vec(any_step(), 1..12)) {
        let mut table = table();
        let (mut current, mut generation) = (Vec::<Row>::new(), 0);
        for step in steps {
            let step = match step {
                Step::Touch(at, epoch) if !current.is_empty() => {
                    let mut rows = current.clone();
                    at.get_mut(&mut rows).epoch = epoch;
                    Step::Publish(rows)
                }
                other => other,
            };
            match step {
                Step::Touch(..) => {}
                Step::Restart => table.writer = TableWriter::open(&table.path).unwrap(),
                Step::Publish(rows) if model(&rows).is_none() => prop_assert!(table.writer.publish(&rows).is_err()),
                Step::Publish(rows) => {
                    let next = table.writer.publish(&rows).unwrap();
                    prop_assert!(next == generation + 1 || next == generation && rows == current);
                    (generation, current) = (next, rows);
                }
            }
            let (routes, keys) = model(&current).unwrap();
            for id in ('a'..='f').flat_map(|x| ('a'..='g').map(move |y| if y == 'g' { x.to_string() } else { format!("{x}{y}") })) {
                prop_assert_eq!(table.reader.lookup(&id), Ok(routes.get(id.as_str()).copied()), "{}", id);
            }
            for n in 0..60 {
                let found = table.reader.lookup_api_key(&[n; 32]).unwrap();
                let expected = keys.get(&[n; 32]).map(|id| (*id, routes[id]));
                prop_assert_eq!(found.as_ref().map(|(id, route)| (id.as_str(), *route)), expected);
            }
        }
    }

    #[test]
    fn a_page_of_rubbish_is_answered_without_a_panic(patches in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..64), fill: u64) {
        let mut table = table();
        let mut target = row("a", 1);
        target.api_keys = vec![[1; 32]];
        table.writer.publish(&[target, row("b", 2)]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&table.path).unwrap();
        // Rubbish over the rows, keys and limits in use, and over some of everything but the four words that are checked at mapping.
        let put = |at: usize, word: u64| file.write_all_at(&word.to_le_bytes(), 8 * at as u64).unwrap();
        for line in lines_in_use(&file, 1, &table.path).unwrap() {
            let first = HEADER_WORDS + BUFFER_WORDS + LINE * line as usize;
            (first..first + LINE).filter(|at| fill >> (at % 64) & 1 == 1).for_each(|at| put(at, fill.rotate_left(at as u32)));
        }
        for (at, word) in patches {
            put(4 + at.index(if word % 2 == 0 { HEADER_WORDS } else { TABLE_WORDS } - 4), word);
        }
        for reader in [table.reader, TableReader::map(table.writer.share().unwrap()).unwrap()] {
            let _ = (reader.lookup("a"), reader.lookup("b"), reader.lookup("c"), reader.lookup(""), reader.lookup(&"x".repeat(1_000)));
            let _ = (reader.lookup_api_key(&[1; 32]), reader.lookup_api_key(&[2; 32]));
            let _ = (reader.generation(), reader.heartbeat(), reader.is_retired());
        }
        // And a new agent makes good of it.
        let mut writer = TableWriter::open(&table.path).unwrap();
        writer.publish(&[row("a", 1)]).unwrap();
        writer.publish(&[row("b", 1)]).unwrap();
        let reader = TableReader::map(writer.share().unwrap()).unwrap();
        prop_assert_eq!((reader.lookup("a"), reader.lookup("b")), (Ok(None), Ok(Some(route(&row("b", 1))))));
    }

    #[test]
    fn a_file_of_arbitrary_bytes_is_no_table(bytes: Vec<u8>) {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        prop_assert!(TableReader::map(&file).is_err());
        file.set_len(8 * TABLE_WORDS as u64).unwrap();
        prop_assert!(TableReader::map(&file).is_err());
    }
}

#[test]
fn words_that_make_no_row_are_no_route() {
    let mut table = table();
    // An id whose bytes would pass for a row that is ready.
    let id = "aaaaaaaaaaaaaaaaaa\u{2}";
    let mut target = row(id, 1);
    target.api_keys = vec![[1; 32]];
    table.writer.publish(&[target]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&table.path).unwrap();
    let lines = lines_in_use(&file, 1, &table.path).unwrap();
    let (row_line, key_line) = (lines[0], lines.iter().copied().find(|line| *line >= KEYS_AT as u32).unwrap());
    let read = |line: u32, word: usize| {
        let at = 8 * (HEADER_WORDS + BUFFER_WORDS + LINE * line as usize + word) as u64;
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        (at, u64::from_le_bytes(bytes))
    };
    let (meta, slot, owner, text) = (read(row_line, 2), read(row_line, 4), read(key_line, 4), read(key_line + 1, 0));
    let broken = [
        ("state 0xff", meta, meta.1 | 0xff << 16),
        ("limits 1,024", meta, meta.1 | 1_024 << 32),
        ("limits 65,535", meta, meta.1 | 0xffff << 32),
        ("a slot of 33 bits", slot, slot.1 | 1 << 32),
        ("a row where the keys are", owner, (owner.1 & !0xffff_ffff) | (u64::from(key_line) + 1)),
        ("an id of 129 bytes", owner, (owner.1 & 0xffff_ffff) | 129 << 32),
        ("an id of 0 bytes", owner, (owner.1 & 0xffff_ffff) | u64::from(owner.1 as u32 == 0)),
        ("an id that is not UTF-8", text, 0xff),
    ];
    for (what, (at, good), bad) in broken {
        file.write_all_at(&bad.to_le_bytes(), at).unwrap();
        assert_eq!(table.reader.lookup_api_key(&[1; 32]), Err(Busy), "{what}");
        if at == meta.0 || at == slot.0 {
            assert_eq!(table.reader.lookup(id), Err(Busy), "{what}");
        }
        file.write_all_at(&good.to_le_bytes(), at).unwrap();
        assert!(table.reader.lookup_api_key(&[1; 32]).unwrap().is_some());
    }
}

/// Every place taken by another, and no end to the search but the number of places.
#[test]
fn a_table_without_an_empty_place_is_searched_once_round_and_no_further() {
    let table = table();
    let file = OpenOptions::new().write(true).open(&table.path).unwrap();
    file.write_all_at(&vec![0xff; 8 * (TABLE_WORDS - HEADER_WORDS)], 8 * HEADER_WORDS as u64).unwrap();
    assert_eq!(table.reader.lookup("a"), Ok(None));
    assert_eq!(table.reader.lookup_api_key(&[1; 32]), Ok(None));
}
