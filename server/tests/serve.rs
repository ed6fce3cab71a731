//! The program as its users meet it: a process, real models, real HTTP.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

#[path = "support/hub.rs"]
mod hub;
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use embedding_server::kernels::cpu::{Cpu, InstructionSet};
use embedding_server::model::Dtype;
use hub::{FakeHub, Fault, Tree};
use serde_json::{Value, json};
use support::process::{Server, command, send};
use support::tiny::Tiny;
use support::{cosine, minilm};

fn vectors(response: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(response["embeddings"].clone())
        .unwrap_or_else(|error| panic!("{error}: {response}"))
}

fn model(name: &str) -> String {
    format!("{name}={}", minilm().display())
}

/// A text, and the first and last values of its vector by Python's sentence-transformers.
const HELLO: (&str, [f32; 4], [f32; 4]) = (
    "Hello, world!",
    [-0.038_177_16, 0.032_911_05, -0.005_459_46, 0.014_369_89],
    [0.040_021_09, -0.040_890_29, 0.031_871_37, 0.018_163_19],
);

#[test]
fn real_vectors_over_real_http() {
    let server = Server::healthy(&["--model", &model("minilm"), "--dtype", "float32"]);
    let response = server.post("/embeddings", &json!({"texts": [HELLO.0], "model": "minilm"}));
    assert_eq!(response.status, 200);
    let body = response.json();
    assert_eq!((&body["model"], &body["dimensions"]), (&json!("minilm"), &json!(384)));
    let vector = vectors(&body).remove(0);
    assert_eq!(vector.len(), 384);
    for (ours, python) in vector[..4].iter().chain(&vector[380..]).zip(HELLO.1.iter().chain(&HELLO.2)) {
        assert!((ours - python).abs() < 1e-6, "{ours} {python}");
    }
    let norm: f32 = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    assert!((norm - 1.0).abs() < 1e-5, "{norm}");

    let got = server.get("/embeddings?text=Hello,%20world!&model=minilm").json();
    assert!(cosine(&vectors(&got)[0], &vector) > 0.999_999);
    let openai = server.post("/v1/embeddings", &json!({"input": HELLO.0, "model": "minilm"})).json();
    let openai: Vec<f32> = serde_json::from_value(openai["data"][0]["embedding"].clone()).unwrap();
    assert!(cosine(&openai, &vector) > 0.999_999);
    let numerics = &server.get("/models").json()["models"][0]["numerics"];
    let fused = Cpu::this().sets().contains(&InstructionSet::Avx512F32);
    assert_eq!(numerics["implementation"], if fused { "fused" } else { "packed" });
    assert_eq!(numerics["dtype"], "float32");
}

#[test]
fn the_fastest_kernels_of_the_cpu_compute_or_those_that_were_asked_for() {
    let numerics = |options: &[&str]| {
        let server = Server::healthy(&[&["--model", &model("mini")], options].concat());
        let vector = vectors(&server.post("/embeddings", &json!({"texts": [HELLO.0]})).json()).remove(0);
        (server.get("/models").json()["models"][0]["numerics"].clone(), vector)
    };
    let (auto, vector) = numerics(&[]);
    let sets = Cpu::this().sets();
    let Some(fastest) = sets.first() else {
        println!("NOT RUN: fused kernels in a server; this CPU has no AVX-512");
        assert_eq!(auto["implementation"], "packed");
        return;
    };
    let fused = |set: InstructionSet| {
        let dtype = Dtype::of(set).to_string();
        json!({"implementation": "fused", "dtype": dtype, "kernels": set.name(), "device": "cpu"})
    };
    assert_eq!(auto, fused(*fastest));
    if sets.contains(&InstructionSet::Avx512F32) {
        let (exact, other) = numerics(&["--dtype", "float32"]);
        assert_eq!(exact, fused(InstructionSet::Avx512F32));
        assert!(cosine(&other, &vector) > 0.9999);
        let (packed, other) = numerics(&["--dtype", "float32", "--implementation", "packed"]);
        assert_eq!(packed, json!({"implementation": "packed", "dtype": "float32", "device": "cpu"}));
        assert!(cosine(&other, &vector) > 0.9999);
    }
    for set in InstructionSet::ALL {
        if sets.contains(&set) {
            let (forced, other) = numerics(&["--kernels", set.name()]);
            assert_eq!(forced, fused(set));
            assert!(cosine(&other, &vector) > 0.9999, "{set}");
        } else {
            println!("NOT RUN: a server with {set}, which this CPU lacks: only the refusal is tested");
            let arguments = ["serve", "--model", &model("mini"), "--kernels", set.name()];
            let refused = command(&arguments).output().unwrap();
            assert!(!refused.status.success());
            let stderr = String::from_utf8_lossy(&refused.stderr);
            assert!(stderr.contains(&format!("--kernels {set}: this CPU has")), "{stderr}");
        }
    }
}

