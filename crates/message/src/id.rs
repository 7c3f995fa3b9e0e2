use std::fmt;

use bytes::Bytes;

use crate::Text;

/// Who sends: one producer of one session of one connection. OpenWire's ProducerId.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ProducerId {
    /// Connection id, by convention `ID:host-port-time-n:m`.
    pub connection: Text,
    /// Session number in the connection.
    pub session: i64,
    /// Producer number in the session.
    pub value: i64,
}

/// `connection:session:value`, the first part of a [`MessageId`]'s text.
impl fmt::Display for ProducerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.connection, self.session, self.value)
    }
}

/// Who receives: one consumer of one session of one connection. OpenWire's ConsumerId.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ConsumerId {
    /// Connection id, by convention `ID:host-port-time-n:m`.
    pub connection: Text,
    /// Session number in the connection.
    pub session: i64,
    /// Consumer number in the session.
    pub value: i64,
}

/// `connection:session:value`.
impl fmt::Display for ConsumerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.connection, self.session, self.value)
    }
}

/// Identity of a message: its producer and that producer's running number.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct MessageId {
    /// Who sent it.
    pub producer: ProducerId,
    /// The producer's running number.
    pub sequence: i64,
    /// In what we store: the sequence in its destination (design D2). From Java: a number of that broker.
    pub broker_sequence: i64,
    /// Id given by a foreign system, shown instead of the parts.
    pub text_view: Option<Text>,
}

/// KahaDB's producer key: `connection:session:value:sequence`, whatever the text view says.
impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.producer, self.sequence)
    }
}

impl MessageId {
    /// Reads a producer key. `None` if it has not at least three numbers at its end.
    pub fn from_key(text: &str) -> Option<Self> {
        let mut parts = text.rsplitn(4, ':');
        let sequence = parts.next()?.parse().ok()?;
        let value = parts.next()?.parse().ok()?;
        let session = parts.next()?.parse().ok()?;
        let connection = Text::from(parts.next()?);
        Some(Self { producer: ProducerId { connection, session, value }, sequence, ..Self::default() })
    }
}

/// An XA transaction id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Xid {
    /// Format of the ids; may be negative.
    pub format_id: i32,
    /// Global transaction id, at most 64 bytes by the XA standard.
    pub global: Bytes,
    /// Branch qualifier, at most 64 bytes.
    pub branch: Bytes,
}

/// A transaction, local to one connection or coordinated from outside.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TransactionId {
    /// Begun and ended by one connection.
    Local {
        /// The connection.
        connection: Text,
        /// Its running number.
        value: i64,
    },
    /// Driven by a transaction manager.
    Xa(Xid),
}

/// As ActiveMQ prints them: `TX:connection:number`; XA as `XID:[formatId,globalId=hex,branchId=hex]`,
/// though with two digits for every byte (theirs come sign-extended and without leading zeros).
impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { connection, value } => write!(f, "TX:{connection}:{value}"),
            Self::Xa(xid) => {
                write!(f, "XID:[{},globalId={:x},branchId={:x}]", xid.format_id, xid.global, xid.branch)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_even_with_colons_in_the_connection() {
        for key in ["ID:host-33775-1795371744144-1:1:1:1:1", "a:b:c:1:-1:7", ":0:0:0"] {
            assert_eq!(MessageId::from_key(key).map(|id| id.to_string()).as_deref(), Some(key));
        }
        for key in ["", "1:2:3", "ID:a:b:1", "x:1:1:9223372036854775808"] {
            assert_eq!(MessageId::from_key(key), None, "{key}");
        }
    }
}
