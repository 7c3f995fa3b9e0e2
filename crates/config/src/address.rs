use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Longest host name that DNS knows.
const HOST_BYTES_MAX: usize = 253;

/// A host and a port. An IPv6 host is kept without its brackets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address {
    /// Name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Address {
    /// Whether the host stands for every address of the machine, so that nobody can be sent to it.
    pub fn is_unspecified(&self) -> bool {
        self.host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_unspecified())
            || self.host.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_unspecified())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why a text is no address or URI.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    /// No `:port` at the end.
    #[error("'{0}' has no port; write host:port")]
    PortMissing(String),
    /// A port that is not a number below 65536.
    #[error("'{0}' is not a port; write a number from 0 to 65535")]
    Port(String),
    /// A host that cannot be one.
    #[error("'{0}' is not a host; write a name, an IPv4 address, or an IPv6 address in brackets")]
    Host(String),
    /// Another scheme, or none.
    #[error("'{text}' does not begin with {scheme}://")]
    Scheme {
        /// What was given.
        text: String,
        /// What it should be.
        scheme: &'static str,
    },
    /// Something after the port.
    #[error("'{0}' says more than host and port")]
    Rest(String),
    /// Peers are sent to this address.
    #[error("{0} cannot be reached from elsewhere; write the host by which the other nodes reach this one")]
    Unspecified(Address),
    /// No path in ZooKeeper, or the root.
    #[error("'{0}' does not say where the cluster is; write zk://host:2181/path/of/the/cluster")]
    PathMissing(String),
    /// A path that ZooKeeper does not take.
    #[error("'{0}' is not a path in ZooKeeper")]
    Path(String),
}

/// Host and what stands behind its colon.
fn split(text: &str) -> Result<(&str, Option<&str>), AddressError> {
    let wrong = || AddressError::Host(text.to_owned());
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            host.parse::<Ipv6Addr>().map_err(|_| wrong())?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(wrong()),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_name = !host.is_empty() && host.len() <= HOST_BYTES_MAX && host.bytes().all(plain);
    if is_name || text.starts_with('[') { Ok((host, port)) } else { Err(wrong()) }
}

fn parse_port(text: &str) -> Result<u16, AddressError> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| AddressError::Port(text.to_owned()))
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = split(text)?;
        let port = port.ok_or_else(|| AddressError::PortMissing(text.to_owned()))?;
        Ok(Self { host: host.to_owned(), port: parse_port(port)? })
    }
}

/// A connector's URI in parts; `options` is what follows the question mark.
pub(crate) struct ConnectorUri<'a> {
    pub scheme: &'a str,
    pub address: &'a str,
    pub options: &'a str,
}

/// Cuts `scheme://address/?options`; `None` without a scheme. A path is left in the address unless it is a lone slash.
pub(crate) fn connector_uri(text: &str) -> Option<ConnectorUri<'_>> {
    let (scheme, rest) = text.split_once("://")?;
    let (address, options) = rest.split_once('?').unwrap_or((rest, ""));
    Some(ConnectorUri { scheme, address: address.strip_suffix('/').unwrap_or(address), options })
}

/// Reads `kdbr://host:port`.
///
/// # Errors
/// Another scheme, no port, anything behind the port, a host that stands for all addresses.
pub fn parse_kdbr(text: &str) -> Result<Address, AddressError> {
    let scheme = || AddressError::Scheme { text: text.to_owned(), scheme: "kdbr" };
    let rest = text.strip_prefix("kdbr://").ok_or_else(scheme)?;
    if rest.contains(['/', '?', '#']) {
        return Err(AddressError::Rest(text.to_owned()));
    }
    reachable(rest.parse()?)
}

/// Passes an address that other nodes can be given.
pub(crate) fn reachable(address: Address) -> Result<Address, AddressError> {
    if address.is_unspecified() { Err(AddressError::Unspecified(address)) } else { Ok(address) }
}

