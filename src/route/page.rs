//! A shared page: a file of fixed size on tmpfs, mapped, and seen as nothing but atomic words.
//!
//! The only `unsafe` of this room. The rules that make it sound are kept here: the length is checked before mapping, every word
//! is an `AtomicU64` in every process, the file is never truncated (it is replaced by rename), and a page that is mapped
//! read-only is only ever loaded from.
#![allow(unsafe_code)] // reason: a mapping shared between processes cannot be had without

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use memmap2::{MmapOptions, MmapRaw};

use super::TableError;
use super::atomics::{AtomicU64, Ordering};
use super::layout::{CAPACITY, FILE_BYTES, HEADER_WORDS, MAGIC, RETIRED, VERSION};

/// What a kind of page is recognised by, and how its file is made.
pub(super) struct Kind {
    /// Eight letters.
    pub(super) magic: [u8; 8],
    /// Raised with every change of the layout.
    pub(super) version: u64,
    /// Words in the file.
    pub(super) words: usize,
    /// Words that have memory from the beginning; others are given it by [`reserve`].
    pub(super) reserved: usize,
    /// Places or slots.
    pub(super) capacity: usize,
    /// Permissions of the file.
    pub(super) mode: u32,
}

impl Kind {
    fn bytes(&self) -> usize {
        self.words * size_of::<AtomicU64>()
    }

    /// The header words that must be as they are.
    fn identity(&self) -> [(usize, u64, &'static str); 4] {
        [
            (MAGIC, u64::from_le_bytes(self.magic), "the magic number is another"),
            (VERSION, self.version, "the layout version is another"),
            (FILE_BYTES, self.bytes() as u64, "its stated size is another"),
            (CAPACITY, self.capacity as u64, "its capacity is another"),
        ]
    }
}

/// A mapped page.
pub(super) struct Page {
    mapping: MmapRaw,
    words: usize,
}

impl Page {
    /// Maps a page for reading and writing.
    pub(super) fn writable(fd: impl AsFd, kind: &Kind) -> Result<Self, TableError> {
        let fd = fd.as_fd();
        checked_length(&fd, kind)?;
        let mapping = MmapOptions::new().len(kind.bytes()).map_raw(fd.as_raw_fd()).map_err(TableError::file("map", &name_of(&fd)))?;
        Self { mapping, words: kind.words }.checked(kind)
    }

    /// Maps a page PROT_READ.
    pub(super) fn read_only(fd: impl AsFd, kind: &Kind) -> Result<Self, TableError> {
        let fd = fd.as_fd();
        checked_length(&fd, kind)?;
        let mapping =
            MmapOptions::new().len(kind.bytes()).map_raw_read_only(fd.as_raw_fd()).map_err(TableError::file("map", &name_of(&fd)))?;
        Self { mapping, words: kind.words }.checked(kind)
    }

    fn checked(self, kind: &Kind) -> Result<Self, TableError> {
        for (at, expected, what) in kind.identity() {
            if self.words()[at].load(Ordering::Relaxed) != expected {
                return Err(TableError::Layout { what });
            }
        }
        Ok(self)
    }

    /// All words. Of a read-only page: load, never store.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping starts at a page boundary, so it is aligned; it is `words * 8` bytes long, which was compared with the
        // length of a file that nobody truncates; it lives as long as `self`; every bit pattern is an AtomicU64; and no process
        // reaches these bytes but through atomics. Where it is PROT_READ, this room makes only relaxed loads of 8 bytes, which std
        // promises not to write (std::sync::atomic, "Atomic accesses to read-only memory").
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().cast::<AtomicU64>(), self.words) }
    }

    /// The words after the header as an array of slots.
    pub(super) fn slots<T: LineOfWords>(&self) -> &[T] {
        let words = &self.words()[HEADER_WORDS..];
        // SAFETY: `T` is one aligned line of atomic words (promised by LineOfWords), the header is a whole number of lines and starts at a
        // page boundary, and the length is rounded down to whole lines.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<T>(), size_of_val(words) / size_of::<T>()) }
    }
}

/// A type of exactly one cache line that consists of eight `AtomicU64`.
///
/// # Safety
/// Size 64, alignment at most 64, every bit pattern valid, all access through atomics.
pub(super) unsafe trait LineOfWords {}

// SAFETY: `repr(C, align(64))` around `[AtomicU64; 8]`, nothing else.
unsafe impl LineOfWords for super::slot::SlotActivity {}

/// Opens the page at `path`, or makes it: with `fill` given the words of a new page (all 0 but for its identity).
/// Returns the file, open for reading and writing, and whether it is new.
///
/// One that is not of this kind, or not ours alone to write (anybody may put a file into /dev/shm), is replaced by rename and,
/// if it is ours, marked as retired, so that who still has it mapped learns of it.
pub(super) fn open(path: &Path, kind: &Kind, fill: impl FnOnce(&[AtomicU64])) -> Result<(File, bool), TableError> {
    match OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path) {
        Ok(old) if is_ours(&old, path)? => {
            if Page::writable(&old, kind).is_ok() {
                old.set_permissions(fs::Permissions::from_mode(kind.mode)).map_err(TableError::file("set the mode of", path))?;
                return Ok((old, false));
            }
            let new = create(path, kind, fill)?;
            retire(&old, kind);
            Ok((new, true))
        }
        _ => Ok((create(path, kind, fill)?, true)),
    }
}

