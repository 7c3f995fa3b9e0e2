use std::fmt;
use std::sync::Arc;

use kahawai_types::{BootId, Millis, NodeId};

/// Where the cluster keeps its record: `zk://host:port[,host:port]/path`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uri {
    /// `host:port` each; the port is 2181 unless it is named.
    pub servers: Vec<String>,
    /// Absolute, without a slash at its end.
    pub path: String,
}

/// A text that names no ZooKeeper path.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{text}' is not zk://host:port[,host:port]/path: {why}")]
pub struct ParseUriError {
    text: String,
    why: &'static str,
}

const DEFAULT_PORT: &str = "2181";

impl std::str::FromStr for Uri {
    type Err = ParseUriError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |why| ParseUriError { text: text.to_owned(), why };
        let rest = text.strip_prefix("zk://").ok_or(wrong("it does not begin with zk://"))?;
        let (servers, path) = rest.split_once('/').ok_or(wrong("it has no path"))?;
        let path = path.trim_end_matches('/');
        if path.is_empty() {
            return Err(wrong("it has no path"));
        }
        if path.split('/').any(|part| !is_path_part(part)) {
            return Err(wrong("its path has an empty or impossible part"));
        }
        let mut parsed = Vec::new();
        for server in servers.split(',') {
            let (host, port) = match server.rsplit_once(':') {
                // The colons of an IPv6 address without a port.
                _ if server.ends_with(']') => (server, DEFAULT_PORT),
                Some((host, port)) => (host, port),
                None => (server, DEFAULT_PORT),
            };
            let is_host = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '@');
            let is_bracketed = host.starts_with('[') && host.ends_with(']');
            if !is_host || (host.contains(':') && !is_bracketed) {
                return Err(wrong("a server has no host, or an IPv6 address without brackets"));
            }
            if !port.parse::<u16>().is_ok_and(|port| port > 0) {
                return Err(wrong("a server's port is no number from 1 to 65535"));
            }
            parsed.push(format!("{host}:{port}"));
        }
        Ok(Self { servers: parsed, path: format!("/{path}") })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zk://{}{}", self.servers.join(","), self.path)
    }
}

/// What ZooKeeper takes between two slashes.
pub(crate) fn is_path_part(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && !part.contains(|c: char| c == '/' || c.is_control())
}

/// Who we are to ZooKeeper's access control (scheme `digest`).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// In clear, as the scheme demands.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What a provider needs to know.
#[derive(Clone)]
pub struct Options {
    /// Where.
    pub uri: Uri,
    /// What we ask for. The servers decide, between 2 and 20 of their ticks.
    pub session_timeout_ms: u32,
    /// With them what we make belongs to this user alone; without, everybody may read and change it.
    pub credentials: Option<Credentials>,
    /// Our name; it becomes the name of a node in ZooKeeper.
    pub node: NodeId,
    /// Our process.
    pub boot: BootId,
    /// The boot clock: it counts while the machine sleeps.
    pub clock: Arc<dyn Fn() -> Millis + Send + Sync>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("uri", &self.uri)
            .field("session_timeout_ms", &self.session_timeout_ms)
            .field("credentials", &self.credentials)
            .field("node", &self.node)
            .field("boot", &self.boot)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_servers_and_a_path() {
        let uri = |text: &str| text.parse::<Uri>().map(|uri| uri.to_string());
        for (text, same) in [
            ("zk://localhost:2181/activemq/ha", "zk://localhost:2181/activemq/ha"),
            ("zk://a,b:1,c:65535/x/", "zk://a:2181,b:1,c:65535/x"),
            ("zk://[::1]:2182,[::2]/x", "zk://[::1]:2182,[::2]:2181/x"),
        ] {
            assert_eq!(uri(text), Ok(same.to_owned()));
        }
    }

    #[test]
    fn a_text_that_is_no_uri_is_refused() {
        for text in [
            "",
            "zk:",
            "zk://",
            "zk://a",
            "zk://a/",
            "zk:///x",
            "zk://a:0/x",
            "zk://a:65536/x",
            "zk://a:b/x",
            "zk://::1/x",
            "zk://a,/x",
            "zk://a//x",
            "zk://a/x/../y",
            "zk://user@a/x",
            "http://a/x",
        ] {
            assert!(text.parse::<Uri>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let credentials = Credentials { user: "u".to_owned(), password: "secret".to_owned() };
        assert!(!format!("{credentials:?}").contains("secret"));
    }
}