#[test]
fn several_models_and_either_implementation_in_one_server_each() {
    let tiny = Tiny::new().write();
    let tiny_model = format!("tiny={}", tiny.path().display());
    let server = Server::healthy(&[
        "--model",
        &model("mini"),
        "--model",
        &tiny_model,
        "--implementation",
        "rust_bert",
    ]);
    assert_eq!(server.get("/health").json(), json!({"status": "healthy", "models": ["mini", "tiny"]}));
    for (name, dimensions) in [("mini", 384), ("tiny", 16)] {
        let body = server.post("/embeddings", &json!({"texts": ["a"], "model": name})).json();
        assert_eq!((&body["model"], &body["dimensions"]), (&json!(name), &json!(dimensions)));
    }
    for model in server.get("/models").json()["models"].as_array().unwrap() {
        let numerics = &model["numerics"];
        assert_eq!(
            (&numerics["implementation"], &numerics["dtype"]),
            (&json!("rust_bert"), &json!("float32"))
        );
    }
    assert_eq!(server.post("/embeddings", &json!({"texts": ["a"]})).status, 400);
}

#[test]
fn logs_never_hold_inputs_not_even_at_the_finest_level() {
    // More exact directives win over less exact ones, so these name what logs inputs.
    let log = "trace,h2=trace,h2::server=trace,h2::codec::framed_read=trace,hyper=trace,tokenizers=trace";
    let server = Server::healthy(&["--model", &model("mini"), "--log", log]);
    let secret = "xyzzySecretInput";
    assert_eq!(server.post("/embeddings", &json!({"texts": [secret]})).status, 200);
    assert_eq!(server.post("/v1/embeddings", &json!({"input": secret})).status, 200);
    assert_eq!(server.get(&format!("/embeddings?text={secret}")).status, 200);
    assert_eq!(server.post("/embeddings", &json!({"texts": [secret, 3]})).status, 400);
    assert_eq!(server.post("/embeddings", &json!({ secret: 3 })).status, 400);
    assert_eq!(server.get(&format!("/{secret}")).status, 404);
    // HTTP/2 by hand, because no client sends the first: a path that is none is logged by h2.
    let path = |path: &str| {
        let mut headers = vec![0x82, 0x86, 0x01, 1, b'x', 0x04, u8::try_from(path.len()).unwrap()];
        headers.extend(path.as_bytes());
        headers
    };
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let mut frame = vec![0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, stream];
        frame.extend(payload);
        frame
    };
    let mut http2 = TcpStream::connect(server.address).unwrap();
    http2.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    http2.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    http2.write_all(&frame(4, 0, 0, &[])).unwrap();
    http2.write_all(&frame(1, 5, 1, &path(&format!("/embeddings?text={secret} <\u{1}>")))).unwrap();
    http2.write_all(&frame(1, 5, 3, &path(&format!("/embeddings?text={secret}")))).unwrap();
    // Until the answer's body of the second one: the first has been dealt with by then.
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("embeddings") {
        let mut buffer = [0; 4096];
        let n = std::io::Read::read(&mut http2, &mut buffer).unwrap();
        assert_ne!(n, 0, "no answer to a good request after a bad one: {answer:?}");
        answer.extend(&buffer[..n]);
    }
    std::thread::sleep(Duration::from_millis(100));
    let log = server.log();
    assert!(log.contains("\"path\":\"/embeddings\""), "requests are logged:\n{log}");
    assert!(!log.contains(secret), "{}", log.lines().find(|line| line.contains(secret)).unwrap());
    // One character a line is the input too.
    let characters = log.lines().find(|line| line.contains("\"target\":\"tokenizers"));
    assert_eq!(characters, None);
}

