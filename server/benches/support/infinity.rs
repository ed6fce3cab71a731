//! infinity, the Python server that a user would take instead, as a process.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::LeftOut;
use super::load::{Dialect, Server};

/// One of its engines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Engine {
    /// How it is called in the tables.
    pub(crate) name: &'static str,
    options: &'static [&'static str],
    reads_onnx: bool,
}

impl Engine {
    /// Its two best on a CPU, with the CPU's native number format or without.
    pub(crate) const fn best(native_bf16: bool) -> [Self; 2] {
        [
            if native_bf16 {
                Self {
                    name: "infinity torch bfloat16",
                    options: &["--engine", "torch", "--dtype", "bfloat16"],
                    reads_onnx: false,
                }
            } else {
                Self { name: "infinity torch float32", options: &["--engine", "torch"], reads_onnx: false }
            },
            // It optimizes no graph itself: optimum has moved on. So it gets a fused one.
            Self {
                name: "infinity optimum float32",
                options: &["--engine", "optimum", "--pooling-method", "mean"],
                reads_onnx: true,
            },
        ]
    }
}

/// A running infinity.
pub(crate) struct Infinity {
    pub(crate) engine: Engine,
    pub(crate) server: Server,
    // Holds its model and its log.
    _scratch: TempDir,
}

impl Infinity {
    /// Starts it with its defaults, but for the log of requests, which would cost it, and waits
    /// until it answers. `BENCH_INFINITY_PYTHON` names its interpreter.
    pub(crate) fn start(
        runtime: &Runtime,
        engine: Engine,
        directory: &Path,
        onnx: Option<&Path>,
    ) -> anyhow::Result<Result<Self, LeftOut>> {
        let left_out = |why: &str| Ok(Err(LeftOut::new(engine.name, why)));
        let Some(python) = std::env::var_os("BENCH_INFINITY_PYTHON").filter(|name| !name.is_empty()) else {
            return left_out("BENCH_INFINITY_PYTHON names no interpreter");
        };
        if !Self::installed(&python)? {
            return left_out("its interpreter has no package infinity-emb");
        }
        let scratch = tempfile::tempdir()?;
        let model = scratch.path().join("model");
        fs::create_dir(&model)?;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            symlink(fs::canonicalize(entry.path())?, model.join(entry.file_name()))?;
        }
        match onnx {
            Some(onnx) if engine.reads_onnx => symlink(onnx, model.join("model.onnx"))?,
            None if engine.reads_onnx => return left_out("the model could not be exported to ONNX"),
            _ => {}
        }
        // It is asked for a port before it listens; between the two somebody could take it.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let log = scratch.path().join("log");
        let child = Command::new(&python)
            .args(["-c", "from infinity_emb.cli import cli; cli()", "v2"])
            // Its ONNX file is found in no other directory than the current one.
            .args(["--model-id", ".", "--served-model-name", "bench", "--device", "cpu"])
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--no-model-warmup", "--log-level", "warning"])
            .args(engine.options)
            .current_dir(&model)
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", scratch.path().join("hub"))
            .env("DO_NOT_TRACK", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .with_context(|| format!("starting {}", engine.name))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Server::of(child, address, Dialect::OpenAi);
        if let Err(error) = runtime.block_on(server.ready()) {
            let log = fs::read_to_string(&log).unwrap_or_default();
            let last = log.lines().rfind(|line| line.contains("Error")).unwrap_or_default();
            return left_out(&format!("{error}: {last}"));
        }
        Ok(Ok(Self { engine, server, _scratch: scratch }))
    }

    fn installed(python: &OsStr) -> anyhow::Result<bool> {
        let import = "import importlib.util as u, sys; sys.exit(not u.find_spec('infinity_emb'))";
        let status = Command::new(python).args(["-c", import]).status();
        Ok(status.with_context(|| format!("starting {}", python.display()))?.success())
    }

    /// The version of its package.
    pub(crate) fn version() -> Option<String> {
        let python = std::env::var_os("BENCH_INFINITY_PYTHON").filter(|name| !name.is_empty())?;
        let ask = "from importlib.metadata import version; print(version('infinity-emb'))";
        let output = Command::new(python).args(["-c", ask]).stderr(Stdio::null()).output().ok()?;
        let version = String::from_utf8(output.stdout).ok()?;
        Some(version.trim().to_owned()).filter(|version| !version.is_empty())
    }
}
