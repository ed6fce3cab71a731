//! A CPU with AVX2 and nothing beyond it is served by `packed` in float32, with the vectors of Python's
//! sentence-transformers.
//!
//! Where the tests run there may be more: LibTorch and oneDNN are told to leave it alone, and what oneDNN
//! writes about each of its kernels shows that it did.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::fs::File;

use serde_json::json;
use support::golden::Golden;
use support::process::{Server, command};
use support::{cosine, minilm};

#[test]
fn vectors_with_avx2_alone_are_those_of_python() {
    if !std::is_x86_feature_detected!("avx2") {
        println!("NOT RUN: vectors with AVX2, which this CPU lacks");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernels = folder.path().join("kernels");
    let model = format!("m={}", minilm().display());
    let mut command = command(&["serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json"]);
    command
        .args(["--model", &model, "--implementation", "packed", "--dtype", "float32"])
        .env("ATEN_CPU_CAPABILITY", "avx2")
        .env("ONEDNN_MAX_CPU_ISA", "AVX2")
        .env("MKL_ENABLE_INSTRUCTIONS", "AVX2")
        .env("ONEDNN_VERBOSE", "1");
    let mut server = Server::spawn_writing(&mut command, File::create(&kernels).unwrap().into());
    server.wait_for_health("healthy");
    let numerics = &server.get("/models").json()["models"][0]["numerics"];
    let expected = json!({"implementation": "packed", "dtype": "float32", "device": "cpu"});
    assert_eq!(*numerics, expected);

    let fixture = Golden::read();
    let mut smallest = f64::INFINITY;
    // In batches of several texts, and one alone.
    for (texts, python) in fixture.texts.chunks(50).zip(fixture.vectors.chunks(50)) {
        let answer = server.post("/embeddings", &json!({"texts": texts}));
        assert_eq!(answer.status, 200, "{}", answer.body);
        let vectors: Vec<Vec<f32>> = serde_json::from_value(answer.json()["embeddings"].clone()).unwrap();
        for ((vector, python), text) in vectors.iter().zip(python).zip(texts) {
            let cosine = cosine(vector, python);
            assert!(cosine >= 0.99999, "{cosine} for {text:.40?}");
            smallest = smallest.min(cosine);
        }
    }
    println!("smallest cosine: {smallest:.8}");

    // Its end writes out what is still in a buffer.
    server.terminate();
    assert!(server.wait().0.success());
    let kernels = std::fs::read_to_string(kernels).unwrap();
    let capped = |line: &&str| line.contains("cpu,isa:");
    let isa =
        kernels.lines().find(capped).unwrap_or_else(|| panic!("no instruction set in\n{kernels:.2000}"));
    println!("{isa}");
    assert!(isa.contains("AVX2") && !isa.contains("AVX-512") && !isa.contains("AVX512"), "{isa}");
    let ran: Vec<&str> = kernels.lines().filter(|line| line.contains(",exec,cpu,")).collect();
    assert!(ran.len() > 100, "{} kernels ran", ran.len());
    assert!(ran.iter().any(|line| line.contains(",inner_product,")), "{:?}", ran.first());
    let beyond = |line: &&&str| line.contains("avx512") || line.contains("avx10") || line.contains("amx");
    assert_eq!(ran.iter().find(beyond), None);
}
