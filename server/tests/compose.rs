//! What `docker compose` starts, without Docker: the server with the file's environment, and
//! a real nginx with its configuration before it.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::CommandFactory as _;
use embedding_server::config::Cli;
use serde_json::{Value, json};
use support::process::{Response, Server, command, send};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The environment of whoever runs `docker compose`.
type Variables<'a> = BTreeMap<&'a str, &'a str>;

/// A service of the file, with variables put in as Compose does.
fn service(name: &str, variables: &Variables<'_>) -> Value {
    let text = std::fs::read_to_string(root().join("docker-compose.yaml")).unwrap();
    let file: Value = serde_yaml::from_str(&interpolate(&text, variables)).unwrap();
    file["services"][name].clone()
}

/// `${NAME:-default}` and `$$`, which is all that the file uses.
fn interpolate(text: &str, variables: &Variables<'_>) -> String {
    let mut pieces = text.split("${");
    let mut whole = pieces.next().unwrap().to_owned();
    for piece in pieces {
        let (inside, after) = piece.split_once('}').unwrap();
        let (name, default) = inside.split_once(":-").unwrap_or_else(|| panic!("{inside} has no default"));
        whole += variables.get(name).copied().filter(|value| !value.is_empty()).unwrap_or(default);
        whole += after;
    }
    whole.replace("$$", "$")
}

