//! A request, as far as the API needs to know it.

use std::net::IpAddr;

use bytes::Bytes;

use super::response::Refusal;

/// Largest body of a request, in bytes (16 MiB): the largest value that gossip takes.
pub const MAX_BODY: usize = 16 << 20;

/// What a request wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Read. `HEAD` counts as this; the adapter leaves the body out.
    Get,
    /// Do something.
    Post,
    /// Write.
    Put,
    /// Remove.
    Delete,
    /// Anything else, which no route takes.
    Other,
}

impl Method {
    /// By its name in the request line.
    #[must_use]
    pub fn parse(name: &str) -> Self {
        match name {
            "GET" | "HEAD" => Self::Get,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            _ => Self::Other,
        }
    }

    /// The name in the request line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Other => "another method",
        }
    }

    /// Whether it may change state, and so needs permission.
    #[must_use]
    pub const fn changes_state(self) -> bool {
        !matches!(self, Self::Get)
    }
}

/// A request. Make one with [`Request::new`] and fill in what the transport knows.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// What it wants to do.
    pub method: Method,
    /// The path as it stood in the URL, percent-encoded.
    pub path: String,
    /// The query, decoded, in its order.
    pub query: Vec<(String, String)>,
    /// The header `Authorization`.
    pub authorization: Option<String>,
    /// The header `Origin`: a browser sends it with what a page asks for.
    pub origin: Option<String>,
    /// The header `Host`.
    pub host: Option<String>,
    /// Whether a proxy handed the request on (`Forwarded` or `X-Forwarded-For` is there): `peer` is then the proxy.
    pub forwarded: bool,
    /// The body, at most [`MAX_BODY`] bytes.
    pub body: Bytes,
    /// Who sent it. `None` counts as "from elsewhere".
    pub peer: Option<IpAddr>,
}

/// A URL whose percent-encoding is broken, or is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the URL has a broken percent-encoding, or is not UTF-8")]
pub struct Malformed;

impl Request {
    /// A request for a path with, perhaps, a query.
    ///
    /// # Errors
    /// [`Malformed`] when the query cannot be decoded. (The path is decoded by whoever looks at it.)
    pub fn new(method: Method, target: &str) -> Result<Self, Malformed> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(&name.replace('+', " "))?, decode(&value.replace('+', " "))?))
        });
        Ok(Self {
            method,
            path: path.to_owned(),
            query: decoded.collect::<Result<_, Malformed>>()?,
            authorization: None,
            origin: None,
            host: None,
            forwarded: false,
            body: Bytes::new(),
            peer: None,
        })
    }

    /// The first value of a parameter.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A parameter that is true or false; `?watch` alone is true.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.parameter(name) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1" | "") => Ok(true),
            Some(other) => Err(Refusal::new(400, format!("{name}={other:?} is neither true nor false"))),
        }
    }

    /// A parameter that is a number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Refusal> {
        let bits = size_of::<T>() * 8;
        let parse = |text: &str| {
            let reason = || Refusal::new(400, format!("{name}={text:?} is not a whole number of {bits} bits"));
            text.parse().map_err(|_| reason())
        };
        self.parameter(name).map(parse).transpose()
    }

    /// Refuses parameters that the route does not have: `?verison=3` must not become an unconditional write.
    pub(super) fn allow_only(&self, names: &[&str]) -> Result<(), Refusal> {
        match self.query.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) if names.is_empty() => {
                Err(Refusal::new(400, format!("unknown parameter {name:?}; this takes none")))
            }
            Some((name, _)) => {
                Err(Refusal::new(400, format!("unknown parameter {name:?}; there are {}", names.join(", "))))
            }
        }
    }
}

/// Undoes percent-encoding.
pub(super) fn decode(text: &str) -> Result<String, Malformed> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>().ok_or(Malformed)?;
        let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
        let value = high.zip(low).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        bytes.push(value.ok_or(Malformed)?);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_query_is_decoded_once() {
        let request = Request::new(Method::Get, "/x?key=a%2Fb%26c+d&flag&=&k=1=2").unwrap();
        let expected = [("key", "a/b&c d"), ("flag", ""), ("", ""), ("k", "1=2")];
        assert_eq!(request.query, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(decode("%2525"), Ok("%25".to_owned()));
    }

    #[test]
    fn broken_encodings_are_refused() {
        for broken in ["%", "%2", "%zz", "a%", "%+1", "%ff", "%C3%28"] {
            assert_eq!(decode(broken), Err(Malformed), "{broken}");
            assert!(Request::new(Method::Get, &format!("/?a={broken}")).is_err(), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_encoded_comes_back(text in ".*") {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(decode(&encoded), Ok(text));
        }

        #[test]
        fn no_text_makes_the_decoder_panic(text in ".*") {
            let _ = decode(&text);
            let _ = Request::new(Method::Get, &text);
        }
    }
}
