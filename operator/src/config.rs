//! Flags and environment: the only reader of either.

use std::net::SocketAddr;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, CommandFactory as _, FromArgMatches as _, Parser};
use url::Url;

/// Runs text embedding models on Kubernetes from `EmbeddingModel` resources.
#[derive(Parser, Clone, Debug)]
#[command(version, about, max_term_width = 100)]
#[command(
    after_help = "The cluster is that of the kubeconfig (KUBECONFIG, else ~/.kube/config, its current context), \
                        or the one in which the operator runs as a pod. An empty variable counts as unset."
)]
pub struct Cli {
    /// The image of the server that runs models on CPUs
    #[arg(long, env = "EMBEDDING_SERVER_IMAGE", value_name = "IMAGE",
        value_parser = NonEmptyStringValueParser::new(),
        default_value = concat!("embedding-server:", env!("CARGO_PKG_VERSION")))]
    pub server_image: String,

    /// The image of the server that runs models on NVIDIA GPUs. Without it, models that ask for
    /// a GPU are refused
    #[arg(long, env = "EMBEDDING_SERVER_CUDA_IMAGE", value_name = "IMAGE")]
    pub server_cuda_image: Option<String>,

    /// The hub that models come from when they name no endpoint
    #[arg(
        long,
        env = "EMBEDDING_HUB_ENDPOINT",
        value_name = "URL",
        value_parser = address,
        default_value = "https://huggingface.co"
    )]
    pub hub_endpoint: String,

    /// Addresses that models may be fetched from, by their beginnings, separated by commas: the
    /// endpoints of hubs and the addresses of archives. A token is sent to the endpoint that its
    /// model names, so who may write models may send a Secret's token anywhere that is allowed
    /// here. Default: everywhere
    #[arg(long, env = "EMBEDDING_ALLOWED_ENDPOINTS", value_name = "URLS", value_delimiter = ',',
        value_parser = address_or_nothing)]
    pub allowed_endpoints: Vec<String>,

    /// Namespaces to look after, separated by commas. Default: all
    #[arg(long, env = "WATCH_NAMESPACES", value_name = "NAMES", value_delimiter = ',')]
    pub namespaces: Vec<String>,

    /// How many models are reconciled at once
    #[arg(long, env = "EMBEDDING_CONCURRENCY", value_name = "COUNT", default_value_t = 8,
        value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,

    /// Seconds until a download that failed is tried again. Doubled each time, up to 32 times this
    #[arg(long, env = "EMBEDDING_FETCH_RETRY", value_name = "SECONDS", default_value_t = 60,
        value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub fetch_retry: u32,

    /// Only the replica that holds the lease reconciles; the others wait
    #[arg(long, env = "EMBEDDING_LEADER_ELECTION", value_name = "BOOL", default_value_t = true,
        action = clap::ArgAction::Set)]
    pub leader_election: bool,

    /// The namespace of the lease, which is the operator's own
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME", default_value = "default",
        value_parser = NonEmptyStringValueParser::new())]
    pub lease_namespace: String,

    /// The lease's name
    #[arg(long, env = "EMBEDDING_LEASE_NAME", value_name = "NAME", default_value = "embedding-operator",
        value_parser = NonEmptyStringValueParser::new())]
    pub lease_name: String,

    /// Who this replica is in the lease. Default: the host's name and a random number
    #[arg(long, env = "POD_NAME", value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub identity: Option<String>,

    /// Where /healthz, /readyz and /metrics are served. Port 0 lets the system choose one, which the
    /// log tells
    #[arg(long, env = "EMBEDDING_ADMIN_ADDRESS", value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub admin_address: SocketAddr,

    /// What is logged, to standard error: a level, or levels by module
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// How it is logged
    #[arg(long, env = "EMBEDDING_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How it is logged.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// What reconciling needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The server's image for CPUs.
    pub server_image: String,
    /// The server's image for GPUs.
    pub server_cuda_image: Option<String>,
    /// The hub of models that name none.
    pub hub_endpoint: String,
    /// Beginnings of the addresses that models may come from; empty: any.
    pub allowed_endpoints: Vec<String>,
    /// The shortest wait before a failed download is tried again.
    pub fetch_retry: Duration,
}

/// An address as it is compared: whole, and without the slash at its end.
fn address(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("it must begin with http:// or https://".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it must not have a user or a password in it".into());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn address_or_nothing(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { address(text) }
}

impl Cli {
    /// From the command line and the environment; what is wrong with them is told on one line.
    /// An empty variable counts as unset: deployments often cannot leave one out.
    pub fn from_environment() -> Self {
        let is_empty = |argument: &Arg| {
            argument.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty())
        };
        let command = Self::command()
            .mut_args(|argument| if is_empty(&argument) { argument.env(None::<&str>) } else { argument });
        let parsed =
            command.try_get_matches().and_then(|mut matches| Self::from_arg_matches_mut(&mut matches));
        parsed.unwrap_or_else(|error| {
            if !error.use_stderr() {
                error.exit();
            }
            eprintln!("{}", one_line(&error.to_string()));
            std::process::exit(error.exit_code());
        })
    }

    /// What reconciling needs of this.
    pub fn config(&self) -> Config {
        let filled = |text: &String| !text.is_empty();
        Config {
            server_image: self.server_image.clone(),
            server_cuda_image: self.server_cuda_image.clone().filter(filled),
            hub_endpoint: self.hub_endpoint.clone(),
            allowed_endpoints: self.allowed_endpoints.iter().filter(|text| filled(text)).cloned().collect(),
            fetch_retry: Duration::from_secs(self.fetch_retry.into()),
        }
    }

    /// The namespaces to look after; empty: all.
    pub fn namespaces(&self) -> Vec<String> {
        self.namespaces.iter().filter(|name| !name.is_empty()).cloned().collect()
    }
}

#[cfg(test)]
impl Config {
    /// For tests of decisions.
    pub(crate) fn for_tests() -> Self {
        Self {
            server_image: "server".into(),
            server_cuda_image: None,
            hub_endpoint: "https://hub.test".into(),
            allowed_endpoints: vec!["https://hub.test".into()],
            fetch_retry: Duration::from_mins(1),
        }
    }
}

/// Without the usage and the hint at `--help`, which stand in lines of their own.
fn one_line(error: &str) -> String {
    let lines = error.lines().map(str::trim);
    let telling = lines.filter(|line| {
        !line.is_empty() && !line.starts_with("Usage:") && !line.starts_with("For more information")
    });
    telling.collect::<Vec<_>>().join("; ")
}
