//! Tensors out of safetensors files, checked before anything computes with them.
//!
//! Guarantees: every tensor that is handed out has the shape that was asked for,
//! is finite, and is f32, whatever it was stored as. Files are read piece by
//! piece, so loading needs no second copy of the model in memory. Pickle, which
//! can execute code, is never read: it is recognised by its first bytes and refused.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::digests::Digests;
use super::encoder::{Affine, Encoder, Names, Norm, NormKind};
use crate::convert::{self, Index};
use crate::disk;
use crate::space;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest as _, Sha256};
#[cfg(feature = "torch")]
use tch::{TchError, Tensor};

/// Why weights cannot be loaded: the file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No weights in the directory.
    #[error("{path}: no such file{hint}")]
    NoFile {
        /// The file that was looked for.
        path: PathBuf,
        /// What is there instead.
        hint: String,
    },
    /// A file cannot be read.
    #[error("{path}: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is a Python pickle.
    #[error(
        "{path}: a Python pickle, which can execute code and is never loaded; if it is one of torch.save's, name it pytorch_model.bin and run `embedding-server convert DIRECTORY`"
    )]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// A file is damaged or not what its name says.
    #[error("{path}: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        problem: String,
    },
    /// A tensor is not what the configuration promises.
    #[error("{path}: tensor {tensor}: {problem}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// `LibTorch` failed.
    #[cfg(feature = "torch")]
    #[error("LibTorch failed while loading weights")]
    Torch(#[from] TchError),
}

/// The longest header of a file, and of all of them together. Read, it takes 20 times as much memory. The specification
/// allows 100 MB; a model's has a hundred bytes for each tensor.
pub(crate) const MAX_HEADER: u64 = 16 << 20;
const MAX_HEADERS: u64 = 32 << 20;
/// An index has about as much.
const MAX_INDEX: u64 = 64 << 20;
/// How a file begins that stands for one in Git LFS.
const LFS_POINTER: &[u8] = b"version ";

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    data_start: u64,
    metadata: Metadata,
}

impl Shard {
    fn open(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let damaged = |problem: String| Error::Damaged { path: path.to_owned(), problem };
        let file = disk::open_regular(path).map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                Error::NoFile { path: path.to_owned(), hint: String::new() }
            } else {
                read(source)
            }
        })?;
        let length = file.metadata().map_err(read)?.len();
        if length < 8 {
            return Err(damaged(format!("is only {length} bytes long")));
        }
        let mut first = [0; 8];
        file.read_exact_at(&mut first, 0).map_err(read)?;
        // torch.save writes a zip archive or, before 1.6, a bare pickle (protocol 2).
        if first.starts_with(b"PK\x03\x04") || first.starts_with(&[0x80, 0x02]) {
            return Err(Error::Pickle { path: path.to_owned() });
        }
        if first == LFS_POINTER {
            return Err(damaged(
                "is a pointer of Git LFS, and not the weights: `git lfs pull` in the repository brings them"
                    .into(),
            ));
        }
        let header = u64::from_le_bytes(first);
        if header > MAX_HEADER || header > length - 8 {
            return Err(damaged(format!(
                "is no safetensors file or is cut off: its first bytes promise a header of {header} bytes in {length}"
            )));
        }
        let mut start = vec![0; header as usize];
        file.read_exact_at(&mut start, 8).map_err(read)?;
        // Deserialising checks that shapes, dtypes and offsets agree.
        let metadata: Metadata = serde_json::from_slice(&start)
            .map_err(|error| damaged(format!("is no safetensors file: its header is bad: {error}")))?;
        let expected = 8 + header + metadata.data_len() as u64;
        if length != expected {
            return Err(damaged(format!(
                "is {length} bytes long, but its header describes {expected}: cut off?"
            )));
        }
        Ok(Self { path: path.to_owned(), file, data_start: 8 + header, metadata })
    }

    fn bytes(&self, info: &TensorInfo) -> Result<Vec<u8>, Error> {
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        self.file
            .read_exact_at(&mut bytes, self.data_start + start as u64)
            .map_err(|source| Error::Read { path: self.path.clone(), source })?;
        Ok(bytes)
    }
}

/// An encoder's tables, row by row.
#[derive(Debug)]
pub(super) struct Tables {
    /// `[vocabulary, embedding]`
    pub(super) words: Vec<f32>,
    /// `[positions, embedding]`
    pub(super) positions: Option<Vec<f32>>,
    /// `[segments, embedding]`
    pub(super) segments: Option<Vec<f32>>,
    /// `[classes of distances, heads]`
    pub(super) buckets: Option<Vec<f32>>,
}

