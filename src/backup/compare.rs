//! Whether two directories hold the same, byte for byte.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
};

/// How two directories compare.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// They hold the same files, so many.
    Same(usize),
    /// Where they do not.
    Different(String),
}

/// Compares `restored` with `original`.
pub(super) fn compare(original: &Path, restored: &Path) -> io::Result<Comparison> {
    let (expected, found) = (files(original)?, files(restored)?);
    if let Some(missing) = expected.difference(&found).next() {
        return Ok(Comparison::Different(format!("{} is missing", missing.display())));
    }
    if let Some(extra) = found.difference(&expected).next() {
        return Ok(Comparison::Different(format!("{} should not be there", extra.display())));
    }
    for file in &expected {
        if let Some(at) = first_difference(&original.join(file), &restored.join(file))? {
            return Ok(Comparison::Different(format!("{} differs from byte {at} on", file.display())));
        }
    }
    Ok(Comparison::Same(expected.len()))
}

/// Every file below `root`, as its path from there.
pub(super) fn files(root: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                found.extend(entry.path().strip_prefix(root).map(Path::to_owned).ok());
            }
        }
    }
    Ok(found)
}

/// Where the second file is not the first any more, counted from 0.
fn first_difference(first: &Path, second: &Path) -> io::Result<Option<u64>> {
    let (mut first, mut second) =
        (BufReader::with_capacity(1 << 16, File::open(first)?), BufReader::with_capacity(1 << 16, File::open(second)?));
    let mut at = 0;
    loop {
        let (a, b) = (first.fill_buf()?, second.fill_buf()?);
        let common = a.len().min(b.len());
        if let Some(offset) = a.iter().zip(b).position(|(a, b)| a != b) {
            return Ok(Some(at + offset as u64));
        }
        if common == 0 {
            return Ok(if a.len() == b.len() { None } else { Some(at) });
        }
        at += common as u64;
        first.consume(common);
        second.consume(common);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_one_file_more_or_less_is_told_and_nothing_else() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let text = vec![b'x'; 200_000];
        for dir in [&a, &b] {
            fs::create_dir(dir.path().join("d")).unwrap();
            fs::write(dir.path().join("d/f"), &text).unwrap();
            fs::write(dir.path().join("empty"), "").unwrap();
        }
        let compared = || compare(a.path(), b.path()).unwrap();
        assert_eq!(compared(), Comparison::Same(2));
        let mut changed = text.clone();
        changed[150_000] = b'y';
        fs::write(b.path().join("d/f"), changed).unwrap();
        assert_eq!(compared(), Comparison::Different("d/f differs from byte 150000 on".into()));
        fs::write(b.path().join("d/f"), &text[1..]).unwrap();
        assert_eq!(compared(), Comparison::Different("d/f differs from byte 199999 on".into()));
        fs::write(b.path().join("d/f"), &text).unwrap();
        fs::write(b.path().join("more"), "").unwrap();
        assert_eq!(compared(), Comparison::Different("more should not be there".into()));
        fs::remove_file(b.path().join("more")).unwrap();
        fs::remove_file(b.path().join("empty")).unwrap();
        assert_eq!(compared(), Comparison::Different("empty is missing".into()));
    }
}
