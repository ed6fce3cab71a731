//! Everything that can stop a fetch, in words for the person who has to act.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::convert;

/// Why a model could not be brought into the cache.
///
/// Hosts appear as `scheme://host:port`. Paths and queries of redirects are
/// left out on purpose: a signed download address is a secret while it lasts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A repository name that the hub would refuse.
    #[error("reading repository name {name:?}: {why}")]
    Repo {
        /// What was given.
        name: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// A revision that no hub can have.
    #[error("reading revision {revision:?}: {why}")]
    Revision {
        /// What was given.
        revision: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// An import needs to know which commit the files are.
    #[error(
        "importing {repo}: revision {revision:?} must be a full commit, 40 hexadecimal digits in lower case"
    )]
    NotACommit {
        /// The repository.
        repo: String,
        /// What was given instead of a commit.
        revision: String,
    },
    /// An endpoint that cannot be a hub's address.
    #[error("using hub endpoint {endpoint}: {why}")]
    Endpoint {
        /// The endpoint's origin.
        endpoint: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The token has characters that an HTTP header cannot carry.
    #[error("using the access token: it has characters that a header cannot carry")]
    Token,
    /// A proxy setting that is not an address.
    #[error("using the {scheme} proxy setting: it is not a proxy's address (http://host:port)")]
    ProxySetting {
        /// `http` or `https`: the requests it was meant for.
        scheme: &'static str,
        /// What the address parser says.
        #[source]
        source: reqwest::Error,
    },
    /// The extra CA file cannot be used.
    #[error("reading extra CA certificates from {}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The TLS library refuses its own settings.
    #[error("setting up TLS")]
    TlsSetup(#[source] rustls::Error),
    /// The HTTP client refuses its settings.
    #[error("setting up the HTTP client")]
    Client(#[source] reqwest::Error),

    /// Nobody answered: no such name, connection refused, or no connection in time.
    #[error(
        "connecting to {host}: unreachable; check the network, the endpoint (HF_ENDPOINT, or --url) and whether a proxy is needed (HTTPS_PROXY)"
    )]
    Unreachable {
        /// Who was to answer.
        host: String,
        /// The connector's reason.
        #[source]
        source: reqwest::Error,
    },
    /// The configured proxy did not let the request through.
    #[error(
        "connecting to {host} through the proxy: the proxy did not pass the request on; check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
    )]
    Proxy {
        /// Whom the proxy was to reach.
        host: String,
        /// The connector's reason.
        #[source]
        source: reqwest::Error,
    },
    /// The proxy wants a user name and a password.
    #[error(
        "connecting to {host} through the proxy: the proxy asks for credentials; put them in the proxy's address (http://user:password@host:port)"
    )]
    ProxyCredentials {
        /// Whom the proxy was to reach.
        host: String,
    },
    /// The other side's certificate is not trusted, or TLS failed otherwise.
    #[error(
        "connecting to {host}: TLS failed; if a proxy or a mirror has a certificate of a private authority, give that authority's certificate as the extra CA file"
    )]
    Tls {
        /// Who was to answer.
        host: String,
        /// The TLS library's reason.
        #[source]
        source: reqwest::Error,
    },
    /// The connection broke before the answer was complete.
    #[error("reading from {host}: the connection broke")]
    Interrupted {
        /// Who was answering.
        host: String,
        /// The transport's reason.
        #[source]
        source: reqwest::Error,
    },
    /// The answer ended early without an error.
    #[error("reading {file} from {host}: the answer ended after {have} of {size} bytes")]
    Truncated {
        /// The file.
        file: String,
        /// Who was answering.
        host: String,
        /// Bytes here so far.
        have: u64,
        /// Bytes that the file has.
        size: u64,
    },
    /// No byte came for the read timeout.
    #[error("reading from {host}: no byte for {after:?}")]
    Stalled {
        /// Who was answering.
        host: String,
        /// The read timeout.
        after: Duration,
    },
    /// The hub, or the host that it sent us to, has trouble of its own.
    #[error("asking {host}: it answered with status {status}; try again later")]
    Server {
        /// Who answered.
        host: String,
        /// A 5xx status, or 408.
        status: u16,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// 429: too many requests from here.
    #[error(
        "asking {host}: too many requests from this address or token (status 429); wait some minutes, or set HF_TOKEN for a higher limit"
    )]
    TooManyRequests {
        /// Who answered.
        host: String,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// 401 without a token.
    #[error(
        "asking {host} for {repo}: not authorized; the repository may not exist, or is private or gated: check the name, and set HF_TOKEN to a token that may read it"
    )]
    TokenNeeded {
        /// Who answered.
        host: String,
        /// The repository.
        repo: String,
    },
    /// 401 with a token.
    #[error(
        "asking {host} for {repo}: the token is not valid for it; check the name, and that HF_TOKEN is current and may read the repository"
    )]
    TokenRefused {
        /// Who answered.
        host: String,
        /// The repository.
        repo: String,
    },
    /// The repository's terms have to be accepted first.
    #[error(
        "asking {host} for {repo}: the repository is gated; accept its terms on its page with your account, and set HF_TOKEN to a token of that account"
    )]
    Gated {
        /// Who answered.
        host: String,
        /// The repository.
        repo: String,
    },
    /// 403 for another reason.
    #[error("asking {host} for {repo}: access denied; the token may lack the right to read it")]
    Forbidden {
        /// Who answered.
        host: String,
        /// The repository.
        repo: String,
    },
    /// No such repository.
    #[error("asking {host} for {repo}: there is no such repository; check the name")]
    RepoNotFound {
        /// Who answered.
        host: String,
        /// The repository.
        repo: String,
    },
    /// No such commit, tag or branch.
    #[error("asking {host} for {repo}: it has no revision {revision:?}; check the commit, tag or branch")]
    RevisionNotFound {
        /// Who answered.
        host: String,
        /// The repository.
        repo: String,
        /// What was asked for.
        revision: String,
    },
    /// The hub listed the file but does not have it.
    #[error("asking {host} for {repo}: it lists {file} but does not have it")]
    FileNotFound {
        /// Who answered.
        host: String,
        /// The repository.
        repo: String,
        /// The file.
        file: String,
    },
    /// A status that has no place in the protocol.
    #[error("asking {host}: unexpected status {status}")]
    UnexpectedStatus {
        /// Who answered.
        host: String,
        /// The status.
        status: u16,
    },
    /// A redirect that is not followed.
    #[error("following a redirect of {host}: {why}")]
    Redirect {
        /// Who sent the redirect.
        host: String,
        /// Why it stops here.
        why: &'static str,
    },
    /// The answer is not the JSON of a hub.
    #[error(
        "reading the file list from {host}: the answer is not a hub's JSON; a login page or a proxy may be answering in its place, or HF_ENDPOINT is not a hub"
    )]
    InvalidJson {
        /// Who answered.
        host: String,
        /// The parser's reason.
        #[source]
        source: serde_json::Error,
    },
    /// The file list is JSON, but says something that cannot be.
    #[error("reading the file list from {host}: {why}")]
    InvalidList {
        /// Who answered.
        host: String,
        /// What is wrong with it.
        why: String,
    },

    /// An archive's address that nothing can be fetched from. It is not shown: what is wrong
    /// with it may be a password.
    #[error("using the address of --url: {why}")]
    ArchiveAddress {
        /// What is wrong with it.
        why: &'static str,
    },
    /// No hash.
    #[error("using --sha256 {sha256}: it has to be 64 hexadecimal digits, as `sha256sum FILE` prints them")]
    ArchiveHash {
        /// What was given.
        sha256: String,
    },
    /// Whoever has the archive does not give it to us.
    #[error(
        "asking for {url}: access denied (status {status}); archives are fetched without credentials: give an address that needs none, or a current signed one"
    )]
    ArchiveDenied {
        /// The address without its query.
        url: String,
        /// 401 or 403.
        status: u16,
    },
    /// There is no such archive.
    #[error("asking for {url}: there is no such file; check the address")]
    ArchiveNotFound {
        /// The address without its query.
        url: String,
    },
    /// The archive is another one.
    #[error(
        "verifying {url}: its sha256 is {found}, expected {expected}; check the address, and the hash with `sha256sum FILE` where the archive was made"
    )]
    WrongArchive {
        /// The address without its query.
        url: String,
        /// The hash that was given.
        expected: String,
        /// The hash that it has.
        found: String,
    },
    /// The bytes are no archive of the kind that is read here.
    #[error(
        "unpacking {url}: it is not a gzipped tar archive, or it is damaged; make one with `tar -czf model.tar.gz DIRECTORY`"
    )]
    ArchiveFormat {
        /// The address without its query.
        url: String,
        /// The decoder's reason.
        #[source]
        source: io::Error,
    },
    /// The archive holds what no model has.
    #[error("unpacking {url}: {why}")]
    ArchiveContent {
        /// The address without its query.
        url: String,
        /// What it holds, and what to do about it.
        why: String,
    },
    /// Neither a commit nor an archive.
    #[error(
        "write REPOSITORY@COMMIT with a full commit (40 hexadecimal digits in lower case), or the path of an archive (…/archives/SHA256)"
    )]
    Place,

    /// A file name that would leave the model's directory.
    #[error("taking the file name {name:?} from {origin}: it is not a plain relative path, refused")]
    UnsafePath {
        /// The name.
        name: String,
        /// Where it stood.
        origin: &'static str,
    },
    /// A file without which no model can run.
    #[error("choosing files of {repo}: it has no {file}, which the server needs")]
    MissingFile {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
    },
    /// The index names a shard that is not there.
    #[error("choosing files of {repo}: its index names {file}, which it does not have")]
    MissingShard {
        /// The repository.
        repo: String,
        /// The shard.
        file: String,
    },
    /// The index names something else than a shard.
    #[error("choosing files of {repo}: its index names {file}, which is no *{end} file beside it")]
    StrangeShard {
        /// The repository.
        repo: String,
        /// What it names.
        file: String,
        /// How the names of its shards end.
        end: &'static str,
    },
    /// Pickled weights hold something else than weights, or are damaged.
    #[error("converting {file} of {repo} to safetensors")]
    Convert {
        /// The repository.
        repo: String,
        /// The pickle.
        file: String,
        /// What it holds.
        #[source]
        source: Box<convert::Error>,
    },
    /// `modules.json` or the weight index is not what it should be.
    #[error("reading {file} of {repo}")]
    BrokenIndex {
        /// The repository.
        repo: String,
        /// The file.
        file: &'static str,
        /// The parser's reason.
        #[source]
        source: serde_json::Error,
    },

    /// The cache of Hugging Face's own libraries cannot stand in for the hub.
    #[error("taking {repo} from the Hugging Face cache: {why}")]
    HfCache {
        /// The repository.
        repo: String,
        /// What it lacks.
        why: String,
    },

    /// The manifest is not readable as one.
    #[error("reading the manifest: {why}")]
    Manifest {
        /// What is wrong with it.
        why: String,
    },
    /// A needed file has no hash in the manifest.
    #[error("checking {file} by the manifest: it is not listed there")]
    NotInManifest {
        /// The file.
        file: String,
    },
    /// The manifest lists a file that is not there.
    #[error("checking the manifest: it lists {file}, which {origin} does not have")]
    OnlyInManifest {
        /// The file.
        file: String,
        /// The repository, or the directory that is imported.
        origin: String,
    },
    /// The bytes are not the ones that they should be.
    #[error("verifying {file}: expected {kind} {expected}, found {found}")]
    WrongHash {
        /// The file.
        file: String,
        /// Which hash, and who gave it.
        kind: &'static str,
        /// The hash that it should have.
        expected: String,
        /// The hash that it has.
        found: String,
    },
    /// More bytes came than the file has.
    #[error("verifying {file}: expected {expected} bytes, found {found} or more")]
    WrongSize {
        /// The file.
        file: String,
        /// Its size in the list.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },

    /// There is too little room for what is about to come.
    #[error(
        "fetching {needed} into {}: only {free} are free there; make room, choose a larger volume, or another cache directory",
        directory.display()
    )]
    NoRoom {
        /// Where it was to go.
        directory: PathBuf,
        /// How much was still to come.
        needed: String,
        /// How much room there is.
        free: String,
    },
    /// The disk, or the quota on it, is full.
    #[error("writing to {}: no space left; make room there, or choose another cache directory", directory.display())]
    DiskFull {
        /// Where the bytes were to go.
        directory: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file system refuses something else.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether nobody who could have the model was there to ask: the hub's
    /// name does not resolve, nothing listens, or the proxy does not pass the
    /// request on. Trying once more right away will not help; doing without
    /// the network may.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Proxy { .. })
    }

    /// Whether whoever has the model refused to give it, or says that there is none: waiting
    /// does not cure that, another name or another token does.
    pub fn is_refused(&self) -> bool {
        matches!(
            self,
            Self::TokenNeeded { .. }
                | Self::TokenRefused { .. }
                | Self::Gated { .. }
                | Self::Forbidden { .. }
                | Self::RepoNotFound { .. }
                | Self::RevisionNotFound { .. }
                | Self::ArchiveDenied { .. }
                | Self::ArchiveNotFound { .. }
        )
    }

    /// Whether what there is cannot be served, however often it is fetched.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Convert { source, .. } if source.is_refusal())
    }

    /// Whether the same request may succeed a little later.
    pub(super) fn is_passing(&self) -> bool {
        self.is_unreachable()
            || matches!(
                self,
                Self::Interrupted { .. }
                    | Self::Truncated { .. }
                    | Self::Stalled { .. }
                    | Self::Server { .. }
                    | Self::TooManyRequests { .. }
            )
    }

    /// Whether the bytes themselves are wrong, so that only a fresh copy helps.
    pub(super) fn is_wrong_content(&self) -> bool {
        matches!(self, Self::WrongHash { .. } | Self::WrongSize { .. })
    }

    /// How long the other side asked to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Server { retry_after, .. } | Self::TooManyRequests { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// For `map_err` on file system calls.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { directory: path.parent().unwrap_or(path).to_owned(), source }
            }
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_names_the_directory_to_make_room_in() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = Error::io("writing", Path::new("cache/model/config.json"))(full);
        assert_eq!(
            error.to_string(),
            "writing to cache/model: no space left; make room there, or choose another cache directory"
        );
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = Error::io("writing", Path::new("cache/model/config.json"))(denied);
        assert_eq!(error.to_string(), "writing cache/model/config.json");
    }
}
