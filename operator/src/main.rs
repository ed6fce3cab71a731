//! The operator of the kagent embeddings platform.
//!
//! It does not reconcile anything yet: this binary only knows its version.

use clap::Parser;

/// Runs embedding models on Kubernetes from `EmbeddingModel` resources (not yet: only --version).
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {}

fn main() {
    Cli::parse();
}
