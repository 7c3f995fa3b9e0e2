//! Who may command.
//!
//! A browser on this machine reaches us from 127.0.0.1 as well, on behalf of any page that it shows. Two things keep pages out:
//! they cannot send `application/json` to another origin without asking first, which we never allow; and a page that makes
//! its own name resolve to our address, to be of the same origin, still says that name in `Host`.

use std::net::{IpAddr, SocketAddr};

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, FORWARDED, HOST};
use axum::http::{HeaderMap, StatusCode, Uri};
use kahawai_admin_api::ApiError;

use crate::server::Options;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// A refusal: the status, and what is said with it.
pub(crate) type Refusal = (StatusCode, ApiError);

/// Whether a command from `peer` may be carried out.
pub(crate) fn may_command(
    options: &Options,
    peer: SocketAddr,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), Refusal> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let media_type =
        text(CONTENT_TYPE.as_str()).and_then(|value| value.split(';').next()).unwrap_or_default();
    if !media_type.trim().eq_ignore_ascii_case("application/json") {
        return Err(refusal(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "a command has to be application/json",
            "send the header Content-Type: application/json",
        ));
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (hosts.next().and_then(|value| value.to_str().ok()), hosts.next()) {
        (Some(host), None) => host,
        _ => return Err(refusal(StatusCode::BAD_REQUEST, "exactly one Host header is needed", "")),
    };
    for name in [Some(host), uri.authority().map(axum::http::uri::Authority::as_str)].into_iter().flatten() {
        if !is_ours(options, name) {
            return Err(refusal(
                StatusCode::FORBIDDEN,
                &format!("commands are not taken under the name '{name}'"),
                "use the address as a number, or add the name to the node's configuration",
            ));
        }
    }
    if let Some(token) = &options.token {
        let given = text(AUTHORIZATION.as_str()).and_then(|value| value.split_once(' '));
        let given =
            given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, given)| given.trim());
        return match given {
            Some(given) if !token.is_empty() && same(given.as_bytes(), token.as_bytes()) => Ok(()),
            Some(_) => Err(refusal(StatusCode::UNAUTHORIZED, "the token is not this node's", "")),
            None => Err(refusal(
                StatusCode::UNAUTHORIZED,
                "commands need this node's token",
                "send the header Authorization: Bearer TOKEN (kahawai cluster: --token-file)",
            )),
        };
    }
    // Behind a proxy on this machine everybody would come from here.
    let forwarded = headers.contains_key(FORWARDED) || headers.contains_key(X_FORWARDED_FOR);
    if !peer.ip().to_canonical().is_loopback() || forwarded {
        return Err(refusal(
            StatusCode::FORBIDDEN,
            "without a token, commands are taken from this machine only",
            "give the command on the node's own machine, or configure a token",
        ));
    }
    Ok(())
}

fn refusal(status: StatusCode, error: &str, advice: &str) -> Refusal {
    (status, ApiError { error: error.to_owned(), advice: advice.to_owned() })
}

/// An address as a number belongs to nobody else's page; a name does if it was configured.
fn is_ours(options: &Options, host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let is_port = |text: &str| text.is_empty() || text.strip_prefix(':').is_some_and(is_number);
        return rest
            .split_once(']')
            .is_some_and(|(name, port)| is_port(port) && name.parse::<std::net::Ipv6Addr>().is_ok());
    }
    let name = match host.split_once(':') {
        Some((name, port)) if is_number(port) => name,
        Some(_) => return false,
        None => host,
    };
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || options.host_names.iter().any(|ours| ours.eq_ignore_ascii_case(name))
}

fn is_number(port: &str) -> bool {
    port.parse::<u16>().is_ok()
}

