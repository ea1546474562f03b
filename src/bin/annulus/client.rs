//! The HTTP client of the commands that ask a running node.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

use crate::output::escape;

/// How long an answer may take, streams left out.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest line of a stream: a value of 16 MiB, every byte of it escaped.
const MAX_LINE: usize = 128 << 20;

/// Which node is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The node to ask. `keys` and `migrate preflight` ask several: name each, or separate them by commas.
    #[arg(
        long,
        global = true,
        env = "ANNULUS_NODE",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8080"
    )]
    node: Vec<String>,

    /// File with the admin token, which a node that has one wants for every change.
    #[arg(long, global = true, env = "ANNULUS_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Which nodes must have been named.
#[derive(Debug, clap::Args)]
pub(crate) struct Scope {
    /// Go on although members of the cluster were not named with --node, because they are changed in another way.
    #[arg(long)]
    pub(crate) partial: bool,
}

/// Asks one node.
pub(crate) struct Client {
    url: String,
    http: reqwest::Client,
    token: Option<String>,
}

impl Target {
    /// For a command that asks one node.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        match self.node.as_slice() {
            [node] => self.client_of(node),
            _ => bail!("this command asks one node: give --node once"),
        }
    }

    /// For a command that asks all the nodes that were named.
    pub(crate) fn clients(&self) -> anyhow::Result<Vec<Client>> {
        self.node.iter().map(|node| self.client_of(node)).collect()
    }

    fn client_of(&self, node: &str) -> anyhow::Result<Client> {
        let url = node.trim_end_matches('/');
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        if !url.starts_with("http://") {
            bail!("--node {}: only http:// is spoken here; a node has no TLS of its own", escape(node));
        }
        let token = match &self.token_file {
            None => None,
            Some(file) => {
                let text = std::fs::read_to_string(file);
                let text = text.with_context(|| format!("cannot read the token file {}", file.display()))?;
                Some(text.trim().to_owned())
            }
        };
        // The node stands beside us or in our network: a proxy of the environment is for other things.
        let http = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(5)).build()?;
        Ok(Client { url, http, token })
    }
}

impl Client {
    /// Where this node is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, None).await
    }

    /// Asks and returns the JSON of the answer.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<String>) -> anyhow::Result<Value> {
        let mut request = self.request(method, path).timeout(PATIENCE);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let text = self.send(request).await?.text().await.map_err(|error| self.explain(&error))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} did not answer with JSON; is it an annulus node?", self.url))
    }

    /// Opens a stream of server-sent events.
    pub(crate) async fn stream(&self, path: &str) -> anyhow::Result<Events<'_>> {
        let response = self.send(self.request(Method::GET, path)).await?;
        Ok(Events { client: self, response, buffer: Vec::new() })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.map_err(|error| self.explain(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        let reason = serde_json::from_str::<Value>(&text).ok();
        match reason.as_ref().and_then(|json| json["error"].as_str()) {
            Some(reason) if status == 401 => bail!("{}; give the file with it as --token-file", escape(reason)),
            Some(reason) => bail!("{}", escape(reason)),
            None => bail!("{} answered {status}; is it an annulus node?", self.url),
        }
    }

    fn explain(&self, error: &reqwest::Error) -> anyhow::Error {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let url = escape(&self.url);
        if error.is_connect() {
            anyhow::anyhow!("cannot reach the node at {url}: {cause}; is it running? Name another with --node URL")
        } else if error.is_timeout() {
            anyhow::anyhow!("the node at {url} did not answer within {}", humantime::format_duration(PATIENCE))
        } else if error.is_builder() {
            anyhow::anyhow!("--node {url} is not a URL: {cause}")
        } else {
            anyhow::anyhow!("the node at {url} broke off: {cause}")
        }
    }
}

/// The items of a stream of server-sent events.
pub(crate) struct Events<'a> {
    client: &'a Client,
    response: Response,
    buffer: Vec<u8>,
}

impl Events<'_> {
    /// The next item.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Value> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer.get(searched..).and_then(|new| new.iter().position(|byte| *byte == b'\n')) {
                let line: Vec<u8> = self.buffer.drain(..=searched + end).collect();
                searched = 0;
                // Comments and empty lines keep the connection open and say nothing.
                if let Some(data) = line.strip_prefix(b"data: ") {
                    return serde_json::from_slice(data).context("the node sent an event that is not JSON");
                }
                continue;
            }
            searched = self.buffer.len();
            if searched > MAX_LINE {
                bail!("the node sent an event without an end");
            }
            match self.response.chunk().await.map_err(|error| self.client.explain(&error))? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => bail!("the node ended the stream; it is shutting down"),
            }
        }
    }
}

/// Percent-encodes a name for one segment of a path, or for a query. A slash is encoded as well: `a/../b` is a key, not
/// a way through directories.
pub(crate) fn encode(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// As [`encode`], for names that stand alone in a segment: there `.` and `..` are not names, whatever their encoding.
pub(crate) fn segment(name: &str) -> anyhow::Result<String> {
    match name {
        "" => bail!("the name is empty"),
        "." | ".." => bail!("{name:?} cannot be named in a URL"),
        _ => Ok(encode(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_whole_in_a_url() {
        assert_eq!(encode("annulus/kv/ä b?#%"), "annulus%2Fkv%2F%C3%A4%20b%3F%23%25");
        assert!(segment("..").is_err() && segment("").is_err());
        assert_eq!(segment("a/..").ok().as_deref(), Some("a%2F.."));
    }
}