/// A service's environment. Without a value, a name stands for the variable of whoever runs
/// `docker compose`, or for nothing.
fn environment(service: &Value, variables: &Variables<'_>) -> BTreeMap<String, String> {
    let entries = service["environment"].as_object().unwrap();
    let value = |name: &str, value: &Value| match value {
        Value::Null => variables.get(name).map(|value| (*value).to_owned()),
        Value::String(value) => Some(value.clone()),
        other => Some(other.to_string()),
    };
    entries.iter().filter_map(|(name, given)| Some((name.clone(), value(name, given)?))).collect()
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The server as the file starts it, on a port that is asked for as its users do.
fn serve(port: u16, more: &Variables<'_>) -> Server {
    let port = port.to_string();
    let mut variables = Variables::from([("PORT", port.as_str()), ("EMBEDDING_LOG_FORMAT", "json")]);
    variables.extend(more);
    let service = service("embedding-server", &variables);
    assert_eq!(
        service["ports"],
        json!([format!("{port}:{port}")]),
        "inside and outside the port is the same"
    );
    let mut server = Server::spawn(command(&[]).envs(environment(&service, &variables)));
    server.wait_for_health("healthy");
    server
}

#[test]
fn the_server_listens_where_it_is_published_and_its_health_check_finds_it() {
    let defaults = service("embedding-server", &Variables::new());
    assert_eq!(defaults["ports"], json!(["9000:9000"]));
    let port = free_port();
    let server = serve(port, &Variables::new());
    assert_eq!(server.address.port(), port);
    let body = server.post("/embeddings", &json!({"texts": ["a"], "model": "all-minilm-l6-v2"})).json();
    assert_eq!(body["dimensions"], 384);
    let check: Vec<String> = serde_json::from_value(defaults["healthcheck"]["test"].clone()).unwrap();
    let [kind, program, arguments @ ..] = check.as_slice() else { panic!("{check:?}") };
    assert_eq!((kind.as_str(), program.as_str()), ("CMD", "/app/bin/embedding-server"), "there is no shell");
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let output = command(&arguments).env("PORT", port.to_string()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_file_bounds_what_the_server_takes_and_restarts_it() {
    let service = service("embedding-server", &Variables::new());
    assert_eq!(
        service["deploy"]["resources"],
        json!({"limits": {"cpus": "1.0", "memory": "2G"}, "reservations": {"cpus": "0.5", "memory": "512M"}})
    );
    assert_eq!(service["image"], concat!("embedding-server:", env!("CARGO_PKG_VERSION")));
    assert_eq!(service["healthcheck"]["interval"], "30s");
    assert_eq!(service["restart"], "unless-stopped");
    assert_eq!(service["read_only"], true);
    assert_eq!(service["volumes"], json!(["models:/app/.cache/.rustbert"]));
    // What the Dockerfile says is the same.
    let dockerfile = std::fs::read_to_string(root().join("Dockerfile.server")).unwrap();
    assert!(dockerfile.contains("/app/.cache/.rustbert/"));
    assert!(dockerfile.contains(r#"CMD ["/app/bin/embedding-server", "healthcheck"]"#));
    // Every variable that is passed on is one that the server knows, and the defaults agree.
    let command = Cli::command();
    let serve = command.find_subcommand("serve").unwrap();
    for (name, value) in service["environment"].as_object().unwrap() {
        let option =
            serve.get_arguments().find(|option| option.get_env().is_some_and(|env| env == name.as_str()));
        let option = option.unwrap_or_else(|| panic!("the server has no variable {name}"));
        if !value.is_null() {
            assert_eq!(value.to_string(), option.get_default_values()[0].to_string_lossy(), "{name}");
        }
    }
}

/// nginx with the file's configuration; it is killed when this is dropped.
struct Nginx {
    child: Child,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Nginx {
    fn start(server: SocketAddr, variables: &Variables<'_>) -> Self {
        let port = server.port().to_string();
        let mut variables = variables.clone();
        variables.insert("PORT", &port);
        let service = service("nginx", &variables);
        let environment = environment(&service, &variables);
        let [mount] = service["volumes"].as_array().unwrap().as_slice() else { panic!("{service}") };
        let (source, target) = mount.as_str().unwrap().split_once(':').unwrap();
        assert_eq!(target, "/etc/nginx/templates/nginx.conf.template:ro", "where the image looks for it");
        let template = std::fs::read_to_string(root().join(source)).unwrap();

        // As the image's envsubst, which fills in the variables that the filter names.
        assert_eq!(environment["NGINX_ENVSUBST_FILTER"], "^(PORT|EMBEDDING_MAX_BODY_BYTES)$");
        let mut text = template;
        for name in ["PORT", "EMBEDDING_MAX_BODY_BYTES"] {
            text = text.replace(&format!("${{{name}}}"), &environment[name]);
        }
        assert!(!text.contains("${"), "a variable that nobody fills in");
        // What is different outside of a container: where the server is, where nginx may
        // listen and write.
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        for (inside, outside) in [
            ("server embedding-server:", "server 127.0.0.1:".to_owned()),
            ("listen 8080;", format!("listen {address};")),
            ("/tmp/", format!("{}/", folder.path().display())),
            ("/dev/stdout", folder.path().join("log").display().to_string()),
            ("/dev/stderr", folder.path().join("errors").display().to_string()),
        ] {
            assert!(text.contains(inside), "{inside}");
            text = text.replace(inside, &outside);
        }
        let configuration = folder.path().join("nginx.conf");
        std::fs::write(&configuration, text).unwrap();

        let words: Vec<String> = serde_json::from_value(service["command"].clone()).unwrap();
        assert_eq!(words[..3], ["nginx", "-c", "/tmp/nginx.conf"]);
        let errors = folder.path().join("start");
        let mut nginx = nginx();
        nginx.arg("-e").arg(&errors).arg("-p").arg(folder.path()).arg("-c").arg(configuration);
        let mut child = nginx.args(&words[3..]).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while send(address, "GET", "/metrics", &[], b"").is_err() {
            let ended = child.try_wait().unwrap();
            let late = begun.elapsed() > Duration::from_secs(20);
            assert!(ended.is_none() && !late, "{}", std::fs::read_to_string(&errors).unwrap_or_default());
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, address, folder }
    }

    fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let headers: Vec<_> = [("Content-Type", "application/json")].iter().chain(headers).copied().collect();
        send(self.address, "POST", "/embeddings", &headers, body).unwrap()
    }

    /// Waits for the line about a request, which is written after its answer.
    fn logged(&self, id: &str) -> Value {
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap();
            let whole = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            if let Some(line) = whole.into_iter().find(|line| line["request_id"] == id) {
                return line;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{id} is not in the log:\n{text}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Politely: what it has started ends with it.
        drop(Command::new("kill").arg(self.child.id().to_string()).status());
        drop(self.child.wait());
    }
}

/// nginx of the system, or the one that `make test` brings.
fn nginx() -> Command {
    let tools = root().join(".image-tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), tools.join("usr/sbin")]);
    let program = folders
        .map(|folder| folder.join("nginx"))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("nginx is needed: install it, or let `make programs` bring it"));
    let mut command = Command::new(&program);
    if program.starts_with(&tools) {
        let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        command.env("LD_LIBRARY_PATH", tools.join(libraries));
    }
    command
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    let mut lines = response.head.lines().filter_map(|line| line.split_once(": "));
    lines.find_map(|(found, value)| found.eq_ignore_ascii_case(name).then_some(value))
}

#[test]
fn nginx_passes_everything_on_and_keeps_what_the_server_promises() {
    let variables = Variables::from([("EMBEDDING_MAX_BODY_BYTES", "100000")]);
    let server = serve(free_port(), &variables);
    let nginx = Nginx::start(server.address, &variables);
    let get = |path: &str| send(nginx.address, "GET", path, &[], b"").unwrap();

    assert_eq!(get("/health").json(), json!({"status": "healthy", "models": ["all-minilm-l6-v2"]}));
    assert_eq!(get("/metrics").status, 404, "metrics are not for everybody");
    let body = json!({"texts": ["Hello, world!"]});
    let answer = nginx.post(&[("X-Request-Id", "mine-1")], body.to_string().as_bytes());
    assert_eq!((answer.status, header(&answer, "x-request-id")), (200, Some("mine-1")));
    assert_eq!(answer.json(), server.post("/embeddings", &body).json());

    // Without an id, or with one that is none, the same new one is in both logs.
    for headers in [vec![], vec![("X-Request-Id", "not one")]] {
        let answer = nginx.post(&headers, body.to_string().as_bytes());
        let id = header(&answer, "x-request-id").unwrap().to_owned();
        assert!(id.len() == 32 && !id.contains("not"), "{id}");
        assert_eq!(nginx.logged(&id)["status"], 200);
        assert!(server.log().contains(&id), "{}", server.log());
    }

    // The largest body that the server takes gets to it; one byte more does not.
    let padded = |size: usize| {
        let text = json!({"texts": [""]}).to_string();
        json!({"texts": ["a ".repeat(size)[..size - text.len()]]}).to_string()
    };
    assert_eq!(nginx.post(&[], padded(100_000).as_bytes()).status, 200);
    let answer = nginx.post(&[], padded(100_001).as_bytes());
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (413, &json!("body_too_large")));
    assert!(header(&answer, "x-request-id").is_some());

    // Connections to the server are kept: those that nginx has open now, and this one.
    let metrics = server.get("/metrics").body;
    let open = metrics.lines().find_map(|line| line.strip_prefix("embedding_http_connections ")).unwrap();
    assert!(open.parse::<u32>().unwrap() >= 2, "{open}");

    // What cannot be reached has the shape of the server's errors, and no log has inputs.
    drop(server);
    let answer = get("/embeddings?text=xyzzySecretInput");
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("unreachable")));
    assert_eq!(header(&answer, "retry-after"), Some("5"));
    assert_eq!(nginx.logged(header(&answer, "x-request-id").unwrap())["status"], 503);
    for name in ["log", "errors", "start"] {
        let text = std::fs::read_to_string(nginx.folder.path().join(name)).unwrap_or_default();
        assert!(!text.contains("xyzzySecretInput"), "{name}: {text}");
    }
}

#[test]
fn the_dockerfiles_have_no_findings() {
    let hadolint = root().join(".python/bin/hadolint");
    assert!(hadolint.is_file(), "hadolint is missing: run `make python`");
    let output = Command::new(hadolint)
        .args(["--failure-threshold", "style", "Dockerfile.server", "Dockerfile.operator"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
