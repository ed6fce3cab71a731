//! Text embeddings over HTTP from Hugging Face models.
//!
//! A request flows from left to right, and shutdown is the same line closing from
//! the left:
//!
//! ```text
//! accept ─▶ http ─▶ embedder ─▶ tokenize ═ queue ═▶ batcher ─▶ worker ─▶ model
//!           JSON    admission   ids                 policy     threads   tensors
//! ```
//!
//! - [`config`] reads flags and environment, nothing else does.
//! - [`serve`] is the life of the server, [`models`] what is served and where each
//!   model is: loading, ready, failed.
//! - [`fetch`] opens the only outbound connections; [`healthcheck`] asks a server beside it.
//! - [`convert`] makes safetensors of pickled weights, for [`fetch`] and for whoever has a directory of them.
//! - [`inspect`] is what is told of a model that is not loaded.
//! - [`cache`] keeps vectors, where that is wanted, between [`http`] and [`embedder`].
//! - [`batcher`], [`options`], [`quantize`], [`scores`] and [`space`] are pure; wire types stay in [`http`], tensors in [`model`].
//!
//! The reasons are in `docs/architecture.md`.

pub mod accept;
pub mod batcher;
pub mod cache;
pub mod config;
pub mod convert;
pub mod convert_command;
mod disk;
pub mod embedder;
pub mod fetch;
pub mod fetch_command;
pub mod healthcheck;
pub mod http;
pub mod inspect;
pub mod inspect_command;
pub mod kernels;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod models;
pub mod options;
pub mod quantize;
pub mod scores;
pub mod serve;
pub mod shutdown;
pub mod space;
pub mod telemetry;
pub mod token_ids;
pub mod tokenize;
pub mod worker;
