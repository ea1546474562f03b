//! Who may change state: whoever has the admin token or, when none is set, whoever is on this host.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::request::Request;
use super::response::Refusal;
use crate::config::HttpConfig;

/// Decides whether a request may change state.
#[derive(Clone)]
pub struct Admin(Rule);

#[derive(Clone)]
enum Rule {
    /// No token is set.
    Loopback,
    /// The SHA-256 of the token.
    Token([u8; 32]),
    /// A token is set and cannot be had: nobody may.
    Nobody(String),
}

/// Why the admin token cannot be had. Nothing is served then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The file cannot be read.
    #[error("http.admin_token_file {}: {source}; let the user that runs this process read it", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file holds no token.
    #[error("http.admin_token_file {}: the file is empty; write the token into it", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
}

impl Admin {
    /// Reads the token file that the configuration names, if it names one. White space around the token is left out.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn from_config(config: &HttpConfig) -> Result<Self, AdminError> {
        if config.admin_token_file.is_empty() {
            return Ok(Self(Rule::Loopback));
        }
        let file = Path::new(&config.admin_token_file);
        let text =
            std::fs::read_to_string(file).map_err(|source| AdminError::Unreadable { file: file.to_owned(), source })?;
        match text.trim() {
            "" => Err(AdminError::Empty { file: file.to_owned() }),
            token => Ok(Self(Rule::Token(Sha256::digest(token).into()))),
        }
    }

    /// Refuses everybody: what is left when the token cannot be read.
    pub(super) fn nobody(reason: &AdminError) -> Self {
        Self(Rule::Nobody(reason.to_string()))
    }

    /// Whether this request may change state.
    pub(super) fn check(&self, request: &Request) -> Result<(), Refusal> {
        match &self.0 {
            Rule::Nobody(reason) => Err(Refusal::new(403, format!("nobody may change state: {reason}"))),
            Rule::Token(expected) => {
                let given = request.authorization.as_deref().and_then(bearer);
                let given: [u8; 32] = Sha256::digest(given.unwrap_or_default()).into();
                if same(&given, expected) {
                    Ok(())
                } else {
                    Err(Refusal::new(401, "this needs the admin token: send `Authorization: Bearer TOKEN`"))
                }
            }
            Rule::Loopback if !from_loopback(request) => {
                Err(Refusal::new(403, "changes are taken from this host only, since http.admin_token_file is not set"))
            }
            Rule::Loopback if !origin_is_ours(request) => {
                Err(Refusal::new(403, "a page from elsewhere may not change state here"))
            }
            Rule::Loopback => Ok(()),
        }
    }
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Rule::Loopback => "Admin(loopback)",
            Rule::Token(_) => "Admin(token)",
            Rule::Nobody(_) => "Admin(nobody)",
        })
    }
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Compares digests, not tokens, and always all of them: how long it takes tells nothing about the token.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b))) == 0
}

/// A proxy on this host makes everybody look local, so what went through one does not count as local.
fn from_loopback(request: &Request) -> bool {
    !request.forwarded && request.peer.is_some_and(|peer| peer.to_canonical().is_loopback())
}

/// A browser on this host runs pages from everywhere. Their requests carry an `Origin`, which must be our own, by a
/// name that nobody can point at this host from outside.
fn origin_is_ours(request: &Request) -> bool {
    let Some(origin) = &request.origin else { return true };
    let Some(authority) = origin.strip_prefix("http://") else { return false };
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let local = host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    local && request.host.as_deref() == Some(authority)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;
    use crate::http::Method;

    fn from(peer: &str) -> Request {
        Request { peer: Some(peer.parse().unwrap()), ..Request::new(Method::Post, "/").unwrap() }
    }

    fn with_token(header: &str) -> Request {
        Request { authorization: Some(header.to_owned()), ..from("127.0.0.1") }
    }

    #[test]
    fn without_a_token_only_this_host_may() {
        let admin = Admin::from_config(&HttpConfig::default()).unwrap();
        for local in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(admin.check(&from(local)), Ok(()), "{local}");
        }
        for remote in ["10.0.0.1", "fe80::1", "0.0.0.0", "::ffff:10.0.0.1"] {
            assert_eq!(admin.check(&from(remote)).unwrap_err().status, 403, "{remote}");
        }
        let nobody = Request::new(Method::Post, "/").unwrap();
        assert_eq!(admin.check(&nobody).unwrap_err().status, 403);
        let forwarded = Request { forwarded: true, ..from("127.0.0.1") };
        assert_eq!(admin.check(&forwarded).unwrap_err().status, 403);
    }

    #[test]
    fn a_page_from_elsewhere_may_not() {
        let admin = Admin::from_config(&HttpConfig::default()).unwrap();
        let page = |origin: &str, host: &str| {
            let (origin, host) = (Some(origin.to_owned()), Some(host.to_owned()));
            admin.check(&Request { origin, host, ..from("127.0.0.1") }).is_ok()
        };
        assert!(page("http://127.0.0.1:8080", "127.0.0.1:8080"));
        assert!(page("http://localhost:8080", "localhost:8080"));
        assert!(page("http://[::1]:8080", "[::1]:8080"));
        assert!(!page("http://evil.example", "127.0.0.1:8080"));
        // The attacker's own name, pointed at 127.0.0.1 by DNS.
        assert!(!page("http://evil.example:8080", "evil.example:8080"));
        assert!(!page("http://127.0.0.1:3000", "127.0.0.1:8080"));
        assert!(!page("null", "127.0.0.1:8080"));
    }

    #[test]
    fn with_a_token_only_its_owner_may_from_anywhere() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b" s3cret\n").unwrap();
        let admin_token_file = file.path().to_str().unwrap().to_owned();
        let admin = Admin::from_config(&HttpConfig { admin_token_file, ..HttpConfig::default() }).unwrap();
        assert_eq!(admin.check(&with_token("Bearer s3cret")), Ok(()));
        assert_eq!(admin.check(&Request { peer: None, ..with_token("bearer s3cret") }), Ok(()));
        for wrong in ["Bearer s3cre", "Bearer s3cret2", "Bearer ", "s3cret", "Basic s3cret", ""] {
            assert_eq!(admin.check(&with_token(wrong)).unwrap_err().status, 401, "{wrong}");
        }
        assert_eq!(admin.check(&from("127.0.0.1")).unwrap_err().status, 401);
        assert!(!format!("{admin:?}").contains("s3cret"));
    }

    #[test]
    fn a_token_file_that_gives_no_token_lets_nobody_in() {
        let missing = HttpConfig { admin_token_file: "/nonexistent/token".to_owned(), ..HttpConfig::default() };
        let error = Admin::from_config(&missing).unwrap_err();
        assert!(matches!(error, AdminError::Unreadable { .. }), "{error}");
        let nobody = Admin::nobody(&error);
        assert_eq!(nobody.check(&with_token("Bearer ")).unwrap_err().status, 403);

        let empty = tempfile::NamedTempFile::new().unwrap();
        let admin_token_file = empty.path().to_str().unwrap().to_owned();
        let error = Admin::from_config(&HttpConfig { admin_token_file, ..HttpConfig::default() }).unwrap_err();
        assert!(matches!(error, AdminError::Empty { .. }), "{error}");
    }
}
