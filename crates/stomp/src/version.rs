/// A version of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Version {
    /// No escapes, values trimmed, subscriptions without id.
    #[default]
    V1_0,
    /// Escapes `\n`, `\c`, `\\`; heart-beats; NACK.
    V1_1,
    /// Escape `\r` too; CRLF line ends; acknowledgements by the MESSAGE's `ack` header.
    V1_2,
}

impl Version {
    /// What a CONNECTED frame and a list of accepted versions call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1_0 => "1.0",
            Self::V1_1 => "1.1",
            Self::V1_2 => "1.2",
        }
    }

    /// For logs and status: `STOMP 1.2`.
    pub const fn protocol_name(self) -> &'static str {
        match self {
            Self::V1_0 => "STOMP 1.0",
            Self::V1_1 => "STOMP 1.1",
            Self::V1_2 => "STOMP 1.2",
        }
    }

    /// The highest version in a comma-separated list that we speak, whatever its order.
    pub fn negotiate(accepted: &str) -> Option<Self> {
        let named =
            |name: &str| [Self::V1_2, Self::V1_1, Self::V1_0].into_iter().find(|v| v.as_str() == name);
        accepted.split(',').filter_map(|name| named(name.trim())).max()
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
