//! Who may ask: the `Host` and `Origin` checks that keep other web sites out, and the token of
//! administrative calls.

use std::net::{IpAddr, SocketAddr};

use sky_api::Code;
use warp::http::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use warp::http::{Method, Request, Version};

use super::problem::Refused;
use super::route::Route;
use crate::config::Secret;

/// Refuses requests that a web page of another site made its visitor's browser send.
///
/// `Host` must be an IP address, `localhost` or one of `names`: a page whose own name was rebound
/// to this agent's address shows up with that name. A browser tells with `Origin` which site a
/// changing request comes from; reading across sites it forbids by itself, as nothing here allows it.
pub(super) fn check<B>(request: &Request<B>, names: &[String]) -> Result<(), Refused> {
    // As in `CONNECT host:port` and `GET name`: looking for the route of such a request would panic.
    if request.uri().path_and_query().is_none() {
        return Err(Refused::new(Code::BadRequest, "The request names no path."));
    }
    // HTTP/2 has the authority in the URI instead.
    let header = request.headers().get(HOST).map(|value| value.to_str().unwrap_or_default());
    let Some(authority) = header.or_else(|| request.uri().authority().map(|part| part.as_str()))
    else {
        return if request.version() < Version::HTTP_11 {
            Ok(())
        } else {
            Err(Refused::new(Code::BadRequest, "The request has no Host header."))
        };
    };
    if !is_answered(host_of(authority), names) {
        let detail = format!("This agent does not answer to the host name `{authority}`.");
        let hint = "Use the agent's IP address, localhost, or the name it advertises.";
        return Err(Refused::new(Code::ForbiddenOrigin, detail).hint(hint));
    }
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(());
    }
    let Some(origin) = request.headers().get(ORIGIN) else { return Ok(()) };
    let site = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    if site.is_some_and(|(_, site)| without_default_port(site) == without_default_port(authority)) {
        return Ok(());
    }
    let detail = "A web page of another site may not change anything here.";
    Err(Refused::new(Code::ForbiddenOrigin, detail).hint("Use the agent's own page at `/`."))
}

fn is_answered(host: &str, names: &[String]) -> bool {
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    literal.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || names.iter().any(|name| name.eq_ignore_ascii_case(host))
}

/// The host in `host`, `host:port` or `[address]:port`.
pub(super) fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => authority,
    }
}

fn without_default_port(authority: &str) -> &str {
    let shorter = authority.strip_suffix(":80").or_else(|| authority.strip_suffix(":443"));
    shorter.unwrap_or(authority)
}

/// Lets an administrative call through if it brings the token, or, where no token is configured, if
/// it comes from this machine.
pub(super) fn admit(
    headers: &HeaderMap,
    remote: SocketAddr,
    token: Option<&Secret>,
) -> Result<(), Refused> {
    let Some(token) = token else {
        return if remote.ip().to_canonical().is_loopback() {
            Ok(())
        } else {
            let detail = "This agent has no token: administrative calls are for its own machine.";
            let hint = "Call it on 127.0.0.1, or start the agents with a token.";
            Err(Refused::new(Code::Unauthorized, detail).hint(hint))
        };
    };
    if bears(headers, token) {
        return Ok(());
    }
    let detail = "Administrative calls need the token of the deployment.";
    Err(Refused::new(Code::Unauthorized, detail).hint(SEND_IT))
}

const SEND_IT: &str = "Send it as `Authorization: Bearer TOKEN`.";

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Everyone.
    Open,
    /// Everyone, or, where the agent wants the token of every client, those with the token.
    Clients,
    /// Those with the token, see [`admit`].
    Administrators,
}

/// Lets a client's call through if it brings the token, or is open to everyone.
pub(super) fn admit_client<B>(request: &Request<B>, token: &Secret) -> Result<(), Refused> {
    let path = request.uri().path();
    let is_open = Route::of(path).is_some_and(|route| route.access() == Access::Open);
    if is_open || bears(request.headers(), token) {
        return Ok(());
    }
    let detail = "This agent answers only to clients with the token of the deployment.";
    Err(Refused::new(Code::Unauthorized, detail).hint(SEND_IT))
}

