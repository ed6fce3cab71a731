//! Texts, and what Python's sentence-transformers makes of them with all-MiniLM-L6-v2;
//! `scripts/parity-fixture` wrote them.

use std::path::Path;

use safetensors::SafeTensors;

/// The texts, with the vector and the number of tokens of each.
pub struct Golden {
    pub texts: Vec<String>,
    pub vectors: Vec<Vec<f32>>,
    pub tokens: Vec<usize>,
}

impl Golden {
    pub fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
        let texts: Vec<String> =
            serde_json::from_slice(&std::fs::read(folder.join("texts.json")).unwrap()).unwrap();
        let bytes = std::fs::read(folder.join("vectors.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let halves = tensors.tensor("vectors").unwrap();
        let values: Vec<f32> = halves
            .data()
            .chunks_exact(2)
            .map(|half| half::f16::from_le_bytes([half[0], half[1]]).to_f32())
            .collect();
        let vectors = values.chunks_exact(halves.shape()[1]).map(<[f32]>::to_vec).collect();
        let tokens = tensors.tensor("tokens").unwrap();
        let tokens = tokens
            .data()
            .chunks_exact(4)
            .map(|n| i32::from_le_bytes([n[0], n[1], n[2], n[3]]) as usize)
            .collect();
        Self { texts, vectors, tokens }
    }
}
