//! Writes the generated files of the operator anew (`cargo crdgen`).

use std::path::Path;

use anyhow::Context as _;
use embedding_operator::crd;

fn main() -> anyhow::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/embeddingmodels.yaml");
    std::fs::write(&path, crd::yaml()).with_context(|| format!("writing {}", path.display()))
}