fn bears(headers: &HeaderMap, token: &Secret) -> bool {
    let offered = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, offered) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(offered)
    });
    offered.is_some_and(|offered| token.matches(offered.trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(method: Method, host: &str, origin: Option<&str>) -> Result<(), Code> {
        let mut request = Request::builder().method(method).uri("/kv/a").header(HOST, host);
        if let Some(origin) = origin {
            request = request.header(ORIGIN, origin);
        }
        check(&request.body(()).unwrap(), &["sky-1.example".to_owned()]).map_err(|e| e.code())
    }

    #[test]
    fn only_known_hosts_are_answered() {
        for host in [
            "127.0.0.1:4321",
            "[::1]:4321",
            "[::1]",
            "10.1.2.3",
            "LOCALHOST:4321",
            "sky-1.example:4321",
            "Sky-1.example",
        ] {
            assert_eq!(outcome(Method::GET, host, None), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:4321",
            "127.0.0.1.evil.example",
            "",
            ":4321",
            "user@127.0.0.1",
            "sky-1.example.evil",
        ] {
            assert_eq!(outcome(Method::GET, host, None), Err(Code::ForbiddenOrigin), "{host}");
        }
    }

    #[test]
    fn other_sites_change_nothing() {
        let host = "127.0.0.1:4321";
        assert_eq!(outcome(Method::PUT, host, Some("http://127.0.0.1:4321")), Ok(()));
        assert_eq!(outcome(Method::PUT, "10.0.0.1:80", Some("http://10.0.0.1")), Ok(()));
        assert_eq!(outcome(Method::PUT, host, None), Ok(()));
        assert_eq!(outcome(Method::GET, host, Some("http://evil.example")), Ok(()));
        for origin in ["http://evil.example", "null", "http://127.0.0.1:8080", "127.0.0.1:4321"] {
            let refused = outcome(Method::DELETE, host, Some(origin));
            assert_eq!(refused, Err(Code::ForbiddenOrigin), "{origin}");
        }
    }

    #[test]
    fn a_missing_host_is_only_forgiven_to_old_clients() {
        let ask = |version| {
            let request = Request::builder().version(version).uri("/").body(()).unwrap();
            check(&request, &[]).is_ok()
        };
        assert!(ask(Version::HTTP_10));
        assert!(!ask(Version::HTTP_11));
    }

    #[test]
    fn clients_bring_the_token_for_everything_but_health_and_the_page() {
        let token = Secret::new(b"open sesame");
        let asked = |path: &str, offered: Option<&str>| {
            let mut request = Request::builder().uri(path);
            if let Some(offered) = offered {
                request = request.header(AUTHORIZATION, offered);
            }
            admit_client(&request.body(()).unwrap(), &token).is_ok()
        };
        for path in ["/", "/page/0123/page.js", "/healthz", "/readyz", "/openapi.json"] {
            assert!(asked(path, None), "{path}");
        }
        for path in
            ["/kv/a", "/kv", "/ring", "/ring.dot", "/local", "/events", "/metrics", "/pages"]
        {
            assert!(!asked(path, None) && !asked(path, Some("Bearer open")), "{path}");
            assert!(asked(path, Some("bearer open sesame")), "{path}");
        }
    }

    #[test]
    fn administrators_bring_the_token_or_come_from_this_machine() {
        let (near, far) = ("127.0.0.1:9".parse().unwrap(), "192.0.2.1:9".parse().unwrap());
        let token = Secret::new(b"open sesame");
        let bearing = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, text.parse().unwrap());
            headers
        };
        let right = bearing("bearer open sesame");
        assert!(admit(&HeaderMap::new(), near, None).is_ok());
        assert!(admit(&HeaderMap::new(), "[::ffff:127.0.0.1]:9".parse().unwrap(), None).is_ok());
        assert!(admit(&right, far, None).is_err());
        assert!(admit(&right, far, Some(&token)).is_ok());
        for wrong in ["Bearer open", "Bearer open sesame!", "Basic open sesame", "Bearer"] {
            assert!(admit(&bearing(wrong), near, Some(&token)).is_err(), "{wrong}");
        }
        assert!(admit(&HeaderMap::new(), near, Some(&token)).is_err());
    }
}
