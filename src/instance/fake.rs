//! For tests: small shell programs in the place of real ones.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Writes an executable script. Another process does the writing: a descriptor of ours, open for writing, would live on
/// for a moment in whatever child another test thread starts just then, and running the script would fail with ETXTBSY.
pub(super) fn program(dir: &Path, name: &str, script: &str) -> PathBuf {
    let path = dir.join(name);
    let mut writer = Command::new("/bin/sh");
    let mut writer = writer.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(&path).stdin(Stdio::piped()).spawn().unwrap();
    writer.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
    path
}
