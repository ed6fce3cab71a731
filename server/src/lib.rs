//! Text embeddings over HTTP from Hugging Face models.
pub mod batcher;
pub mod model;
pub mod tokenize;
pub mod worker;
