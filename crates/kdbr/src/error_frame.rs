use std::fmt;

use crate::{DecodeError, ErrorCode, ErrorFrame};

impl ErrorFrame {
    /// Without any of the hints.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), promised_epoch: None, primary: None, retry_after_ms: None }
    }
}

impl fmt::Display for ErrorFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

impl std::error::Error for ErrorFrame {}

/// What to tell a peer whose bytes could not be read.
impl From<&DecodeError> for ErrorFrame {
    fn from(error: &DecodeError) -> Self {
        let code = match error {
            DecodeError::FrameTooLarge { .. }
            | DecodeError::HeaderTooLarge { .. }
            | DecodeError::BodyTooLarge { .. } => ErrorCode::Limit,
            DecodeError::HeaderChecksum { .. } | DecodeError::ChunkChecksum { .. } => ErrorCode::Corrupt,
            DecodeError::NotAuthenticated { .. } => ErrorCode::Auth,
            DecodeError::Lengths { .. }
            | DecodeError::UnknownNumber { .. }
            | DecodeError::Header { .. }
            | DecodeError::Field { .. }
            | DecodeError::NoBody { .. } => ErrorCode::Protocol,
        };
        Self::new(code, error.to_string())
    }
}
