//! The pickles of which `torch.save` makes state dicts, and no others.
//!
//! A pickle is a program for a machine with a stack. This [`machine`] has the instructions that `torch.save` writes,
//! and of all that a program can name it knows what a tensor is made of ([`Global`]). These names are not looked up and
//! nothing is called: where Python would call `_rebuild_tensor_v2`, its arguments are checked and kept.
//!
//! # Guarantees
//! - Whatever else a pickle names or does is an error that says what it was.
//! - The time is linear in the pickle's length, and memory is bounded, whatever the pickle says that its values are.
//! - Nothing recurses: a value is a place in a table, so depth, sharing and cycles cost nothing.

mod machine;

use safetensors::Dtype;

use machine::Machine;

/// A longer pickle is of no model: ten thousand tensors take 2 MB.
pub(super) const MAX_BYTES: usize = 16 << 20;
/// The most dimensions of a tensor; those of models have up to 5.
const MAX_DIMENSIONS: usize = 16;

/// What a pickle can name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// A class of storages, as `torch.FloatStorage`.
    Storage(Dtype),
}

/// The classes of storages in the module `torch`.
const STORAGES: [(&str, Dtype); 10] = [
    ("DoubleStorage", Dtype::F64),
    ("FloatStorage", Dtype::F32),
    ("HalfStorage", Dtype::F16),
    ("BFloat16Storage", Dtype::BF16),
    ("LongStorage", Dtype::I64),
    ("IntStorage", Dtype::I32),
    ("ShortStorage", Dtype::I16),
    ("CharStorage", Dtype::I8),
    ("ByteStorage", Dtype::U8),
    ("BoolStorage", Dtype::BOOL),
];

impl Global {
    fn named(module: &str, name: &str) -> Result<Self, String> {
        match (module, name) {
            ("collections", "OrderedDict") => Ok(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Ok(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Ok(Self::RebuildParameter),
            _ => {
                let class = STORAGES.iter().find(|(class, _)| module == "torch" && *class == name);
                let unknown =
                    || format!("names {}, which is no part of a tensor", shown(&[module, name].join(".")));
                class.map(|(_, dtype)| Self::Storage(*dtype)).ok_or_else(unknown)
            }
        }
    }
}

/// What is on the stack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    None,
    /// Nobody asks which.
    Bool,
    Int(i64),
    /// Nobody asks which.
    Float,
    Text(&'a str),
    Global(Global),
    Tuple {
        start: u32,
        len: u32,
    },
    List(u32),
    Dict(u32),
    Storage(u32),
    Tensor(u32),
}

impl Value<'_> {
    fn kind(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a truth value",
            Self::Int(_) | Self::Float => "a number",
            Self::Text(_) => "a text",
            Self::Global(_) => "a class or function",
            Self::Tuple { .. } => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// Numbers that lie elsewhere in the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Storage<'a> {
    pub(super) dtype: Dtype,
    /// By what name they are found.
    pub(super) key: &'a str,
    /// How many they are.
    pub(super) numbers: u64,
}

/// A tensor: which numbers of a storage it has, in which order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    /// Which of [`Pickle::storages`].
    pub(super) storage: usize,
    /// The number that comes first.
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    /// In numbers, one a dimension.
    pub(super) strides: Vec<u64>,
}

/// What a pickle has made.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    top: Value<'a>,
    /// Members of tuples.
    members: Vec<Value<'a>>,
    lists: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    storages: Vec<Storage<'a>>,
    tensors: Vec<Tensor>,
}

impl<'a> Pickle<'a> {
    /// Runs the pickle that `bytes` begin with; also how long it is.
    pub(super) fn read(bytes: &'a [u8]) -> Result<(Self, usize), String> {
        let pickle = Self {
            top: Value::None,
            members: Vec::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
        };
        Machine::new(bytes, pickle).run()
    }

    /// The storages that tensors are of.
    pub(super) fn storages(&self) -> &[Storage<'a>] {
        &self.storages
    }

    /// A dictionary of tensors, in its order.
    pub(super) fn state_dict(&self) -> Result<Vec<(&'a str, &Tensor)>, String> {
        let Value::Dict(place) = self.top else {
            return Err(format!("holds {}, and no dictionary of tensors", self.top.kind()));
        };
        let tensor = |&(name, value): &(Value<'a>, Value<'a>)| {
            let Value::Text(name) = name else {
                return Err(format!("has {} for the name of a tensor", name.kind()));
            };
            match value {
                Value::Tensor(place) => Ok((name, &self.tensors[place as usize])),
                other => Err(format!(
                    "holds more than a dictionary of tensors: {} is {}; save the weights alone, as \
                     torch.save(model.state_dict(), FILE) does",
                    shown(name),
                    other.kind()
                )),
            }
        };
        self.dicts[place as usize].iter().map(tensor).collect()
    }

    /// A list of texts.
    pub(super) fn texts(&self) -> Option<Vec<&'a str>> {
        let Value::List(place) = self.top else { return None };
        let text = |value: &Value<'a>| match value {
            Value::Text(text) => Some(*text),
            _ => None,
        };
        self.lists[place as usize].iter().map(text).collect()
    }

    fn members(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        let Value::Tuple { start, len } = value else { return None };
        Some(&self.members[start as usize..][..len as usize])
    }

    /// A tuple of sizes, none below zero.
    fn sizes(&self, value: Value<'a>) -> Option<Vec<u64>> {
        let size = |value: &Value<'a>| match value {
            Value::Int(size) => u64::try_from(*size).ok(),
            _ => None,
        };
        self.members(value).filter(|sizes| sizes.len() <= MAX_DIMENSIONS)?.iter().map(size).collect()
    }
}

/// A name of somebody else's choice, fit for a line of text.
pub(super) fn shown(name: &str) -> String {
    const MOST: usize = 100;
    let cut: String = name.chars().take(MOST).collect();
    let dots = if cut.len() < name.len() { "…" } else { "" };
    format!("{}{dots}", cut.escape_debug())
}
