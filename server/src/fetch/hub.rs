//! Where models come from, and how to get there: settings that the caller
//! reads from wherever it likes. Nothing here looks at the environment.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

/// A hub and the way to it.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The hub's address; a mirror's may have a path.
    pub endpoint: Url,
    /// Sent to the endpoint's own scheme, host and port only.
    pub token: Option<Token>,
    /// Proxies on the way.
    pub proxy: ProxySettings,
    /// A PEM file of certificate authorities to trust beside the usual ones.
    pub ca_file: Option<PathBuf>,
    /// How long a connection may take to stand, TLS and proxy included.
    pub connect_timeout: Duration,
    /// How long an answer may go without a byte.
    pub read_timeout: Duration,
    /// How often in a row a request is tried again without getting further.
    pub retries: u32,
    /// The pause before the first of these; each next one is twice as long.
    pub backoff_base: Duration,
    /// No pause is longer, not even when the hub asks for it.
    pub backoff_max: Duration,
}

impl Hub {
    /// A hub at `endpoint`, reached directly, with timeouts that suit a slow
    /// link: 10 s to connect, 30 s without a byte, 5 tries again after pauses
    /// from 0.5 s to 60 s.
    pub fn new(endpoint: Url) -> Self {
        Self {
            endpoint,
            token: None,
            proxy: ProxySettings::default(),
            ca_file: None,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            retries: 5,
            backoff_base: Duration::from_millis(500),
            backoff_max: Duration::from_mins(1),
        }
    }
}

/// An access token. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl From<&str> for Token {
    fn from(token: &str) -> Self {
        Self::new(token)
    }
}

impl Token {
    /// Takes a token as it is in a file or a variable: a line end is no part of it.
    pub fn new(token: &str) -> Self {
        Self(token.trim().to_owned())
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// Proxies, in the words of `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`.
///
/// `Debug` only says which are set: their addresses may hold passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxySettings {
    /// For `http` addresses.
    pub http: Option<String>,
    /// For `https` addresses.
    pub https: Option<String>,
    /// Hosts that are reached directly, separated by commas.
    pub no_proxy: Option<String>,
}

impl fmt::Debug for ProxySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { http, https, no_proxy } = self;
        let shown = |proxy: &Option<String>| proxy.as_ref().map(|_| "redacted");
        f.debug_struct("ProxySettings")
            .field("http", &shown(http))
            .field("https", &shown(https))
            .field("no_proxy", no_proxy)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debugging_a_hub_shows_no_secret() {
        let mut hub = Hub::new("http://hub.test".parse().expect("an address"));
        hub.token = Some(Token::new("hf_secret\n"));
        hub.proxy.https = Some("http://me:secret@proxy.test:3128".to_owned());
        let shown = format!("{hub:?}");
        assert!(!shown.contains("secret"), "{shown}");
        assert!(shown.contains("Token(redacted)"), "{shown}");
    }
}