#[test]
fn sigterm_lets_requests_under_way_finish_and_takes_no_new_ones() {
    // One worker: on a big machine the request would be done before it is looked at.
    let server = Server::healthy(&["--model", &model("mini"), "--dtype", "float32", "--workers", "1"]);
    let address = server.address;
    let texts: Vec<String> = (0..300).map(|n| format!("text {n} {}", "word ".repeat(60))).collect();
    let body = json!({"texts": texts}).to_string();
    let request = std::thread::spawn(move || {
        send(address, "POST", "/embeddings", &[("Content-Type", "application/json")], body.as_bytes())
    });
    while !server.get("/metrics").body.contains("embedding_batches_total") {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!request.is_finished(), "the request is too short for this test");
    server.terminate();
    let (status, log) = server.wait();
    assert!(status.success(), "{status}\n{log}");
    assert!(log.contains("\"message\":\"stopped\""), "{log}");
    let response = request.join().unwrap().unwrap();
    assert_eq!(response.status, 200);
    assert_eq!(vectors(&response.json()).len(), 300);
    assert!(TcpStream::connect(address).is_err(), "the port is closed");
}

#[test]
fn who_keeps_a_connection_is_told_that_it_ends_before_it_does() {
    let server = Server::healthy(&["--model", &model("mini")]);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = |stream: &mut TcpStream| {
        stream.write_all(b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        let (mut answer, mut part) = (Vec::new(), [0; 4096]);
        while !answer.ends_with(b"}]}") {
            let read = stream.read(&mut part).unwrap();
            assert_ne!(read, 0, "it was closed without an answer");
            answer.extend_from_slice(&part[..read]);
        }
        String::from_utf8(answer).unwrap().to_lowercase()
    };
    assert!(!head(&mut stream).contains("connection: close"));
    server.terminate();
    std::thread::sleep(Duration::from_millis(500));
    let answer = head(&mut stream);
    assert!(answer.starts_with("http/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "and then it ends");
    let begun = Instant::now();
    let (status, log) = server.wait();
    assert!(status.success(), "{status}\n{log}");
    assert!(begun.elapsed() < Duration::from_secs(3), "nobody is connected any more: {:?}", begun.elapsed());
}

#[test]
fn a_request_that_is_refused_before_its_body_came_does_not_cost_the_connection() {
    let server = Server::healthy(&["--model", &model("mini")]);
    let refused = |length: usize| {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let head = "POST /embeddings HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\nContent-Length:";
        stream.write_all(format!("{head} {length}\r\n\r\n").as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        stream
    };
    let answer = |stream: &mut TcpStream, end: &[u8]| {
        let (mut answer, mut part) = (Vec::new(), [0; 4096]);
        while !answer.ends_with(end) {
            let read = stream.read(&mut part).unwrap();
            assert_ne!(read, 0, "it was closed without an answer: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&part[..read]);
        }
        String::from_utf8(answer).unwrap().to_lowercase()
    };
    let mut stream = refused(1000);
    stream.write_all(&[b'a'; 1000]).unwrap();
    let first = answer(&mut stream, b"}}");
    assert!(first.starts_with("http/1.1 415") && !first.contains("connection: close"), "{first}");
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    assert!(answer(&mut stream, b"}").starts_with("http/1.1 200"));

    // What is long, or does not come, is not waited for: the connection ends, which is told.
    for sent in [0, 500_000] {
        let mut stream = refused(1_000_000);
        stream.write_all(&vec![b'a'; sent]).unwrap();
        let first = answer(&mut stream, b"}}");
        assert!(first.starts_with("http/1.1 415") && first.contains("connection: close"), "{first}");
    }
}

#[test]
fn being_told_to_stop_while_a_model_loads_or_computes_ends_well() {
    for wait in [20, 60, 100, 140, 200, 260, 320, 400] {
        let server = Server::start(&["--model", &model("mini")]);
        std::thread::sleep(Duration::from_millis(wait));
        server.terminate();
        let (status, log) = server.wait();
        assert_eq!(status.code(), Some(0), "{status} after {wait} ms\n{log}");
    }
    let server = Server::healthy(&["--model", &model("mini"), "--shutdown-timeout", "0"]);
    let address = server.address;
    let body = json!({"texts": vec!["word ".repeat(200); 400]}).to_string();
    let request = std::thread::spawn(move || {
        send(address, "POST", "/embeddings", &[("Content-Type", "application/json")], body.as_bytes())
    });
    while !server.get("/metrics").body.contains("embedding_batches_total") {
        std::thread::sleep(Duration::from_millis(5));
    }
    server.terminate();
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{status}\n{log}");
    assert!(log.contains("stopped before all requests were finished"), "{log}");
    assert!(request.join().unwrap().is_err(), "the request was cut off");
}

#[test]
fn being_told_to_stop_during_a_download_ends_well() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let hub = runtime.block_on(FakeHub::start(Tree::of_directory("org/tiny", Tiny::new().write().path())));
    hub.fault("cdn", "", 1, Fault::Stall(1000));
    let cache = tempfile::tempdir().unwrap();
    let mut command = command(&["serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json"]);
    command.args(["--model", "tiny=org/tiny@main"]).env("RUSTBERT_CACHE", cache.path());
    let server = Server::spawn(command.env("HF_ENDPOINT", hub.endpoint.as_str()));
    while !server.get("/health").body.contains("fetching model.safetensors") {
        std::thread::sleep(Duration::from_millis(5));
    }
    server.terminate();
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{status}\n{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_model_that_cannot_be_fetched_is_tried_again_until_it_can() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let hub = runtime.block_on(FakeHub::start(Tree::of_directory("org/tiny", Tiny::new().write().path())));
    let missing = Fault::Status { status: 404, code: Some("RepoNotFound"), retry_after: None };
    hub.fault("hub", "/revision/main", 1, missing);
    let cache = tempfile::tempdir().unwrap();
    let mut command = command(&["serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json"]);
    command.args(["--model", "tiny=org/tiny@main"]).env("RUSTBERT_CACHE", cache.path());
    let mut server = Server::spawn(command.env("HF_ENDPOINT", hub.endpoint.as_str()));
    server.wait_for_health("healthy");
    server.terminate();
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{status}\n{log}");
    assert!(log.contains("cannot be fetched") && !log.contains("panicked"), "{log}");
}

#[test]
fn a_health_check_ends_with_the_code_that_says_how_the_server_is() {
    let server = Server::healthy(&["--model", &model("mini")]);
    let port = server.address.port().to_string();
    let check = |arguments: &[&str]| {
        // A proxy is not asked, however it is named.
        let output = command(&[&["healthcheck"], arguments].concat())
            .envs([
                ("PORT", port.as_str()),
                ("HTTP_PROXY", "http://127.0.0.1:1"),
                ("http_proxy", "http://127.0.0.1:1"),
            ])
            .output()
            .unwrap();
        assert!(output.stdout.is_empty());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check(&[]), (Some(0), String::new()));
    let nowhere = format!("http://127.0.0.1:{port}/nowhere");
    let (code, stderr) = check(&["--url", &nowhere]);
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with(&format!("error: {nowhere} answers with 404: {{\"error\"")), "{stderr}");
    drop(server);
    let (code, stderr) = check(&[]);
    assert_eq!(code, Some(1));
    assert_eq!(
        stderr,
        format!(
            "error: no answer from http://127.0.0.1:{port}/health, where a server should listen: Connection \
             refused (os error 111)\n"
        )
    );
}

#[test]
fn a_connection_that_says_nothing_gives_up_its_place() {
    let server =
        Server::healthy(&["--model", &model("mini"), "--header-timeout", "1", "--max-connections", "3"]);
    let connect = |first: &[u8]| {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(first).unwrap();
        stream
    };
    // Silence, what could become either version, and all of HTTP/2's first words but one.
    let silent = [connect(b""), connect(b"P"), connect(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r")];
    assert_eq!(server.get("/livez").status, 200, "when the silent ones have lost their places");
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut answer).unwrap();
        assert!(answer.is_empty(), "{answer:?}");
    }
}

#[test]
fn a_slow_request_head_is_cut_off() {
    let server = Server::healthy(&["--model", &model("mini"), "--header-timeout", "1"]);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"POST /embeddings HTTP/1.1\r\nHost: x\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut answer).unwrap();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{answer:?}");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn threads_follow_the_cpu_limit_and_not_the_hosts_cores() {
    let server = |cpus: &str| {
        let mut wrapped = std::process::Command::new("taskset");
        let inner = command(&[
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--log-format",
            "json",
            "--model",
            &model("mini"),
        ]);
        wrapped.args(["-c", cpus]).arg(inner.get_program()).args(inner.get_args()).env_clear();
        wrapped.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut server = Server::spawn(&mut wrapped);
        server.wait_for_health("healthy");
        assert_eq!(server.post("/embeddings", &json!({"texts": vec!["some words"; 64]})).status, 200);
        let threads = server.threads();
        let count = |prefix: &str| threads.iter().filter(|name| name.starts_with(prefix)).count();
        (count("embed-"), count("tokenize-"), count("http"), threads)
    };
    // Not CPU 0: a container need not have that one.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let first = allowed.trim().split([',', '-']).next().unwrap();
    let (embed, tokenize, http, all) = server(first);
    assert_eq!((embed, tokenize), (1, 1), "{all:?}");
    assert!(http <= 2, "one worker and at most one thread for blocking calls: {all:?}");
    assert!(all.len() <= 6, "{all:?}");
}

/// Runs the program to its end; its exit code and what it wrote to standard error.
fn run(arguments: &[&str]) -> (i32, String) {
    let output = command(arguments).stdin(Stdio::null()).output().unwrap();
    (output.status.code().expect("an exit code"), String::from_utf8(output.stderr).unwrap())
}

/// Serves a directory that cannot be served; the one line that says why.
fn refusal(directory: &std::path::Path, more: &[&str]) -> String {
    let model = format!("m={}", directory.display());
    let mut arguments = vec!["--host", "127.0.0.1", "--port", "0", "--log", "error", "--model", &model];
    arguments.extend(more);
    let (code, stderr) = run(&arguments);
    assert_eq!(code, 1, "{stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines.len(), 1, "one line:\n{stderr}");
    let line = lines[0].strip_prefix("error: model m: ").unwrap_or_else(|| panic!("{stderr}"));
    line.replace(&directory.display().to_string(), "DIR")
}

#[test]
fn a_directory_that_cannot_be_served_ends_the_process_with_one_line_that_names_file_and_cause() {
    type Damage = fn(&mut Tiny);
    let table: [(Damage, &str); 18] = [
        (
            |tiny| tiny.config["model_type"] = json!("gpt2"),
            "DIR/config.json: architecture \"gpt2\" is not supported; supported: bert",
        ),
        (
            |tiny| tiny.config["hidden_size"] = json!("x"),
            "DIR/config.json: hidden_size is \"x\", and no whole number",
        ),
        (
            |tiny| tiny.config["hidden_size"] = json!(32),
            "DIR/1_Pooling/config.json: pools vectors of 16 dimensions, but the encoder makes 32",
        ),
        (
            |tiny| tiny.config["num_attention_heads"] = json!(3),
            "DIR/config.json: hidden_size 16 is no multiple of num_attention_heads 3",
        ),
        (
            |tiny| tiny.config["hidden_act"] = json!("mish"),
            "DIR/config.json: hidden_act \"mish\" is not supported; supported: gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish",
        ),
        (
            |tiny| tiny.config["num_hidden_layers"] = json!(3),
            "DIR/model.safetensors: tensor encoder.layer.2.attention.self.query.weight: is missing; expected shape [16, 16]",
        ),
        (
            |tiny| tiny.config["intermediate_size"] = json!(64),
            "DIR/model.safetensors: tensor encoder.layer.0.intermediate.dense.weight: has shape [32, 16], but the configuration says [64, 16]",
        ),
        (
            |tiny| tiny.tensors.get_mut("embeddings.LayerNorm.bias").unwrap().values[5] = f32::INFINITY,
            "DIR/model.safetensors: tensor embeddings.LayerNorm.bias: has values that are not finite (NaN or infinity)",
        ),
        (
            |tiny| tiny.tensors.get_mut("encoder.layer.1.output.dense.bias").unwrap().values[3] = f32::NAN,
            "DIR/model.safetensors: tensor encoder.layer.1.output.dense.bias: has values that are not finite (NaN or infinity)",
        ),
        (
            |tiny| {
                let words = tiny.tensors.get_mut("embeddings.word_embeddings.weight").unwrap();
                words.shape[0] = 100;
                words.values.truncate(1600);
                tiny.config["vocab_size"] = json!(100);
            },
            "DIR/tokenizer.json: not a tokenizer that can be used: it makes ids up to 30521, but the model has embeddings for 100: is it another model's?",
        ),
        (
            |tiny| tiny.files.push(("model.safetensors".into(), b"PK\x03\x04 a zip of pickles".to_vec())),
            "DIR/model.safetensors: a Python pickle, which can execute code and is never loaded; if it is one of torch.save's, name it pytorch_model.bin and run `embedding-server convert DIRECTORY`",
        ),
        (
            |tiny| tiny.files.push(("model.safetensors".into(), b"\x80\x02}q\x00. a bare pickle".to_vec())),
            "DIR/model.safetensors: a Python pickle, which can execute code and is never loaded; if it is one of torch.save's, name it pytorch_model.bin and run `embedding-server convert DIRECTORY`",
        ),
        (
            |tiny| tiny.files.push(("model.safetensors".into(), b"<html>not found</html>".to_vec())),
            "DIR/model.safetensors: is no safetensors file or is cut off: its first bytes promise a header of 8029423821061908540 bytes in 22",
        ),
        (
            |tiny| tiny.files.push(("tokenizer.json".into(), b"{}".to_vec())),
            "DIR/tokenizer.json: not a tokenizer that can be used: ",
        ),
        (
            |tiny| tiny.modules[2]["type"] = json!("sentence_transformers.models.CNN"),
            "DIR/modules.json: module 2 \"sentence_transformers.models.CNN\" is not supported there; supported: Transformer, Pooling, then Dense, LayerNorm, Normalize and Dropout",
        ),
        (
            |tiny| tiny.modules[1]["path"] = json!("../1_Pooling"),
            "DIR/modules.json: module path \"../1_Pooling\" leads out of the directory",
        ),
        (
            |tiny| tiny.pooling = json!({"pooling_mode": "median"}),
            "DIR/1_Pooling/config.json: pooling mode median is not supported; supported: cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken",
        ),
        (
            |tiny| {
                tiny.files.push((
                    "config_sentence_transformers.json".into(),
                    br#"{"prompts": {}, "default_prompt_name": "query"}"#.to_vec(),
                ));
            },
            "DIR/config_sentence_transformers.json: default_prompt_name \"query\" is not among its prompts",
        ),
    ];
    for (damage, message) in table {
        let mut tiny = Tiny::new();
        damage(&mut tiny);
        let written = tiny.write();
        let line = refusal(written.path(), &[]);
        assert!(line.starts_with(message), "{line}\nwanted {message}");
    }
}

#[test]
fn a_directory_with_missing_or_cut_files_ends_the_process_too() {
    let written = Tiny::new().write();
    let weights = written.file("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() - 100]).unwrap();
    let cut = refusal(written.path(), &[]);
    assert_eq!(
        cut,
        format!(
            "DIR/model.safetensors: is {} bytes long, but its header describes {}: cut off?",
            whole.len() - 100,
            whole.len()
        )
    );
    std::fs::rename(&weights, written.file("pytorch_model.bin")).unwrap();
    let pickled = refusal(written.path(), &[]);
    assert_eq!(
        pickled,
        "DIR/model.safetensors: no such file; the directory has pytorch_model.bin, a pickle that can execute code \
         and is never loaded: `embedding-server convert DIR` makes safetensors of it"
    );
    std::fs::remove_file(written.file("tokenizer.json")).unwrap();
    assert!(refusal(written.path(), &[]).starts_with("DIR/tokenizer.json: no such file"));
    std::fs::remove_file(written.file("config.json")).unwrap();
    assert!(refusal(written.path(), &[]).starts_with("DIR/config.json: no such file"));
    let path = written.path().to_owned();
    drop(written);
    assert_eq!(refusal(&path, &[]), "DIR: no such directory");
}

#[test]
fn rust_bert_refuses_what_it_would_compute_wrongly() {
    let mut tiny = Tiny::new();
    tiny.config["layer_norm_eps"] = json!(1e-5);
    let written = tiny.write();
    let line = refusal(written.path(), &["--implementation", "rust_bert"]);
    assert_eq!(
        line,
        "DIR/config.json: layer_norm_eps is 1e-5, and rust-bert knows only 1e-12; use --implementation packed"
    );
}

#[test]
fn a_configuration_that_is_larger_than_the_weights_is_refused_before_memory_is_set_aside() {
    for implementation in ["packed", "rust_bert"] {
        let mut tiny = Tiny::new();
        tiny.config["vocab_size"] = json!(1 << 24);
        tiny.config["hidden_size"] = json!(1 << 16);
        tiny.pooling["word_embedding_dimension"] = json!(1 << 16);
        let line = refusal(tiny.write().path(), &["--implementation", implementation]);
        assert!(line.starts_with("DIR/model.safetensors: tensor embeddings."), "{line}");
        assert!(line.ends_with("65536]"), "{line}");
    }
}

#[test]
fn what_cannot_be_had_ends_the_process_before_it_listens() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let model = model("m");
    let table: [(&[&str], &str); 3] = [
        (
            &["--host", "127.0.0.1", "--port", &port, "--model", &model],
            &format!(
                "error: port {port} on 127.0.0.1 is in use: stop what uses it, or choose another with --port or PORT"
            ),
        ),
        (
            &["--implementation", "rust_bert", "--dtype", "bfloat16", "--model", &model],
            "error: --implementation rust_bert computes in float32 only; leave --dtype at auto or float32",
        ),
        (
            &["--log", "a=b=c"],
            "error: --log (RUST_LOG) a=b=c: error parsing level filter: expected one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5",
        ),
    ];
    for (arguments, message) in table {
        let (code, stderr) = run(arguments);
        assert_eq!((code, stderr.trim_end()), (1, message));
    }
    // The reason is the machine's.
    let (code, stderr) = run(&["--device", "cuda:63", "--model", &model]);
    assert_eq!(code, 1);
    assert!(stderr.starts_with("error: --device cuda:63: "), "{stderr}");
    assert!(stderr.trim_end().ends_with("; use --device cpu"), "{stderr}");
}

#[test]
fn help_and_version_answer() {
    for (arguments, expected) in [
        (vec!["--help"], "serve"),
        (vec!["serve", "--help"], "--max-batch-tokens"),
        (vec!["fetch", "--help"], "69 the hub cannot be reached; 77 the hub refuses"),
        (vec!["--version"], env!("CARGO_PKG_VERSION")),
    ] {
        let output = command(&arguments).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains(expected), "{arguments:?}");
    }
}

#[test]
fn a_model_that_cannot_be_fetched_is_reported_and_the_server_stays() {
    let empty = tempfile::tempdir().unwrap();
    let cache = empty.path().display().to_string();
    let mut server = Server::start(&[
        "--cache-dir",
        &cache,
        "--offline",
        "--model",
        &model("here"),
        "--model",
        "gone=org/gone@main",
    ]);
    let health = server.wait_for_health("failed");
    assert_eq!(health["models"], json!(["here"]));
    let why = health["failed"]["gone"].as_str().unwrap();
    assert!(why.starts_with("org/gone@main is not in the cache"), "{why}");
    assert_eq!(server.get("/health").status, 503);
    assert_eq!(server.post("/embeddings", &json!({"texts": ["a"], "model": "here"})).status, 200);
    assert_eq!(server.post("/embeddings", &json!({"texts": ["a"], "model": "gone"})).status, 503);
}

#[test]
fn a_model_that_is_not_in_the_cache_is_fetched_and_then_served_without_the_hub() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tree = Tree::of_directory("org/tiny", Tiny::new().write().path());
    let hub = runtime.block_on(FakeHub::start(tree));
    // Half of the weights, and the connection breaks: the fetch goes on where it stopped.
    hub.fault("cdn", "", 1, Fault::Cut(500_000));
    let cache = tempfile::tempdir().unwrap();
    let serve = |endpoint: &str| {
        let mut command = command(&["serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json"]);
        command.args(["--model", "tiny=org/tiny@main"]).env("RUSTBERT_CACHE", cache.path());
        Server::spawn(command.env("HF_ENDPOINT", endpoint))
    };
    let mut server = serve(hub.endpoint.as_str());
    server.wait_for_health("healthy");
    let models = server.get("/models").json();
    let source = format!("org/tiny@{}", hub.tree().commit);
    assert_eq!(models["models"][0]["source"], json!(source), "{models}");
    assert_eq!(server.post("/embeddings", &json!({"texts": ["a"]})).json()["dimensions"], 16);
    let from_cdn = hub.requests().into_iter().filter(|request| request.host == "cdn");
    let ranges: Vec<_> = from_cdn.filter_map(|request| request.range).collect();
    assert_eq!(ranges, ["bytes=500000-"], "the rest of one file, once");
    drop((server, hub, runtime));

    // Nobody listens there: what is in the cache is enough.
    let mut server = serve("http://127.0.0.1:9");
    server.wait_for_health("healthy");
    assert_eq!(server.get("/models").json()["models"][0]["source"], json!(source));
}

#[test]
fn options_come_from_the_environment_too() {
    let mut command = command(&[]);
    command
        .env("PORT", "0")
        .env("EMBEDDING_HOST", "127.0.0.1")
        .env("EMBEDDING_LOG_FORMAT", "json")
        .env("EMBEDDING_MODEL", format!("{},{}", model("a"), model("b")))
        .env("EMBEDDING_DTYPE", "float32");
    let mut server = Server::spawn(&mut command);
    assert_eq!(server.wait_for_health("healthy")["models"], json!(["a", "b"]));
}

#[test]
fn an_empty_text_and_a_very_long_one_are_texts_like_any_other() {
    let server = Server::healthy(&["--model", &model("mini")]);
    let long = "word ".repeat(20_000);
    let response = server.post("/embeddings", &json!({"texts": ["", long, " \n"]}));
    assert_eq!(response.status, 200);
    assert!(response.head.to_ascii_lowercase().contains("x-truncated-inputs: 1"), "{}", response.head);
    let vectors = vectors(&response.json());
    assert!(cosine(&vectors[0], &vectors[2]) > 0.9999, "whitespace has no tokens, as in Python");
}

#[test]
fn the_readmes_curls_get_what_the_readme_shows() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    // The default model, as `make run` serves it, from the cache that the tests use.
    let server = Server::healthy(&["--offline"]);
    let mut lines = readme.lines().peekable();
    let mut tried = 0;
    while let Some(line) = lines.next() {
        let Some(command) = line.strip_prefix("$ curl -s localhost:9000") else { continue };
        let shown = lines.next().expect("an answer under the command");
        let path = command.split(' ').next().unwrap();
        if let Some((_, rest)) = command.split_once("-d '") {
            let body: Value = serde_json::from_str(rest.trim_end_matches('\'')).unwrap();
            let answer = server.post(path, &body).json();
            let (start, end) = shown.split_once(",…").expect("a shortened vector");
            let shown: Value = serde_json::from_str(&format!("{start}{end}")).unwrap();
            assert_eq!((&shown["model"], &shown["dimensions"]), (&answer["model"], &answer["dimensions"]));
            let (shown, answer) = (vectors(&shown).remove(0), vectors(&answer).remove(0));
            assert!(shown.len() >= 4);
            for (shown, answer) in shown.iter().zip(&answer) {
                // bfloat16 or float32, by CPU.
                assert!((shown - answer).abs() < 0.002, "{shown} {answer}");
            }
        } else {
            assert_eq!(server.get(path).body, shown);
        }
        tried += 1;
    }
    assert_eq!(tried, 2, "the README has two examples with their answers");
}
