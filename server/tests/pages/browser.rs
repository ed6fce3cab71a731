//! A headless Chromium, and as much of the Chrome `DevTools` protocol as the tests of the pages need: over
//! two pipes, on which each message ends with a zero byte.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// How long a test waits for what must happen before it calls it a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// A browser with one tab; it ends when this is dropped.
pub(crate) struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    sent: u64,
    tab: Option<String>,
    events: Vec<Value>,
    // Dropped after the browser has ended.
    _profile: tempfile::TempDir,
}

/// Chromium of the system, or the one that `make test` brings.
fn chromium() -> Command {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.image-tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates: Vec<PathBuf> = Vec::new();
    for name in ["chromium-headless-shell", "chromium", "google-chrome"] {
        candidates.extend(std::env::split_paths(&path).map(|folder| folder.join(name)));
    }
    candidates.push(tools.join("usr/lib/chromium/chromium-headless-shell"));
    let program = candidates.into_iter().find(|file| file.is_file());
    let program = program.expect("Chromium is needed: install it, or let `make programs` bring it");
    // The shell puts the two pipes where Chromium looks for them.
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#]).arg(&program);
    if program.starts_with(&tools) {
        let libraries = tools.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        let pulse = libraries.join("pulseaudio");
        command.env("LD_LIBRARY_PATH", std::env::join_paths([libraries, pulse]).unwrap());
    }
    command
}

impl Browser {
    /// Starts one. It finds no host but this one.
    pub(crate) fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut child = chromium()
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--remote-debugging-pipe", "--window-size=1100,1400"])
            .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let parts = answers.split(0).map_while(Result::ok);
            let messages = parts.filter_map(|message| serde_json::from_slice(&message).ok());
            for message in messages {
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let (sent, tab, events) = (0, None, Vec::new());
        let mut browser = Self { child, commands, messages, sent, tab, events, _profile: profile };
        let target = browser.command("Target.createTarget", &json!({"url": "about:blank"}));
        let parameters = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.command("Target.attachToTarget", &parameters);
        browser.tab = Some(session["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Network", "Runtime", "Log", "Page"] {
            browser.command(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Sends a command and waits for its result.
    fn command(&mut self, method: &str, parameters: &Value) -> Value {
        self.sent += 1;
        let mut message = json!({"id": self.sent, "method": method, "params": parameters});
        if let Some(tab) = &self.tab {
            message["sessionId"] = tab.as_str().into();
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).unwrap();
        let begun = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let message = self.messages.recv_timeout(left);
            let mut message = message.unwrap_or_else(|error| panic!("{method} has no answer: {error}"));
            if message["id"] == self.sent {
                assert_eq!(message["error"], Value::Null, "{method} {parameters}");
                return message["result"].take();
            }
            self.events.push(message);
        }
    }

    /// The value of an expression, or of what it promises.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.command("Runtime.evaluate", &parameters);
        assert_eq!(answer["exceptionDetails"], Value::Null, "{expression}");
        answer["result"]["value"].take()
    }

    /// Opens a page and waits until an expression about it is true.
    pub(crate) fn open(&mut self, address: &str, until: &str) {
        self.command("Page.navigate", &json!({"url": address}));
        // Module scripts have begun by then.
        let there = format!("location.href === {} && document.readyState === 'complete'", json!(address));
        self.wait_for(&there);
        self.wait_for(until);
    }

    /// Waits until an expression is true.
    pub(crate) fn wait_for(&mut self, expression: &str) {
        let begun = Instant::now();
        while self.value(expression) != true {
            if begun.elapsed() > PATIENCE {
                let text = self.value("document.body.innerText");
                panic!(
                    "{expression} does not come true; {:?}:\n{}",
                    self.complaints(),
                    text.as_str().unwrap()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What is on the page for people to read.
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let text = self.value(&format!("document.querySelector({}).innerText", json!(selector)));
        text.as_str().unwrap().to_owned()
    }

    /// Writes as the keyboard would, where the focus is.
    pub(crate) fn write(&mut self, text: &str) {
        self.command("Input.insertText", &json!({"text": text}));
    }

    /// Presses a key: its name and its code.
    pub(crate) fn press(&mut self, key: &str, code: u32) {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let parameters = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code,
                "text": text});
            self.command("Input.dispatchKeyEvent", &parameters);
        }
    }

    /// Light or dark.
    pub(crate) fn prefer(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.command("Emulation.setEmulatedMedia", &json!({"features": features}));
    }

    /// The page as a picture, for people, among what cargo builds.
    pub(crate) fn picture(&mut self, name: &str) {
        let answer = self.command("Page.captureScreenshot", &json!({"captureBeyondViewport": true}));
        let picture = STANDARD.decode(answer["data"].as_str().unwrap()).unwrap();
        std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png")), picture).unwrap();
    }

    fn parameters(&self, method: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| event["method"] == method).map(|event| &event["params"]).collect()
    }

    /// The addresses that the pages have asked for.
    pub(crate) fn requested(&self) -> Vec<String> {
        let requests = self.parameters("Network.requestWillBeSent").into_iter();
        requests.map(|request| request["request"]["url"].as_str().unwrap().to_owned()).collect()
    }

    /// What the browser has against the pages: exceptions, and what was forbidden or not found.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let exceptions = self.parameters("Runtime.exceptionThrown");
        let entries = self.parameters("Log.entryAdded");
        [exceptions, entries].concat().into_iter().map(ToString::to_string).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
