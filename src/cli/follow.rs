//! Lines that keep coming: printed until whoever reads them goes away.

use std::{
    io::{self, Write as _},
    time::Duration,
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// Prints a line; `false` once nobody reads any more, which is no error: `| head` has enough.
pub(super) fn line(text: &str) -> anyhow::Result<bool> {
    let mut out = anstream::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Waits a moment before the next look. A command has nothing else to do meanwhile.
#[allow(clippy::disallowed_methods)]
pub(super) fn pause() {
    std::thread::sleep(PAUSE);
}

/// The same, so long.
#[allow(clippy::disallowed_methods)]
pub(super) fn pause_for(time: Duration) {
    std::thread::sleep(time);
}
