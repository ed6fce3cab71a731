//! How much memory a model takes, estimated from the shapes of its tensors and from how the implementations hold
//! them. Pure.

use super::directory::Directory;
use super::inventory::{Role, needed};
use super::{Device, Dtype, Implementation, Plan};

/// What a server takes beside the weights: the program with `LibTorch`, the tokenizer, and what forwards work on.
/// Measured with models of 23 and 109 million parameters on two CPUs, and rounded up (docs/production.md).
pub const OTHER: u64 = 500_000_000;
/// Bytes of an f32.
const SINGLE: u64 = 4;

/// An estimate, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The weights as they are held, on each device.
    pub weights: u64,
    /// What comes on top while they are read, at most.
    pub loading: u64,
    /// All that the process takes of the machine's own memory.
    pub total: u64,
    /// What the weights take on each GPU, where they are there; what batches need comes on top.
    pub gpu: Option<u64>,
}

impl Memory {
    /// What the model takes of the machine's own memory while it is loaded, beside what any server takes.
    pub const fn of_process(&self) -> u64 {
        self.total - OTHER
    }

    /// Of a model that is computed as the plan says.
    pub fn estimate(directory: &Directory, plan: Plan) -> Self {
        let narrow = match plan.dtype {
            Dtype::Float32 => SINGLE,
            Dtype::BFloat16 | Dtype::Float16 => SINGLE / 2,
        };
        let (mut weights, mut tables, mut largest_table, mut largest_linear) = (0, 0, 0, 0);
        for tensor in needed(directory).iter().flat_map(|group| &group.tensors) {
            let elements = tensor.elements();
            match tensor.role {
                Role::Table => {
                    weights += SINGLE * elements;
                    tables += SINGLE * elements;
                    largest_table = elements.max(largest_table);
                }
                Role::Linear => {
                    weights += narrow * elements;
                    largest_linear = elements.max(largest_linear);
                }
                Role::Small | Role::Module => weights += SINGLE * elements,
                // Two of its rows.
                Role::Answer => {
                    weights += 2 * SINGLE * tensor.shape.last().map_or(0, |size| size.unsigned_abs());
                }
            }
        }
        // As it is stored, as f32, and as part of several.
        let linear = 3 * SINGLE * largest_linear;
        let loading = match plan.implementation {
            Implementation::Fused | Implementation::Fake => linear.max(SINGLE * largest_table),
            // Tables are read whole before they become tensors.
            Implementation::Packed | Implementation::RustBert => tables + linear,
        };
        let gpu = (plan.device != Device::Cpu).then_some(weights);
        let total = OTHER + loading + if gpu.is_some() { 0 } else { weights };
        Self { weights, loading, total, gpu }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn weights_are_counted_as_they_are_held_and_where() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families/qwen3");
        let directory = Directory::read(&path).unwrap();
        // A table of 349 times 32 numbers; two layers of 10752 in matrices, of which the largest has 64 times 32, and
        // of 96 in norms; a norm of 32.
        let (table, largest) = (4 * 11_168, 4 * 2048);
        let wide = 4 * 32_896;
        let narrow = 4 * (11_168 + 224) + 2 * 21_504;
        let on = |device, plan| Plan { device, ..plan };
        let packed = |dtype| Plan::on_cpu(Implementation::Packed, dtype);
        let fused = |dtype| Plan::on_cpu(Implementation::Fused, dtype);
        for (plan, weights, loading, total, gpu) in [
            (packed(Dtype::Float32), wide, table + 3 * largest, 500_200_832, None),
            (packed(Dtype::BFloat16), narrow, table + 3 * largest, 500_157_824, None),
            (Plan::on_cpu(Implementation::RustBert, Dtype::Float32), wide, 69_248, 500_200_832, None),
            // The table is larger than what a matrix takes three times.
            (fused(Dtype::BFloat16), narrow, table, 500_133_248, None),
            (fused(Dtype::Float32), wide, table, 500_176_256, None),
            (
                on(Device::Cuda(0, 2), packed(Dtype::Float16)),
                88_576,
                table + 3 * largest,
                500_069_248,
                Some(88_576),
            ),
        ] {
            let expected = Memory { weights, loading, total, gpu };
            assert_eq!(Memory::estimate(&directory, plan), expected, "{plan:?}");
            assert_eq!(expected.of_process(), total - 500_000_000);
        }
    }
}