/// Takes as long for a token that is wrong at its beginning as for one that is wrong at its end.
fn same(given: &[u8], token: &[u8]) -> bool {
    given.len() == token.len()
        && std::hint::black_box(given.iter().zip(token).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    const HERE: &str = "127.0.0.1:40000";
    const JSON: (&str, &str) = ("content-type", "application/json");
    const LOCAL: (&str, &str) = ("host", "127.0.0.1:8161");

    fn open() -> Options {
        Options { host_names: vec!["broker-a.example".to_owned()], ..Options::default() }
    }

    fn secret() -> Options {
        Options { token: Some("s3cret".to_owned()), ..open() }
    }

    /// `None`: it may.
    fn check(options: &Options, peer: &str, headers: &[(&'static str, &str)], expected: Option<u16>) {
        let map = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
        let mut all = HeaderMap::new();
        for (name, value) in map {
            all.append(name, value);
        }
        let found = may_command(options, peer.parse().unwrap(), &Uri::from_static("/cluster/promote"), &all);
        assert_eq!(
            found.as_ref().err().map(|(status, _)| status.as_u16()),
            expected,
            "{peer} {headers:?} {found:?}"
        );
    }

    #[test]
    fn without_a_token_this_machine_may_command_and_nobody_else() {
        for here in [HERE, "[::1]:40000", "[::ffff:127.0.0.1]:40000", "127.8.8.8:1"] {
            check(&open(), here, &[JSON, LOCAL], None);
        }
        for there in ["10.0.0.7:40000", "[fe80::1]:40000", "[::ffff:10.0.0.7]:40000"] {
            check(&open(), there, &[JSON, LOCAL], Some(403));
        }
    }

    #[test]
    fn a_proxy_on_this_machine_is_not_this_machine() {
        check(&open(), HERE, &[JSON, LOCAL, ("x-forwarded-for", "10.0.0.7")], Some(403));
        check(&open(), HERE, &[JSON, LOCAL, ("forwarded", "for=10.0.0.7")], Some(403));
    }

    #[test]
    fn with_a_token_whoever_has_it_may_command() {
        let there = "10.0.0.7:40000";
        check(&secret(), there, &[JSON, LOCAL, ("authorization", "Bearer s3cret")], None);
        check(&secret(), there, &[JSON, LOCAL, ("authorization", "bearer  s3cret ")], None);
        for wrong in
            ["Bearer s3creT", "Bearer s3cre", "Bearer s3crets", "Bearer ", "Bearer", "Basic s3cret", "s3cret"]
        {
            check(&secret(), HERE, &[JSON, LOCAL, ("authorization", wrong)], Some(401));
        }
        check(&secret(), HERE, &[JSON, LOCAL], Some(401));
        // An empty token is nobody's.
        let empty = Options { token: Some(String::new()), ..open() };
        check(&empty, HERE, &[JSON, LOCAL, ("authorization", "Bearer ")], Some(401));
    }

    #[test]
    fn what_a_foreign_page_can_send_without_asking_is_refused() {
        check(&open(), HERE, &[LOCAL], Some(415));
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=application/json",
            "",
        ] {
            check(&open(), HERE, &[("content-type", kind), LOCAL], Some(415));
        }
        check(&open(), HERE, &[("content-type", "Application/JSON; charset=utf-8"), LOCAL], None);
    }

    #[test]
    fn a_name_that_somebody_else_may_own_is_refused() {
        for host in [
            "localhost",
            "LOCALHOST:8161",
            "10.0.0.7",
            "[::1]",
            "[::1]:8161",
            "broker-a.example:8161",
            "Broker-A.Example",
        ] {
            check(&open(), HERE, &[JSON, ("host", host)], None);
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8161",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:x",
            "[::1",
            "[::1]x",
            "[127.0.0.1]",
            "[evil.example]",
            "::1",
            "broker-a.example.evil",
            "localhost:1:2",
            "localhost:99999",
        ] {
            check(&open(), HERE, &[JSON, ("host", host)], Some(403));
            check(&secret(), HERE, &[JSON, ("host", host), ("authorization", "Bearer s3cret")], Some(403));
        }
        check(&open(), HERE, &[JSON], Some(400));
        check(&open(), HERE, &[JSON, LOCAL, ("host", "evil.example")], Some(400));
    }

    #[test]
    fn a_target_with_a_foreign_name_is_refused() {
        let headers = [(CONTENT_TYPE, "application/json"), (HOST, "127.0.0.1")];
        let headers: HeaderMap =
            headers.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
        let uri = Uri::from_static("http://evil.example/cluster/step-down");
        let refused = may_command(&open(), HERE.parse().unwrap(), &uri, &headers);
        assert_eq!(refused.unwrap_err().0, StatusCode::FORBIDDEN);
    }
}
