//! I2: epochs in a journal never decrease, and its batches follow each other.

use super::{Batch, Held};

/// The next batch of a store.
pub(crate) fn follows(held: &Held, batch: &Batch) -> Result<(), String> {
    let Some(last) = held.batches.last() else { return Ok(()) };
    if batch.epoch < last.epoch {
        return Err(format!("I2: epoch {} at {} comes after epoch {}", batch.epoch, batch.start, last.epoch));
    }
    let begins_file = batch.start.offset() == 0 && batch.start.file() > last.end.file();
    if batch.start != last.end && !begins_file {
        return Err(format!("I2: the batch at {} does not follow {}", batch.start, last.end));
    }
    Ok(())
}
