//! The stream's bodies: read from files where they are no longer in memory, and cut into batches where they arrive.

use bytes::{Bytes, BytesMut};
use kahawai_journal::{BatchView, Batches, CONTROL_BYTES, Control, JournalReader};
use kahawai_types::Lsn;

use crate::chain;

/// Batches that follow each other in one file: where they start, the chain before them, where they end, their bytes.
pub type Piece = (Lsn, u64, Lsn, Bytes);

/// Reads what is no longer in the ring.
#[derive(Debug)]
pub struct FromFiles {
    /// Where the next batch follows.
    at: Lsn,
    batches: Batches,
    ahead: Option<BatchView>,
    /// Before the next batch, where it does not say so itself.
    chain: Option<u64>,
}

impl FromFiles {
    /// From a position on.
    pub fn new(reader: &JournalReader, at: Lsn) -> Self {
        let chain = reader.chain_at(at).ok().flatten().map(|chain| chain.0);
        Self { at, batches: reader.batches(at), ahead: None, chain }
    }

    fn batch(&mut self) -> Result<Option<BatchView>, String> {
        match self.ahead.take() {
            Some(batch) => Ok(Some(batch)),
            None => self.batches.next().transpose().map_err(|problem| chain(&problem)),
        }
    }

    /// Whole batches, until there are so many bytes. `None` where the journal ends.
    pub fn piece(&mut self, bytes_max: u64) -> Result<Option<Piece>, String> {
        let Some(first) = self.batch()? else { return Ok(None) };
        let start = first.lsn;
        let prev_chain = first.stamp.as_ref().map(|stamp| stamp.prev_chain.0).or(self.chain);
        let prev_chain = prev_chain.ok_or_else(|| format!("the chain before {start} is not known"))?;
        // Files go as soon as nobody in sync needs them.
        if start != self.at && self.chain != Some(prev_chain) {
            return Err(format!("data files before {start} were deleted, whoever lacks them synchronises"));
        }
        let mut end = first.end();
        self.chain = first.chain.map(|chain| chain.0);
        let mut body = BytesMut::from(&first.bytes[..]);
        while (body.len() as u64) < bytes_max {
            let Some(next) = self.batch()? else { break };
            if next.lsn != end {
                self.ahead = Some(next);
                break;
            }
            end = next.end();
            self.chain = next.chain.map(|chain| chain.0);
            body.extend_from_slice(&next.bytes);
        }
        self.at = end;
        Ok(Some((start, prev_chain, end, body.freeze())))
    }
}

/// Cuts a body into its batches.
pub fn split(mut at: Lsn, mut body: Bytes, out: &mut Vec<(Lsn, Bytes)>) -> Result<(), String> {
    while !body.is_empty() {
        let control = Control::decode(&body).ok_or_else(|| format!("there is no batch at {at}"))?;
        let bytes = CONTROL_BYTES + control.payload_bytes as usize;
        if bytes > body.len() {
            return Err(format!("the batch at {at} has {bytes} bytes, {} came", body.len()));
        }
        out.push((at, body.split_to(bytes)));
        at = Lsn(at.0 + bytes as u64);
    }
    Ok(())
}
