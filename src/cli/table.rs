//! Tables: aligned on a terminal, tab-separated when piped.

use std::io::IsTerminal as _;

/// Prints rows under a heading. On a terminal columns are aligned and the heading stands out; piped, each row is one
/// line of tab-separated cells without a heading, for `cut` and `awk`.
pub(super) fn print(heading: &[&str], rows: &[Vec<String>]) {
    if !std::io::stdout().is_terminal() {
        for row in rows {
            anstream::println!("{}", row.join("\t"));
        }
        return;
    }
    let widths = widths(heading, rows);
    let bold = anstyle::Style::new().bold();
    anstream::println!("{bold}{}{bold:#}", line(&heading.iter().map(ToString::to_string).collect::<Vec<_>>(), &widths));
    for row in rows {
        anstream::println!("{}", line(row, &widths));
    }
}

fn widths(heading: &[&str], rows: &[Vec<String>]) -> Vec<usize> {
    (0..heading.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([heading[column].chars().count()]).max().unwrap_or(0)
        })
        .collect()
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
    padded.join("  ").trim_end().to_owned()
}

/// Whether standard output is a terminal with room for what is not needed every day.
pub(super) fn is_wide() -> bool {
    const WIDE: u16 = 140;
    rustix::termios::tcgetwinsize(std::io::stdout()).is_ok_and(|size| size.ws_col >= WIDE)
}

/// Bytes as a person reads them: `2.4M`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["K", "M", "G", "T"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["a".to_owned(), "ready".to_owned()], vec!["long-id".to_owned(), "x".to_owned()]];
        let widths = widths(&["ID", "STATE"], &rows);
        assert_eq!(line(&rows[0], &widths), "a        ready");
    }

    #[test]
    fn bytes_are_short() {
        assert_eq!([bytes(163_840), bytes(2_516_582), bytes(3 << 30)], ["160.0K", "2.4M", "3.0G"]);
    }
}
