//! What was asked of the API server, from its audit log.

use jiff::Timestamp;
use serde::Deserialize;

/// Who asks for what, without bodies. Left out are the API server's requests to itself and what
/// only looks at its health. A request is written when it was answered, a watch when it begins.
pub const POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1",
  "kind": "Policy",
  "omitStages": ["RequestReceived"],
  "rules": [
    {"level": "None", "users": ["system:apiserver"]},
    {"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*"]},
    {"level": "Metadata", "verbs": ["watch"], "omitStages": ["RequestReceived", "ResponseComplete"]},
    {"level": "Metadata"}
  ]
}"#;

/// One request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    #[serde(rename = "requestReceivedTimestamp")]
    pub received: Timestamp,
    pub verb: String,
    #[serde(rename = "requestURI")]
    pub uri: String,
    pub user: User,
    #[serde(default)]
    pub user_agent: String,
    /// Nothing for paths that are no resources.
    #[serde(default, rename = "objectRef")]
    pub object: Object,
    #[serde(default, rename = "responseStatus")]
    pub status: Status,
}

#[derive(Clone, Debug, Deserialize)]
pub struct User {
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub groups: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Object {
    pub api_group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub code: u16,
}

/// Requests, oldest first. A request can be answered shortly before it is written: who counts
/// what must have happened waits for it.
#[derive(Clone, Debug, Default)]
pub struct Audit(pub Vec<Entry>);

impl Audit {
    /// From a log that may end in the middle of a line.
    pub fn parse(log: &str) -> Self {
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
        Self(whole.lines().map(parse).collect())
    }

    /// Only requests for which `keep` holds.
    pub fn filter(mut self, keep: impl Fn(&Entry) -> bool) -> Self {
        self.0.retain(keep);
        self
    }

    /// Only those whose user agent begins with this.
    pub fn user_agent(self, prefix: &str) -> Self {
        self.filter(|entry| entry.user_agent.starts_with(prefix))
    }

    /// Only those of the user with this name.
    pub fn user(self, name: &str) -> Self {
        self.filter(|entry| entry.user.username == name)
    }

    /// Only those received at this time or later.
    pub fn since(self, time: Timestamp) -> Self {
        self.filter(|entry| entry.received >= time)
    }

    /// Only those with this verb on this resource: `("patch", "deployments")`.
    pub fn of(self, verb: &str, resource: &str) -> Self {
        self.filter(|entry| entry.verb == verb && entry.object.resource == resource)
    }

    /// Only those in this namespace.
    pub fn namespace(self, name: &str) -> Self {
        self.filter(|entry| entry.object.namespace == name)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
