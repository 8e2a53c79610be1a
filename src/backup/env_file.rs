//! The environment that restic alone gets: `KEY=VALUE` lines of a file that is closed to others.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::fault::ResticError;

/// Reads the file at `path`. What stands in it goes into no message.
pub(super) fn read(path: &Path) -> Result<Vec<(String, String)>, ResticError> {
    check_private(path)?;
    let text = fs::read_to_string(path).map_err(|error| unusable(path, error))?;
    parse(&text).map_err(|line| unusable(path, format!("line {line} is not KEY=VALUE")))
}

/// A secret for its owner alone, or why not.
pub(super) fn check_private(path: &Path) -> Result<(), ResticError> {
    let mode = fs::metadata(path).map_err(|error| unusable(path, error))?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(unusable(path, format!("others than its owner may use it (mode {mode:04o}): run `chmod 600 {}`", path.display())))
}

fn unusable(path: &Path, why: impl ToString) -> ResticError {
    ResticError::File { path: path.into(), why: why.to_string() }
}

/// The variables, or the number of the line that is none.
fn parse(text: &str) -> Result<Vec<(String, String)>, usize> {
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=').ok_or(number)?;
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(number);
        }
        variables.push((key.to_owned(), unquoted(value.trim()).to_owned()));
    }
    Ok(variables)
}

fn unquoted(value: &str) -> &str {
    let inside = |quote| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_a_shell_would() {
        let text = "# for S3\n\nAWS_ACCESS_KEY_ID=abc\nexport AWS_SECRET_ACCESS_KEY='d=e f'\n  X = \"1\"\n";
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(parse(text).unwrap(), [pair("AWS_ACCESS_KEY_ID", "abc"), pair("AWS_SECRET_ACCESS_KEY", "d=e f"), pair("X", "1")]);
    }

    #[test]
    fn a_line_that_is_none_is_named_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        fs::write(&path, "A=1\nhunter2\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let said = read(&path).unwrap_err().to_string();
        assert!(said.contains("line 2") && !said.contains("hunter2"), "{said}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("chmod 600"));
    }
}