/// ZooKeeper's port if none is written, as in ActiveMQ.
const ZOOKEEPER_PORT: u16 = 2181;

/// Reads `zk://host:port,host:port/path`: the servers and the path. Without a port it is 2181.
///
/// # Errors
/// Another scheme, a bad host or port, no path, a path that ZooKeeper would not take.
pub fn parse_zk(text: &str) -> Result<(Vec<Address>, String), AddressError> {
    let scheme = || AddressError::Scheme { text: text.to_owned(), scheme: "zk" };
    let rest = text.strip_prefix("zk://").ok_or_else(scheme)?;
    let (hosts, path) = rest.split_once('/').ok_or_else(|| AddressError::PathMissing(text.to_owned()))?;
    let servers = hosts.split(',').map(|server| match split(server)? {
        (_, Some(_)) => server.parse(),
        (host, None) => Ok(Address { host: host.to_owned(), port: ZOOKEEPER_PORT }),
    });
    let servers = servers.collect::<Result<Vec<_>, _>>()?;
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return Err(AddressError::PathMissing(text.to_owned()));
    }
    // `?` and `#` are legal there, but whoever writes them means something else.
    let bad = |part: &str| part.is_empty() || part == "." || part == "..";
    let odd =
        |c: char| c.is_control() || c.is_whitespace() || matches!(c, '?' | '#' | '\u{fff0}'..='\u{ffff}');
    if path.split('/').any(bad) || path.contains(odd) {
        return Err(AddressError::Path(format!("/{path}")));
    }
    Ok((servers, format!("/{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16) -> Address {
        Address { host: host.into(), port }
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        for (text, expected) in [
            ("localhost:61613", address("localhost", 61613)),
            ("0.0.0.0:0", address("0.0.0.0", 0)),
            ("[::1]:61613", address("::1", 61613)),
            ("broker_1.example-2.org:1", address("broker_1.example-2.org", 1)),
        ] {
            assert_eq!(text.parse(), Ok(expected.clone()), "{text}");
            assert_eq!(expected.to_string(), text);
        }
        for text in [
            "",
            "localhost",
            ":1",
            "a b:1",
            "::1:5",
            "[::1]",
            "[x]:1",
            "[::1",
            "h:",
            "h:-1",
            "h:+1",
            "h:65536",
            "u@h:1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_kdbr_uri_is_an_address_that_others_can_reach() {
        assert_eq!(parse_kdbr("kdbr://localhost:60001"), Ok(address("localhost", 60001)));
        assert_eq!(parse_kdbr("kdbr://[::1]:60001"), Ok(address("::1", 60001)));
        for text in [
            "localhost:60001",
            "tcp://localhost:60001",
            "kdbr://h",
            "kdbr://h:1/x",
            "kdbr://0.0.0.0:1",
            "kdbr://[::]:1",
        ] {
            assert!(parse_kdbr(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_zk_uri_has_servers_and_a_path() {
        let check = |text: &str, servers: &[(&str, u16)], path: &str| {
            let servers = servers.iter().map(|&(host, port)| address(host, port)).collect();
            assert_eq!(parse_zk(text), Ok((servers, path.to_owned())), "{text}");
        };
        check("zk://localhost:2181/activemq/ha", &[("localhost", 2181)], "/activemq/ha");
        check("zk://localhost/activemq/", &[("localhost", 2181)], "/activemq");
        check("zk://a:1,b,[::1]:3/c", &[("a", 1), ("b", 2181), ("::1", 3)], "/c");
        for text in [
            "zk://h:1",
            "zk://h:1/",
            "zk://h:1//",
            "zk:///x",
            "zk://h:1/a//b",
            "zk://h/../b",
            "zk://h/a?b",
            "h:1/x",
            "zk://a,/x",
        ] {
            assert!(parse_zk(text).is_err(), "{text}");
        }
    }
}