/// The tensors of a model or a module, by name.
#[derive(Debug)]
pub struct Weights {
    shards: Vec<Shard>,
    /// Tensor name → index into `shards`.
    places: BTreeMap<String, usize>,
    /// What precedes the names in the file, as in `bert.embeddings…`.
    prefix: String,
    /// What is known about the tensors' bytes already.
    digests: Digests,
    /// The tensors that were read, by the names that they were asked for with.
    read: RefCell<Vec<space::Tensor>>,
}

impl Weights {
    /// Opens `model.safetensors` in `folder`, or the shards of its index.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        let paths = if single.exists() {
            vec![single]
        } else if index.exists() {
            shard_paths(&index)?
        } else {
            let pickled = [convert::BIN, convert::BIN_INDEX].iter().any(|name| folder.join(name).exists());
            let hint = pickled.then(|| {
                let folder = folder.display();
                format!(
                    "; the directory has {}, a pickle that can execute code and is never loaded: \
                     `embedding-server convert {folder}` makes safetensors of it",
                    convert::BIN
                )
            });
            return Err(Error::NoFile { path: single, hint: hint.unwrap_or_default() });
        };
        let shards = paths.iter().map(|path| Shard::open(path)).collect::<Result<Vec<_>, _>>()?;
        let headers: u64 = shards.iter().map(|shard| shard.data_start).sum();
        if headers > MAX_HEADERS {
            let problem =
                format!("its files have headers of {headers} bytes, more than {MAX_HEADERS} together");
            return Err(Error::Damaged { path: index, problem });
        }
        let places = shards
            .iter()
            .enumerate()
            .flat_map(|(index, shard)| shard.metadata.tensors().into_keys().map(move |name| (name, index)))
            .collect();
        let digests = Digests::of(folder, &paths);
        Ok(Self { shards, places, prefix: String::new(), digests, read: RefCell::default() })
    }

    /// Whether there are weights in a folder.
    pub(crate) fn are_in(folder: &Path) -> bool {
        ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| folder.join(name).exists())
    }

    /// The files that they are in.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.shards.iter().map(|shard| shard.path.clone()).collect()
    }

    /// The tensors that were read, of which the fingerprint of the model's space is made.
    pub fn into_read(self) -> Vec<space::Tensor> {
        self.read.into_inner()
    }

    /// The sha256 of each tensor's bytes, by its name in the file.
    pub(crate) fn hash_all(&self) -> Result<BTreeMap<String, space::Digest>, Error> {
        let names: Vec<_> = self.places.iter().collect();
        let hash = |(name, index): &(&String, &usize)| {
            let shard = &self.shards[**index];
            let info = shard.metadata.info(name).ok_or_else(|| Error::Damaged {
                path: shard.path.clone(),
                problem: format!("tensor {name} is missing"),
            })?;
            Ok(((*name).clone(), Sha256::digest(shard.bytes(info)?).into()))
        };
        names.iter().map(hash).collect()
    }

    /// Names are looked up as this encoder's: under the first of its prefixes under which its table of token
    /// ids is. The same encoder is published with and without its class's prefix.
    #[must_use]
    pub fn of(mut self, encoder: &Encoder) -> Self {
        let Names { prefixes, words, .. } = encoder.names;
        let is_there = |prefix: &&&str| {
            words.iter().any(|words| self.places.contains_key(&format!("{prefix}{words}.weight")))
        };
        let found = prefixes.iter().find(is_there);
        self.prefix = found.copied().unwrap_or_default().to_owned();
        self
    }

    /// The first of these names that there is, or the first.
    pub(super) fn first_of(&self, names: &[String]) -> String {
        names.iter().find(|name| self.contains(name)).or(names.first()).cloned().unwrap_or_default()
    }

    /// What the table of token ids is called here.
    pub(super) fn words(&self, encoder: &Encoder) -> String {
        encoder.tables().first().map(|(names, _)| self.first_of(names)).unwrap_or_default()
    }

    /// One row of the tensor `name` of shape `shape`. It does not count as read.
    pub(super) fn row(&self, name: &str, shape: [i64; 2], row: u32) -> Result<Vec<f32>, Error> {
        let (shard, info) = self.find(name, &shape)?;
        let bytes = (info.data_offsets.1 - info.data_offsets.0) / shape[0].max(1) as usize;
        let start = info.data_offsets.0 + row as usize * bytes;
        // The shape was compared with the file's.
        let row =
            TensorInfo { data_offsets: (start, (start + bytes).min(info.data_offsets.1)), ..info.clone() };
        self.numbers(shard, name, &row, &shard.bytes(&row)?)
    }

    /// An encoder's tables ([`Encoder::tables`]).
    pub(super) fn tables(&self, encoder: &Encoder) -> Result<Tables, Error> {
        // In that order.
        let all = encoder.tables();
        let mut all = all.iter().map(|(names, shape)| self.values(&self.first_of(names), shape));
        let mut next = |is_there: bool| if is_there { all.next().transpose() } else { Ok(None) };
        Ok(Tables {
            words: next(true)?.unwrap_or_default(),
            positions: next(encoder.learned.is_some())?,
            segments: next(encoder.segments > 0)?,
            buckets: next(true)?,
        })
    }

    /// Linear layers as one: the weight `[out, in]` of all of them, one under the other, and their biases
    /// `[out]`, which are zeros where there are none.
    pub(super) fn affine(&self, parts: &[Affine]) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for part in parts {
            let Affine { name, out_features, in_features, .. } = part;
            let mut own = self.values(&format!("{name}.weight"), &[*out_features, *in_features])?;
            let mut own_bias = if part.bias {
                self.values(&format!("{name}.bias"), &[*out_features])?
            } else {
                vec![0.0; *out_features as usize]
            };
            if part.swapped {
                for values in [&mut own, &mut own_bias] {
                    let half = values.len() / 2;
                    values.rotate_left(half);
                }
            }
            weight.append(&mut own);
            bias.append(&mut own_bias);
        }
        Ok((weight, bias))
    }

    /// The weight and the bias of a norm; the bias is zeros where it has none.
    pub(super) fn norm(&self, name: &str, width: i64, norm: &Norm) -> Result<[Vec<f32>; 2], Error> {
        if norm.bias {
            return self.layer_norm(name, width);
        }
        let mut weight = self.values(&format!("{name}.weight"), &[width])?;
        if norm.kind == NormKind::RmsPlusOne {
            for weight in &mut weight {
                *weight += 1.0;
            }
        }
        Ok([weight, vec![0.0; width as usize]])
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(&format!("{}{name}", self.prefix))
    }

    /// Where the tensor `name` is, if it has this shape. Reads nothing of it.
    fn find(&self, name: &str, shape: &[i64]) -> Result<(&Shard, &TensorInfo), Error> {
        let name = format!("{}{name}", self.prefix);
        let Some(shard) = self.places.get(&name).and_then(|&index| self.shards.get(index)) else {
            return Err(Error::Tensor {
                path: self.shards.first().map(|shard| shard.path.clone()).unwrap_or_default(),
                tensor: name,
                problem: format!("is missing; expected shape {shape:?}"),
            });
        };
        let wrong = |problem| Error::Tensor { path: shard.path.clone(), tensor: name.clone(), problem };
        let info = shard.metadata.info(&name).ok_or_else(|| wrong("is missing".into()))?;
        let found: Vec<i64> = info.shape.iter().map(|&size| size as i64).collect();
        if found != shape {
            return Err(wrong(format!("has shape {found:?}, but the configuration says {shape:?}")));
        }
        Ok((shard, info))
    }

    /// What the tensor `name` is called here: some files keep TensorFlow's names of a `LayerNorm`'s two.
    fn published(&self, name: &str) -> String {
        let old =
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        if !self.contains(name) && self.contains(&old) { old } else { name.to_owned() }
    }

    /// The tensor `name`, which may have TensorFlow's name in the file, without its values.
    pub fn describe(&self, name: &str) -> Result<space::Tensor, Error> {
        self.described(name, |shard, info| Ok(Sha256::digest(shard.bytes(info)?).into()))
    }

    /// The same where the hash of its values is known already; nothing where it is not.
    pub fn describe_known(&self, name: &str) -> Option<space::Tensor> {
        let unknown = |shard: &Shard, _: &TensorInfo| {
            let problem = "its tensors were not hashed".to_owned();
            Err(Error::Damaged { path: shard.path.clone(), problem })
        };
        self.described(name, unknown).ok()
    }

    fn described(
        &self,
        name: &str,
        hash: impl FnOnce(&Shard, &TensorInfo) -> Result<space::Digest, Error>,
    ) -> Result<space::Tensor, Error> {
        let in_file = format!("{}{}", self.prefix, self.published(name));
        let found = self.places.get(&in_file).and_then(|&index| self.shards.get(index));
        let Some((shard, info)) = found.and_then(|shard| Some((shard, shard.metadata.info(&in_file)?)))
        else {
            return Err(Error::Tensor {
                path: self.shards.first().map(|shard| shard.path.clone()).unwrap_or_default(),
                tensor: in_file,
                problem: "is missing".into(),
            });
        };
        let sha256 = match self.digests.get(&in_file) {
            Some(digest) => digest,
            None => hash(shard, info)?,
        };
        let (dtype, shape) = (format!("{:?}", info.dtype), info.shape.clone());
        Ok(space::Tensor { name: name.to_owned(), dtype, shape, sha256 })
    }

    /// As what the tensor `name`, which may have TensorFlow's name in the file, is stored. It has to have this shape,
    /// and numbers that can be read. Reads nothing of it.
    pub fn dtype(&self, name: &str, shape: &[i64]) -> Result<Dtype, Error> {
        let name = self.published(name);
        let (shard, info) = self.find(&name, shape)?;
        match info.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(info.dtype),
            other => Err(self.unsupported(shard, &name, other)),
        }
    }

    fn unsupported(&self, shard: &Shard, name: &str, dtype: Dtype) -> Error {
        Error::Tensor {
            path: shard.path.clone(),
            tensor: format!("{}{name}", self.prefix),
            problem: format!("has dtype {dtype:?}; supported: F32, F16, BF16"),
        }
    }

    /// How many tensors there are.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// Whether the tensor `name` is there, with this shape: for those who set aside memory
    /// by the configuration before they read.
    pub fn check(&self, name: &str, shape: &[i64]) -> Result<(), Error> {
        self.find(name, shape).map(drop)
    }

    /// The values of the tensor `name` of shape `shape`, row by row.
    pub fn values(&self, name: &str, shape: &[i64]) -> Result<Vec<f32>, Error> {
        let (shard, info) = self.find(name, shape)?;
        let bytes = shard.bytes(info)?;
        let in_file = format!("{}{name}", self.prefix);
        self.read.borrow_mut().push(space::Tensor {
            // TensorFlow's names of the same two.
            name: name
                .replace("LayerNorm.gamma", "LayerNorm.weight")
                .replace("LayerNorm.beta", "LayerNorm.bias"),
            dtype: format!("{:?}", info.dtype),
            shape: info.shape.clone(),
            sha256: self.digests.get(&in_file).unwrap_or_else(|| Sha256::digest(&bytes).into()),
        });
        self.numbers(shard, name, info, &bytes)
    }

    /// The numbers in bytes of the tensor `name`, which have to be finite.
    fn numbers(&self, shard: &Shard, name: &str, info: &TensorInfo, bytes: &[u8]) -> Result<Vec<f32>, Error> {
        let values: Vec<f32> = match info.dtype {
            Dtype::F32 => numbers(bytes, f32::from_le_bytes),
            Dtype::F16 => numbers(bytes, |two| f16::from_le_bytes(two).to_f32()),
            Dtype::BF16 => numbers(bytes, |two| bf16::from_le_bytes(two).to_f32()),
            other => return Err(self.unsupported(shard, name, other)),
        };
        if values.iter().all(|value| value.is_finite()) {
            Ok(values)
        } else {
            Err(Error::Tensor {
                path: shard.path.clone(),
                tensor: format!("{}{name}", self.prefix),
                problem: "has values that are not finite (NaN or infinity)".into(),
            })
        }
    }

    /// The weight and the bias of the `LayerNorm` `name`, which may have TensorFlow's names for them.
    pub(super) fn layer_norm(&self, name: &str, width: i64) -> Result<[Vec<f32>; 2], Error> {
        let old = !self.contains(&format!("{name}.weight")) && self.contains(&format!("{name}.gamma"));
        let (weight, bias) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let get = |part: &str| self.values(&format!("{name}.{part}"), &[width]);
        Ok([get(weight)?, get(bias)?])
    }

    /// The tensor `name` of shape `shape`, as f32 on the CPU.
    #[cfg(feature = "torch")]
    pub fn get(&self, name: &str, shape: &[i64]) -> Result<Tensor, Error> {
        Ok(Tensor::f_from_slice(&self.values(name, shape)?)?.f_reshape(shape)?)
    }
}

/// The numbers in `bytes`, each of `N` bytes.
fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| number(bytes)).collect()
}

fn shard_paths(index: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = |source| Error::Read { path: index.to_owned(), source };
    let bytes = disk::read_small(index, MAX_INDEX).map_err(read)?;
    let damaged = |problem| Error::Damaged { path: index.to_owned(), problem };
    let parsed: Index =
        serde_json::from_slice(&bytes).map_err(|error| damaged(format!("not a valid index: {error}")))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return Err(damaged("names no file with weights".into()));
    }
    names
        .into_iter()
        .map(|name| {
            // Untrusted: a shard is a plain file name beside its index, and goes to terminals.
            let is_plain = Path::new(&name).file_name().is_some_and(|file| file == name.as_str());
            if !is_plain || name.chars().any(char::is_control) {
                return Err(damaged(format!("shard name {name:?} is no plain file name")));
            }
            Ok(index.with_file_name(name))
        })
        .collect()
}
