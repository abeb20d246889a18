//! Who may ask: the token, and that no web page asks in the operator's name.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST, ORIGIN};

use crate::error::{ApiError, ErrorCode};

/// Checks the headers of a request. `open` paths need no token.
pub(crate) fn check(headers: &HeaderMap, token: Option<&str>, open: bool) -> Result<(), ApiError> {
    match token {
        Some(token) if !open => check_token(headers, token)?,
        // A page of a rebound name does not know the token, so any host will do where one is asked for.
        Some(_) => {}
        None => check_host(headers)?,
    }
    check_origin(headers)
}

fn check_token(headers: &HeaderMap, token: &str) -> Result<(), ApiError> {
    let given = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
        .map(|(_, given)| given);
    match given {
        Some(given) if equal(given, token.as_bytes()) => Ok(()),
        _ => Err(ApiError::new(
            ErrorCode::Unauthorized,
            "The request carries no valid token.",
            "send `Authorization: Bearer …` with the content of `admin.token_file` (--token-file)",
        )),
    }
}

/// Takes the same time wherever the first difference is.
fn equal(given: &[u8], token: &[u8]) -> bool {
    let mut difference = given.len() ^ token.len();
    for (a, b) in given.iter().zip(token.iter().cycle()) {
        difference |= usize::from(a ^ b);
    }
    difference == 0
}

/// DNS rebinding needs a name: without a token only addresses and `localhost` are accepted as host.
fn check_host(headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    if bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    let remedy = "use the address or `localhost`; for other names set `admin.token_file`";
    Err(ApiError::new(ErrorCode::Forbidden, format!("The host \"{host}\" is not accepted."), remedy))
}

/// A browser names the page's origin; only pages of this very server may ask.
fn check_origin(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let authority =
        origin.to_str().ok().and_then(|text| text.split_once("://")).map(|(_, authority)| authority);
    let host = headers.get(HOST).and_then(|value| value.to_str().ok());
    if authority.is_some() && authority == host {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::Forbidden,
        "The request comes from a page of another origin.",
        "open the page from this server",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_equal_only_when_they_are() {
        assert!(equal(b"abc", b"abc"));
        for (given, token) in
            [(&b"abd"[..], &b"abc"[..]), (b"ab", b"abc"), (b"abcabc", b"abc"), (b"", b"abc"), (b"a", b"")]
        {
            assert!(!equal(given, token), "{given:?} {token:?}");
        }
    }
}
