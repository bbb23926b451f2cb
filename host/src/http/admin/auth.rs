//! Who may use the operators' routes.
//!
//! With an admin token: whoever sends it. Without one: this machine only, asked by its own name and not from a page of
//! somebody else's (a browser would otherwise carry any site's request to loopback).

use std::net::{IpAddr, SocketAddr};

use hmac::{Hmac, Mac};
use http::request::Parts;
use http::uri::Authority;
use http::{Uri, header};
use sha2::Sha256;

use crate::http::Http;
use crate::http::problem::Problem;

pub fn check(http: &Http, peer: SocketAddr, head: &Parts) -> Result<(), Problem> {
    match &http.admin_token {
        Some(token) => with_token(token, head),
        None => from_loopback(peer, head),
    }
}

fn with_token(token: &str, head: &Parts) -> Result<(), Problem> {
    let given = head.headers.get(header::AUTHORIZATION).ok_or(Problem::Unauthorized)?;
    let given = given.as_bytes().strip_prefix(b"Bearer ").ok_or(Problem::Unauthorized)?;
    if same(token.as_bytes(), given) {
        Ok(())
    } else {
        Err(Problem::Forbidden("The admin token is not the right one."))
    }
}

/// Compares in a time that does not depend on where the two differ: as MACs under a random key.
fn same(a: &[u8], b: &[u8]) -> bool {
    let mac = |text: &[u8], key: &[u8; 32]| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(text);
        mac
    };
    let key: [u8; 32] = rand::random();
    mac(a, &key).verify_slice(&mac(b, &key).finalize().into_bytes()).is_ok()
}

fn from_loopback(peer: SocketAddr, head: &Parts) -> Result<(), Problem> {
    const HINT: &str = "Without an admin token this route answers on this machine only: use localhost, or start the server with --admin-token.";
    if !peer.ip().to_canonical().is_loopback() {
        return Err(Problem::Forbidden(HINT));
    }
    let authority = authority(head);
    if !authority.as_ref().is_some_and(|authority| names_loopback(authority.host())) {
        return Err(Problem::Forbidden(HINT));
    }
    if let Some(origin) = head.headers.get(header::ORIGIN) {
        let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
        let own = origin.as_ref().and_then(Uri::authority).zip(authority.as_ref()).is_some_and(|(a, b)| a == b);
        if !own {
            return Err(Problem::Forbidden(
                "A page from another origin may not use this route without an admin token.",
            ));
        }
    }
    Ok(())
}

/// The name that the client asked by: of its `Host`, or with HTTP/2 of `:authority`. Two that differ are none.
fn authority(head: &Parts) -> Option<Authority> {
    let host = head.headers.get(header::HOST).map(|host| host.to_str().ok()?.parse::<Authority>().ok());
    match (host, head.uri.authority()) {
        (None, asked) => asked.cloned(),
        (Some(host), None) => host,
        (Some(host), Some(asked)) => host.filter(|host| host == asked),
    }
}

fn names_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback(headers: &[(&str, &str)]) -> bool {
        asked("/v1/rules", headers)
    }

    fn asked(uri: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = http::Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let head = request.body(()).expect("a request").into_parts().0;
        from_loopback(([127, 0, 0, 1], 5000).into(), &head).is_ok()
    }

    #[test]
    fn loopback_is_asked_by_its_own_name() {
        assert!(loopback(&[("host", "localhost:8080")]));
        assert!(loopback(&[("host", "127.0.0.1:8080")]));
        assert!(loopback(&[("host", "[::1]:8080")]));
        assert!(!loopback(&[("host", "quipu.example:8080")]), "a name that was rebound to loopback");
        assert!(!loopback(&[]));
    }

    #[test]
    fn http_2_names_it_without_a_host() {
        assert!(asked("http://localhost:8080/v1/rules", &[]));
        assert!(asked("http://localhost:8080/v1/rules", &[("host", "localhost:8080")]));
        assert!(!asked("http://quipu.example:8080/v1/rules", &[]));
        assert!(!asked("http://quipu.example:8080/v1/rules", &[("host", "localhost:8080")]));
        assert!(!asked("http://localhost:8080/v1/rules", &[("host", "quipu.example:8080")]));
        assert!(!asked("http://localhost:8080/v1/rules", &[("host", "no host")]));
        assert!(!asked("http://localhost:8080/v1/rules", &[("origin", "http://evil.example")]));
    }

    #[test]
    fn foreign_pages_are_refused() {
        assert!(loopback(&[("host", "localhost:8080"), ("origin", "http://localhost:8080")]));
        assert!(!loopback(&[("host", "localhost:8080"), ("origin", "http://evil.example")]));
        assert!(!loopback(&[("host", "localhost:8080"), ("origin", "http://localhost:3000")]));
        assert!(!loopback(&[("host", "localhost:8080"), ("origin", "null")]));
    }

    #[test]
    fn tokens_must_be_equal() {
        assert!(same(b"secret", b"secret"));
        assert!(!same(b"secret", b"secre") && !same(b"secret", b"secreT") && !same(b"secret", b""));
    }
}
