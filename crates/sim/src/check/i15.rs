//! I15: a process whose storage failed says nothing any more.

use kahawai_kdbr::Frame;

use crate::node::Process;

/// Something is about to leave for a client.
pub(crate) fn answers(process: &Process) -> Result<(), String> {
    match &process.failed {
        None => Ok(()),
        Some(reason) => {
            Err(format!("I15: n{} answers clients after its storage failed: {reason}", process.index))
        }
    }
}

/// A frame is about to leave.
pub(crate) fn frame_leaves(process: &Process, frame: &Frame) -> Result<(), String> {
    match &process.failed {
        None => Ok(()),
        Some(reason) => {
            Err(format!("I15: n{} sends {} after its storage failed: {reason}", process.index, frame.name()))
        }
    }
}
