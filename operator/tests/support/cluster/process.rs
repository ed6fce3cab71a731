//! Processes that do not outlive the test binary, however it ends.

use std::fs::File;
use std::io::{PipeWriter, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Runs a component and waits for it. What it reads are signals to send to the component; the
/// end of the input means that the test binary is gone (the system closes its pipes even after
/// SIGKILL), and then the component is killed. This needs neither PDEATHSIG, which follows the
/// thread that spawned, nor a destructor, which statics and killed processes do not get.
const GUARD: &str = r#"
exec 3<&0
"$@" 3<&- </dev/null >&2 &
component=$!
{
    while read -r signal; do kill -s "$signal" "$component"; done
    kill -s KILL "$component"
} <&3 2>/dev/null &
orders=$!
exec 3<&-
wait "$component"
status=$?
kill "$orders"
exit "$status"
"#;

/// Removes a folder when the last holder of its input's other end is gone.
const SWEEPER: &str = r#"cat; rm -rf "$1""#;

/// A shell that a Ctrl-C at the terminal does not reach: it has to see the test binary end.
fn shell(script: &str, name: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, name]).process_group(0);
    command
}

/// A folder that is removed when the test binary and all processes started in it have ended.
pub struct Folder {
    pub path: PathBuf,
    held: PipeWriter,
    // Only waits for the pipe; nobody has to wait for it.
    _sweeper: Child,
}

impl Folder {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("control-plane-").tempdir().expect("a temporary folder");
        let (reader, held) = std::io::pipe().expect("a pipe");
        let sweeper = shell(SWEEPER, "sweeper")
            .arg(folder.path())
            .stdin(reader)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("/bin/sh");
        Self { path: folder.keep(), held, _sweeper: sweeper }
    }
}

/// A component of the control plane.
pub struct Process {
    name: String,
    log: PathBuf,
    guard: Child,
    orders: Option<ChildStdin>,
}

impl Process {
    /// Starts a program; its output is added to `NAME.log` in the folder.
    pub fn start(folder: &Folder, program: &Path, arguments: &[String]) -> Self {
        let name = program.file_name().expect("a program").to_string_lossy().into_owned();
        let log = folder.path.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).expect("a log file");
        let mut guard = shell(GUARD, &name)
            .arg(program)
            .args(arguments)
            .current_dir(&folder.path)
            .stdin(Stdio::piped())
            // Held for the sweeper, never written to.
            .stdout(folder.held.try_clone().expect("a pipe can be cloned"))
            .stderr(output)
            .spawn()
            .expect("/bin/sh");
        let orders = guard.stdin.take();
        Self { name, log, guard, orders }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.guard.try_wait().expect("the guard is a child")
    }

    /// Asks it to end, and kills it when it has not after `patience`.
    pub async fn stop(&mut self, patience: Duration) {
        let asked = Instant::now();
        if let Some(orders) = &mut self.orders {
            // It fails where the process ended by itself.
            let _ = orders.write_all(b"TERM\n");
        }
        while self.ended().is_none() {
            if asked.elapsed() > patience {
                self.orders = None;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The last lines of what it wrote, for people.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        format!("--- the end of the log of {}:\n{tail}\n", self.name)
    }

    /// Whether it failed because another process was faster to take a port.
    pub fn lost_a_port(&self) -> bool {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log).contains("address already in use")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.guard.wait();
    }
}
