use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A cluster record as the election service keeps it: JSON, and too long for a log, which shows its length instead.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordText(pub String);

impl fmt::Debug for RecordText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What a node can be told about its cluster. `POST /cluster/<name>` with the fields as a JSON object, for example
/// `POST /cluster/promote` with `{"node":"b"}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ClusterCommand {
    /// Lets a node join.
    Add {
        /// Its name.
        node: String,
        /// Its data directory, 32 hex digits; without it the one it comes with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        store: Option<String>,
    },
    /// Takes a node out of the cluster; nobody waits for it any more.
    Remove {
        /// Its name.
        node: String,
        /// Its data directory, 32 hex digits: only that copy of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        store: Option<String>,
    },
    /// Makes another node the primary, without loss.
    Promote {
        /// Its name.
        node: String,
    },
    /// Lets the primary give up its place to whoever of the in-sync set comes first.
    StepDown {},
    /// Makes the node that is asked the primary, whatever the others have: what it does not hold is lost.
    ForcePrimary {
        /// The cluster that is meant, 32 hex digits.
        cluster_id: String,
        /// Whoever asks knows that confirmed messages may be lost.
        accept_data_loss: bool,
    },
    /// Sets how many replicas a confirmation takes at least.
    SetMinimumReplicas {
        /// How many.
        replicas: u32,
    },
    /// Puts back a cluster record that the election service has lost. For a node that says so and is in the record's in-sync set.
    /// Whoever asks has made sure that this is the newest record there was.
    RestoreRecord {
        /// The cluster that is meant, 32 hex digits.
        cluster_id: String,
        /// The newest copy that any node has.
        record: RecordText,
        /// The highest epoch that any node has promised.
        promised_epoch: u64,
    },
}

/// Why a request is no command.
#[derive(Debug)]
pub enum ParseCommandError {
    /// There is none of this name.
    Unknown,
    /// Its fields are wrong: how, in words.
    Fields(String),
}

impl ClusterCommand {
    /// The names of all.
    pub const NAMES: [&'static str; 7] = [
        "add",
        "remove",
        "promote",
        "step-down",
        "force-primary",
        "set-minimum-replicas",
        Self::RESTORE_RECORD,
    ];

    /// The name of the one command that may be long.
    pub const RESTORE_RECORD: &'static str = "restore-record";

    /// As it stands in the path.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Add { .. } => "add",
            Self::Remove { .. } => "remove",
            Self::Promote { .. } => "promote",
            Self::StepDown {} => "step-down",
            Self::ForcePrimary { .. } => "force-primary",
            Self::SetMinimumReplicas { .. } => "set-minimum-replicas",
            Self::RestoreRecord { .. } => Self::RESTORE_RECORD,
        }
    }

    /// Its fields, as the request's body has them.
    pub fn fields(&self) -> Value {
        match serde_json::to_value(self) {
            Ok(Value::Object(mut tagged)) => tagged.remove(self.name()).unwrap_or_default(),
            _ => Value::Null,
        }
    }

    /// Out of the name in the path and the body.
    ///
    /// # Errors
    /// There is no such command, or its fields are missing, unknown or of the wrong kind.
    pub fn parse(name: &str, body: &[u8]) -> Result<Self, ParseCommandError> {
        if !Self::NAMES.contains(&name) {
            return Err(ParseCommandError::Unknown);
        }
        let wrong = |error: serde_json::Error| ParseCommandError::Fields(error.to_string());
        let fields = if body.trim_ascii().is_empty() {
            Map::new()
        } else {
            // Not just any value: a list would be taken for the fields in their order.
            serde_json::from_slice::<Map<String, Value>>(body).map_err(wrong)?
        };
        let tagged = [(name.to_owned(), Value::Object(fields))].into_iter().collect();
        serde_json::from_value(Value::Object(tagged)).map_err(wrong)
    }
}

/// The answer to a command that was carried out, and to questions that are answered with yes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CommandResult {
    /// Always true: a refusal is an [`ApiError`] with a status of its own.
    pub ok: bool,
    /// What was done, or why it is so, in words.
    pub text: String,
}

/// The answer to everything that did not succeed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ApiError {
    /// What is wrong.
    pub error: String,
    /// What to do about it; may be empty.
    #[serde(default)]
    pub advice: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_way_through_path_and_body() {
        let node = || "b".to_owned();
        let commands = [
            ClusterCommand::Add { node: node(), store: Some("0f".to_owned()) },
            ClusterCommand::Remove { node: node(), store: None },
            ClusterCommand::Promote { node: node() },
            ClusterCommand::StepDown {},
            ClusterCommand::ForcePrimary { cluster_id: "1d".to_owned(), accept_data_loss: true },
            ClusterCommand::SetMinimumReplicas { replicas: 2 },
            ClusterCommand::RestoreRecord {
                cluster_id: "1d".to_owned(),
                record: RecordText("{\n  \"format\": 1\n}".to_owned()),
                promised_epoch: u64::MAX,
            },
        ];
        assert_eq!(commands.each_ref().map(ClusterCommand::name), ClusterCommand::NAMES);
        for command in commands {
            let body = command.fields().to_string();
            assert_eq!(ClusterCommand::parse(command.name(), body.as_bytes()).unwrap(), command);
        }
    }

    #[test]
    fn a_command_without_fields_needs_no_body() {
        for body in ["", " \n", "{}"] {
            let parsed = ClusterCommand::parse("step-down", body.as_bytes()).unwrap();
            assert_eq!(parsed, ClusterCommand::StepDown {});
        }
    }

    #[test]
    fn a_record_is_shown_by_its_length() {
        let record = RecordText(" ".repeat(1000));
        let command = ClusterCommand::RestoreRecord { cluster_id: String::new(), record, promised_epoch: 7 };
        let shown = format!("{command:?}");
        assert!(shown.contains("1000 bytes") && shown.len() < 200, "{shown}");
    }

    #[test]
    fn a_slip_in_the_fields_is_named() {
        let check =
            |name: &str, body: &str, expected: &str| match ClusterCommand::parse(name, body.as_bytes()) {
                Err(ParseCommandError::Fields(text)) => assert!(text.contains(expected), "{text}"),
                other => panic!("{name} {body}: {other:?}"),
            };
        check("promote", "{}", "node");
        check("promote", r#"{"node":7}"#, "string");
        check("step-down", r#"{"node":"b"}"#, "unknown field");
        check("force-primary", r#"{"cluster_id":"1d"}"#, "accept_data_loss");
        check("set-minimum-replicas", r#"{"replicas":-1}"#, "u32");
        check("restore-record", r#"{"cluster_id":"1d","promised_epoch":1}"#, "record");
        check("restore-record", r#"{"cluster_id":"1d","promised_epoch":1,"record":{}}"#, "string");
        check("add", "{", "EOF");
        check("add", r#"["b"]"#, "map");
        check("step-down", "null", "map");
    }

    #[test]
    fn a_name_that_is_none_is_told_from_wrong_fields() {
        for name in ["", "Add", "status", "stepdown", "step_down"] {
            assert!(matches!(ClusterCommand::parse(name, b"{}"), Err(ParseCommandError::Unknown)), "{name}");
        }
    }
}
