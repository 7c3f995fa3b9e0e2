use std::pin::Pin;

use kahawai_admin_api::{ApiError, ClusterCommand, Status, StoredRecord};

/// A command under way: what was done, in words, or why not.
pub type CommandFuture = Pin<Box<dyn Future<Output = Result<String, CommandError>> + Send>>;

/// What the API shows and commands.
pub trait Control: Send + Sync + 'static {
    /// How the node is now. May wait for a lock; called from a thread where that hurts nobody, one call at a time.
    fn status(&self) -> Status;

    /// What the node has stored of its cluster's record. Reads its disk; called as [`status`](Self::status) is, beside it.
    ///
    /// # Errors
    /// The node is in no cluster, or what it has stored cannot be read.
    fn stored_record(&self) -> Result<StoredRecord, CommandError>;

    /// Begins to carry out a command. The future is driven to its end even if whoever asked has gone.
    fn command(&self, command: ClusterCommand) -> CommandFuture;
}

/// What kind of reason it is that a command was not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandErrorKind {
    /// What was asked for makes no sense: 400.
    Invalid,
    /// There is no such node: 404.
    NotFound,
    /// Not in this state, or not at this node: 409.
    Refused,
    /// The election service, or another node that is needed, does not answer: 503.
    Unavailable,
    /// It was begun and went wrong, or its outcome is unknown: 500.
    Failed,
}

/// Why a command was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text}")]
pub struct CommandError {
    /// What kind of reason.
    pub kind: CommandErrorKind,
    /// The reason, in words.
    pub text: String,
    /// What to do about it; may be empty.
    pub advice: String,
}

impl CommandError {
    /// Without advice.
    pub fn new(kind: CommandErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), advice: String::new() }
    }

    /// The same with advice.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        Self { error: error.text, advice: error.advice }
    }
}
