//! What instances.db says to whoever asks at a door: nothing of it goes through the loop.

use std::path::PathBuf;

use crate::store::{Reader, StoreError};

/// Opens the records, reads `what`, and closes them: the loop replaces a file that is corrupt. Why not, where they cannot be read.
pub(super) async fn read<T: Send + 'static>(
    state_dir: PathBuf,
    what: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, String> {
    let reading = tokio::task::spawn_blocking(move || Reader::open(&state_dir).and_then(|reader| what(&reader)));
    match reading.await {
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
