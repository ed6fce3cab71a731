//! The operator of the kagent embeddings platform: it makes of each `EmbeddingModel` a
//! Deployment, a Service and a volume that run the server's image, and tells how that goes.
//!
//! - [`crd`]: what can be asked for, and what is told back
//! - [`controller`]: the five steps, and what starts them
//! - [`config`]: flags and environment
//! - [`run`]: the program; with [`lease`] (which replica works), [`admin`] (/healthz, /readyz,
//!   /metrics), [`metrics`], [`telemetry`]

#![forbid(unsafe_code)]

pub mod admin;
pub mod config;
pub mod controller;
pub mod crd;
pub mod lease;
pub mod metrics;
mod mutex;
pub mod run;
pub mod telemetry;