/// Gives a page at `path` that is of this kind and shape, but of another version, the name `aside`: who has it mapped goes on with it.
pub(super) fn set_aside(path: &Path, aside: &Path, kind: &Kind) -> Result<(), TableError> {
    if other_version(path, kind)?.is_some() { fs::rename(path, aside).map_err(TableError::file("set aside", path)) } else { Ok(()) }
}

/// The page that was set aside as `aside`, if there is one.
pub(super) fn set_aside_before(aside: &Path, kind: &Kind) -> Result<Option<Page>, TableError> {
    other_version(aside, kind)
}

/// Maps the page at `path` if it is ours and of this kind and shape, but of another version.
fn other_version(path: &Path, kind: &Kind) -> Result<Option<Page>, TableError> {
    let Ok(file) = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path) else {
        return Ok(None);
    };
    if !is_ours(&file, path)? || checked_length(&file, kind).is_err() {
        return Ok(None);
    }
    let mapping = MmapOptions::new().len(kind.bytes()).map_raw(&file).map_err(TableError::file("map", path))?;
    let page = Page { mapping, words: kind.words };
    let differs = |(at, expected, _): (usize, u64, _)| (page.words()[at].load(Ordering::Relaxed) != expected) == (at == VERSION);
    let other = kind.identity().into_iter().all(differs);
    Ok(other.then_some(page))
}

fn create(path: &Path, kind: &Kind, fill: impl FnOnce(&[AtomicU64])) -> Result<File, TableError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let unfinished = PathBuf::from(name);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(TableError::file("remove an unfinished", &unfinished)(error)),
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(kind.mode)
        .open(&unfinished)
        .map_err(TableError::file("create", &unfinished))?;
    // The umask may have taken bits away.
    file.set_permissions(fs::Permissions::from_mode(kind.mode)).map_err(TableError::file("set the mode of", &unfinished))?;
    file.set_len(kind.bytes() as u64).map_err(TableError::file("make room in", &unfinished))?;
    allocate(&file, kind.reserved).map_err(TableError::file("reserve memory for", &unfinished))?;
    let mapping = MmapOptions::new().len(kind.bytes()).map_raw(&file).map_err(TableError::file("map", &unfinished))?;
    let page = Page { mapping, words: kind.words };
    fill(page.words());
    for (at, word, _) in kind.identity() {
        page.words()[at].store(word, Ordering::Relaxed);
    }
    fs::rename(&unfinished, path).map_err(TableError::file("put in place", path))?;
    Ok(file)
}

/// Gives memory to the first `words` of a page: on a full tmpfs a first touch later would be a SIGBUS in either process.
pub(super) fn reserve(file: &File, words: usize) -> Result<(), TableError> {
    allocate(file, words).map_err(TableError::file("reserve memory for", &name_of(file)))
}

fn allocate(file: &File, words: usize) -> io::Result<()> {
    Ok(nix::fcntl::posix_fallocate(file, 0, (words * size_of::<AtomicU64>()) as i64)?)
}

/// A plain file of this user that no other may write.
fn is_ours(file: &File, path: &Path) -> Result<bool, TableError> {
    let about = file.metadata().map_err(TableError::file("look at", path))?;
    Ok(about.is_file() && about.uid() == nix::unistd::geteuid().as_raw() && about.mode() & 0o002 == 0)
}

/// Marks a page of any layout of this kind as replaced. The words for this never move.
fn retire(old: &File, kind: &Kind) {
    let header = Kind { words: HEADER_WORDS, ..*kind };
    if old.metadata().is_ok_and(|about| about.len() < header.bytes() as u64) {
        return;
    }
    let Ok(mapping) = MmapOptions::new().len(header.bytes()).map_raw(old) else { return };
    let page = Page { mapping, words: HEADER_WORDS };
    if page.words()[MAGIC].load(Ordering::Relaxed) == u64::from_le_bytes(kind.magic) {
        page.words()[RETIRED].store(1, Ordering::Relaxed);
    }
}

fn checked_length(fd: &impl AsFd, kind: &Kind) -> Result<(), TableError> {
    let about = nix::sys::stat::fstat(fd).map_err(TableError::file("look at", &name_of(fd)))?;
    match u64::try_from(about.st_size) {
        Ok(length) if length == kind.bytes() as u64 => Ok(()),
        _ => Err(TableError::Layout { what: "the file has another length" }),
    }
}

/// What the system calls the file behind a descriptor.
fn name_of(fd: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}
