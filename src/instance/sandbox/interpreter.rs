//! The loader that a program names (ld.so): the only other file the kernel executes for it.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::unix::ffi::OsStringExt,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// The `PT_INTERP` of an ELF file (elf(5)); `None` for a static program, or one that is no 64-bit little-endian ELF.
pub(super) fn of(program: &Path) -> io::Result<Option<PathBuf>> {
    let file = File::open(program)?;
    let mut head = [0; HEAD];
    if file.read_exact_at(&mut head, 0).is_err() {
        return Ok(None);
    }
    let Some((offset, count)) = program_headers(&head) else { return Ok(None) };
    let mut headers = vec![0; usize::from(count) * ENTRY];
    file.read_exact_at(&mut headers, offset)?;
    let Some((offset, length)) = headers.chunks_exact(ENTRY).find_map(interp) else { return Ok(None) };
    let mut path = vec![0; usize::try_from(length.min(LONGEST_PATH)).unwrap_or_default()];
    file.read_exact_at(&mut path, offset)?;
    path.truncate(path.iter().position(|&byte| byte == 0).unwrap_or(path.len()));
    Ok(Some(OsString::from_vec(path).into()))
}

/// Sizes of an ELF header and of one program header, 64 bit.
const HEAD: usize = 64;
const ENTRY: usize = 56;
const LONGEST_PATH: u64 = 4_096;

/// Where the program headers lie and how many there are.
fn program_headers(head: &[u8; HEAD]) -> Option<(u64, u16)> {
    const ELF64_LITTLE: &[u8] = b"\x7fELF\x02\x01";
    let size = u16::from_le_bytes(head.get(54..56)?.try_into().ok()?);
    (head.starts_with(ELF64_LITTLE) && usize::from(size) == ENTRY)
        .then_some((number(head, 32)?, u16::from_le_bytes(head.get(56..58)?.try_into().ok()?)))
}

/// Where the path lies, and its length, if this header is the one that says so.
fn interp(header: &[u8]) -> Option<(u64, u64)> {
    const PT_INTERP: [u8; 4] = 3u32.to_le_bytes();
    header.starts_with(&PT_INTERP).then_some((number(header, 8)?, number(header, 32)?))
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_programs_loader_exists_and_a_text_has_none() {
        if let Some(loader) = of(&std::env::current_exe().unwrap()).unwrap() {
            assert!(loader.is_absolute() && loader.exists(), "{}", loader.display());
        }
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "#!/bin/sh\n", &"x".repeat(100)] {
            std::fs::write(dir.path().join("a"), text).unwrap();
            assert_eq!(of(&dir.path().join("a")).unwrap(), None);
        }
    }

    #[test]
    fn a_cut_or_wild_file_is_an_error_or_none_and_nothing_worse() {
        let dir = tempfile::tempdir().unwrap();
        let mut wild = [0xff; 200];
        wild[..6].copy_from_slice(b"\x7fELF\x02\x01");
        wild[54..56].copy_from_slice(&56u16.to_le_bytes());
        std::fs::write(dir.path().join("a"), wild).unwrap();
        assert!(of(&dir.path().join("a")).is_err());
    }
}
