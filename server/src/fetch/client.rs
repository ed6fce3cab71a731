//! The hub's protocol: the list of a revision's files, and the files.
//!
//! Redirects are followed here and not by the HTTP library, because of the two
//! rules that it does not have: the token goes to the endpoint's own origin and
//! nowhere else, and nothing goes from https to http.

use std::error::Error as StdError;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{NoProxy, Proxy, Response, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use url::{Origin, Url};

use super::list::{self, List};
use super::retry::Patience;
use super::{Archive, Error, Hub, Progress, Repo, Source};

/// As many as browsers and the hub's own clients follow.
const MAX_REDIRECTS: usize = 10;
/// The longest list of files that is read; the largest known ones have 10 MB.
const MAX_LIST_BYTES: usize = 64 << 20;

pub(super) struct Client {
    http: reqwest::Client,
    endpoint: Url,
    authorization: Option<http::HeaderValue>,
    /// The same decision that `http` takes, to tell a proxy's failure from the hub's.
    proxies: Matcher,
    read_timeout: Duration,
    answered: AtomicBool,
}

/// What a request is about, for the error that it may end in.
#[derive(Clone, Copy)]
enum About<'a> {
    Revision(&'a Source),
    File(&'a Repo, &'a str),
    Archive(&'a Archive),
}

impl Client {
    pub(super) fn new(hub: &Hub) -> Result<Self, Error> {
        check_endpoint(&hub.endpoint)?;
        let authorization = match &hub.token {
            None => None,
            Some(token) => {
                let mut value = http::HeaderValue::try_from(format!("Bearer {}", token.secret()))
                    .map_err(|_| Error::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let no_proxy = hub.proxy.no_proxy.as_deref();
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            // One long answer over HTTP/2 is held back by its flow control
            // window; HTTP/1.1 lets TCP find the speed of the link.
            .http1_only()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(hub.connect_timeout)
            .read_timeout(hub.read_timeout)
            .user_agent(concat!("embedding-server/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls(hub.ca_file.as_deref())?);
        let mut proxies = Matcher::builder().no(no_proxy.unwrap_or_default());
        if let Some(proxy) = &hub.proxy.http {
            let proxy = with_scheme(proxy);
            builder = builder.proxy(
                Proxy::http(&proxy)
                    .map_err(proxy_setting("http"))?
                    .no_proxy(no_proxy.and_then(NoProxy::from_string)),
            );
            proxies = proxies.http(proxy);
        }
        if let Some(proxy) = &hub.proxy.https {
            let proxy = with_scheme(proxy);
            builder = builder.proxy(
                Proxy::https(&proxy)
                    .map_err(proxy_setting("https"))?
                    .no_proxy(no_proxy.and_then(NoProxy::from_string)),
            );
            proxies = proxies.https(proxy);
        }
        Ok(Self {
            http: builder.build().map_err(Error::Client)?,
            endpoint: hub.endpoint.clone(),
            authorization,
            proxies: proxies.build(),
            read_timeout: hub.read_timeout,
            answered: AtomicBool::new(false),
        })
    }

    /// Whether a later try of what ended in `error` makes sense. Before anyone
    /// has answered, being unreachable is the answer: the caller may have
    /// another way, and should not wait for minutes to hear of it.
    pub(super) fn worth_retrying(&self, error: &Error) -> bool {
        !error.is_unreachable() || self.answered.load(Ordering::Relaxed)
    }

    /// Resolves the revision to its commit and files.
    pub(super) async fn list(
        &self,
        source: &Source,
        hub: &Hub,
        progress: &mut dyn Progress,
    ) -> Result<List, Error> {
        let repo = source.repo.as_str();
        let mut url = self
            .url(["api", "models"].into_iter().chain(repo.split('/')).chain(["revision", source.revision()]));
        url.set_query(Some("blobs=true"));
        let mut patience = Patience::new(hub);
        loop {
            match self.list_once(&url, source).await {
                Ok(list) => return Ok(list),
                Err(error) if self.worth_retrying(&error) => {
                    patience.next_try("the file list", error, progress).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn list_once(&self, url: &Url, source: &Source) -> Result<List, Error> {
        let mut response = self.get(url.clone(), None, About::Revision(source)).await?;
        let host = origin(response.url());
        let mut json = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if json.len() + chunk.len() > MAX_LIST_BYTES {
                return Err(Error::InvalidList {
                    host,
                    why: format!("it is longer than {MAX_LIST_BYTES} bytes"),
                });
            }
            json.extend_from_slice(&chunk);
        }
        list::parse(&json, &host, source)
    }

    /// Asks for a file, from byte `from` on if given. The answer is a success,
    /// or 416.
    pub(super) async fn file(
        &self,
        repo: &Repo,
        commit: &str,
        path: &str,
        from: Option<u64>,
    ) -> Result<Response, Error> {
        let url = self.url(repo.as_str().split('/').chain(["resolve", commit]).chain(path.split('/')));
        self.get(url, from.map(onward), About::File(repo, path)).await
    }

    /// The first `count` bytes of a file that has so many.
    pub(super) async fn beginning(
        &self,
        repo: &Repo,
        commit: &str,
        path: &str,
        count: u64,
    ) -> Result<Vec<u8>, Error> {
        let url = self.url(repo.as_str().split('/').chain(["resolve", commit]).chain(path.split('/')));
        let range = (count > 0).then(|| format!("bytes=0-{}", count - 1));
        let mut response = self.get(url, range, About::File(repo, path)).await?;
        let host = origin(response.url());
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(Error::UnexpectedStatus { host, status: response.status().as_u16() });
        }
        let mut bytes = Vec::new();
        // Who does not do ranges sends all of it: the rest is not waited for.
        while (bytes.len() as u64) < count {
            let Some(chunk) = self.chunk(&mut response).await? else {
                let have = bytes.len() as u64;
                return Err(Error::Truncated { file: path.to_owned(), host, have, size: count });
            };
            bytes.extend_from_slice(&chunk);
        }
        bytes.truncate(usize::try_from(count).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// Asks for an archive, from byte `from` on if given. The answer is a success, or 416.
    pub(super) async fn archive(&self, archive: &Archive, from: Option<u64>) -> Result<Response, Error> {
        self.get(archive.url().clone(), from.map(onward), About::Archive(archive)).await
    }

    /// The next bytes of an answer, or `None` at its end.
    pub(super) async fn chunk(&self, response: &mut Response) -> Result<Option<bytes::Bytes>, Error> {
        match response.chunk().await {
            Ok(chunk) => Ok(chunk),
            Err(error) => Err(self.transport(response.url(), error)),
        }
    }

    fn url<'a>(&self, segments: impl Iterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        // `check_endpoint` has let through http and https only, which have paths.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// With the value of `Range`, where a part is asked for.
    async fn get(&self, mut url: Url, range: Option<String>, about: About<'_>) -> Result<Response, Error> {
        let home = self.endpoint.origin();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self
                .http
                .get(url.clone())
                // Lengths, ranges and hashes are those of the file itself.
                .header(header::ACCEPT_ENCODING, "identity");
            if let Some(range) = &range {
                request = request.header(header::RANGE, range);
            }
            if url.origin() == home
                && let Some(authorization) = &self.authorization
            {
                request = request.header(header::AUTHORIZATION, authorization.clone());
            }
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) => return Err(self.transport(&url, error)),
            };
            self.answered.store(true, Ordering::Relaxed);
            match response.status() {
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    url = redirected(&url, response.headers())?;
                }
                StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Ok(response);
                }
                status => {
                    let at_home = url.origin() == home;
                    return Err(self.refusal(&url, at_home, status, response.headers(), about));
                }
            }
        }
        Err(Error::Redirect { host: origin(&self.endpoint), why: "more than 10 in a row" })
    }

    fn refusal(
        &self,
        url: &Url,
        at_home: bool,
        status: StatusCode,
        headers: &HeaderMap,
        about: About<'_>,
    ) -> Error {
        let host = origin(url);
        let code = header_text(headers, "x-error-code");
        let repo = match about {
            About::Revision(source) => source.repo.to_string(),
            About::File(repo, _) => repo.to_string(),
            About::Archive(archive) => archive.name(),
        };
        let retry_after = header_text(headers, header::RETRY_AFTER.as_str())
            .and_then(|seconds| seconds.trim().parse().ok())
            .map(Duration::from_secs);
        let unexpected = |host| Error::UnexpectedStatus { host, status: status.as_u16() };
        match status.as_u16() {
            429 => Error::TooManyRequests { host, retry_after },
            408 | 500..=599 => Error::Server { host, status: status.as_u16(), retry_after },
            407 => Error::ProxyCredentials { host },
            // What a storage host refuses says nothing about the repository.
            _ if !at_home => unexpected(host),
            status @ (401 | 403) if matches!(about, About::Archive(_)) => {
                Error::ArchiveDenied { url: repo, status }
            }
            404 | 410 if matches!(about, About::Archive(_)) => Error::ArchiveNotFound { url: repo },
            401 | 403 if code == Some("GatedRepo") => Error::Gated { host, repo },
            401 if self.authorization.is_some() => Error::TokenRefused { host, repo },
            401 => Error::TokenNeeded { host, repo },
            403 => Error::Forbidden { host, repo },
            404 => match (code, about) {
                (Some("RevisionNotFound"), About::Revision(source)) => {
                    Error::RevisionNotFound { host, repo, revision: source.revision().to_owned() }
                }
                (Some("EntryNotFound") | None, About::File(_, file)) => {
                    Error::FileNotFound { host, repo, file: file.to_owned() }
                }
                (Some("RepoNotFound"), _) | (None, About::Revision(_)) => Error::RepoNotFound { host, repo },
                (Some(_), _) | (None, About::Archive(_)) => unexpected(host),
            },
            _ => unexpected(host),
        }
    }

    /// Sorts what the HTTP library says by what the user can do about it.
    fn transport(&self, url: &Url, error: reqwest::Error) -> Error {
        let host = origin(url);
        let source = error.without_url();
        if is_tls(&source) {
            Error::Tls { host, source }
        } else if source.is_connect() {
            if self.is_proxied(url) {
                Error::Proxy { host, source }
            } else {
                Error::Unreachable { host, source }
            }
        } else if source.is_timeout() {
            Error::Stalled { host, after: self.read_timeout }
        } else {
            Error::Interrupted { host, source }
        }
    }

    fn is_proxied(&self, url: &Url) -> bool {
        url.as_str().parse::<http::Uri>().is_ok_and(|uri| self.proxies.intercept(&uri).is_some())
    }
}

/// From that byte on.
fn onward(from: u64) -> String {
    format!("bytes={from}-")
}

fn check_endpoint(endpoint: &Url) -> Result<(), Error> {
    let why = if !matches!(endpoint.scheme(), "http" | "https") {
        "it has to start with https:// or http://"
    } else if !endpoint.username().is_empty() || endpoint.password().is_some() {
        "it has a user name or password in it; give a token instead"
    } else if endpoint.query().is_some() || endpoint.fragment().is_some() {
        "it has a query or a fragment"
    } else {
        return Ok(());
    };
    Err(Error::Endpoint { endpoint: origin(endpoint), why })
}

fn redirected(url: &Url, headers: &HeaderMap) -> Result<Url, Error> {
    let refuse = |why| Error::Redirect { host: origin(url), why };
    let location = header_text(headers, header::LOCATION.as_str())
        .ok_or_else(|| refuse("it names no readable address"))?;
    let next = url.join(location).map_err(|_| refuse("it names no readable address"))?;
    match (url.scheme(), next.scheme()) {
        ("https", "http") => Err(refuse("it leads from https to http, refused")),
        (_, "http" | "https") => Ok(next),
        _ => Err(refuse("it leads to another protocol")),
    }
}

/// How `url` is named in errors. Of a signed address nothing else may be shown.
pub(super) fn origin(url: &Url) -> String {
    match url.origin() {
        origin @ Origin::Tuple(..) => origin.ascii_serialization(),
        // `file:` and the like: only ever seen in `check_endpoint`.
        Origin::Opaque(_) => format!("{}:", url.scheme()),
    }
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// `proxy:3128` is how many write it.
fn with_scheme(proxy: &str) -> String {
    if proxy.contains("://") { proxy.to_owned() } else { format!("http://{proxy}") }
}

fn proxy_setting(scheme: &'static str) -> impl FnOnce(reqwest::Error) -> Error {
    move |error| Error::ProxySetting { scheme, source: error.without_url() }
}

/// The web's authorities, the machine's own, and the extra file's. The crypto
/// provider is named, so that no process-wide default has to be set.
fn tls(ca_file: Option<&Path>) -> Result<rustls::ClientConfig, Error> {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        // Many containers have no certificates of their own: nothing to warn of.
        tracing::debug!(%error, "skipping certificates of this machine");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = ca_file {
        let failed = |source| Error::CaFile { path: path.to_owned(), source };
        let certificates = read_certificates(path).map_err(failed)?;
        for certificate in certificates {
            roots.add(certificate).map_err(|e| failed(io::Error::new(io::ErrorKind::InvalidData, e)))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::TlsSetup)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn read_certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let certificates = CertificateDer::pem_reader_iter(BufReader::new(File::open(path)?))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| invalid(error.to_string()))?;
    if certificates.is_empty() {
        return Err(invalid("it holds no PEM certificate".to_owned()));
    }
    Ok(certificates)
}

/// Whether TLS is somewhere among the causes. An I/O error hides the error
/// that it carries from `source`, so it is opened by hand.
fn is_tls(error: &(dyn StdError + 'static)) -> bool {
    error.is::<rustls::Error>()
        || error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).is_some_and(|inner| is_tls(inner))
        || error.source().is_some_and(is_tls)
}
