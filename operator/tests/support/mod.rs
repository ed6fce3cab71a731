//! What several test files share.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "each test binary is its own crate")]
#![allow(clippy::missing_panics_doc, reason = "a test fails by panicking")]

pub mod cluster;
pub mod generated;
pub mod kubelet;
pub mod operator;
pub mod state;
pub mod volumes;
pub mod wait;
