//! The pickles of which `torch.save` makes state dicts, and no others.
//!
//! A pickle is a program for a machine with a stack. This one has the instructions that `torch.save` writes, and
//! of all that a program can name it knows what a tensor is made of ([`Global`]). These names are not looked up and
//! nothing is called: where Python would call `_rebuild_tensor_v2`, its arguments are checked and kept.
//!
//! # Guarantees
//! - Whatever else a pickle names or does is an error that says what it was.
//! - The time is linear in the pickle's length, and memory is bounded: [`MAX_VALUES`] values of 24 bytes and
//!   [`MAX_TENSORS`] tensors, whatever the pickle says that its values are.
//! - Nothing recurses: a value is a place in a table, so depth, sharing and cycles cost nothing.

use safetensors::Dtype;

/// A longer pickle is of no model: ten thousand tensors take 2 MB.
pub(super) const MAX_BYTES: usize = 16 << 20;
/// What is ever on the stack, in the memo or in a container. A tensor takes about 40.
const MAX_VALUES: usize = 1 << 20;
/// Models have hundreds, the largest shards thousands.
const MAX_TENSORS: usize = 20_000;
/// The most dimensions of a tensor; those of models have up to 5.
const MAX_DIMENSIONS: usize = 16;
/// A container's own weight in values: it is allocated.
const CONTAINER: usize = 8;
/// No name in a checkpoint, of a tensor or of a class, is as long.
const MAX_NAME: usize = 1024;

const PROTOCOL: u8 = 2;

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
        let mut machine = Machine {
            bytes,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            values: 0,
            pickle,
        };
        machine.run()?;
        let Machine { at, pickle, .. } = machine;
        Ok((pickle, at))
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

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Places in the stack.
    marks: Vec<usize>,
    memo: Vec<Option<Value<'a>>>,
    /// How many were made, of [`MAX_VALUES`].
    values: usize,
    pickle: Pickle<'a>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<(), String> {
        loop {
            let place = self.at;
            match self.byte()? {
                // PROTO
                0x80 => {
                    let protocol = self.byte()?;
                    if protocol != PROTOCOL {
                        return Err(format!("is pickled by protocol {protocol}; torch.save's is {PROTOCOL}"));
                    }
                }
                // STOP
                b'.' => {
                    self.pickle.top = self.pop()?;
                    let is_done = self.stack.is_empty() && self.marks.is_empty();
                    return if is_done { Ok(()) } else { Err(Self::misses()) };
                }
                b'(' => self.mark()?,
                b'N' => self.push(Value::None)?,
                // NEWTRUE, NEWFALSE
                0x88 | 0x89 => self.push(Value::Bool)?,
                // BININT, BININT1, BININT2
                b'J' => {
                    let number = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(number.into()))?;
                }
                b'K' => {
                    let number = self.byte()?;
                    self.push(Value::Int(number.into()))?;
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(number.into()))?;
                }
                // LONG1
                0x8a => {
                    let number = self.long()?;
                    self.push(Value::Int(number))?;
                }
                // BINFLOAT
                b'G' => {
                    self.array::<8>()?;
                    self.push(Value::Float)?;
                }
                // BINUNICODE; SHORT_BINSTRING, of Python 2
                b'X' => {
                    let length = u32::from_le_bytes(self.array()?);
                    self.text(length as usize)?;
                }
                b'U' => {
                    let length = self.byte()?;
                    self.text(length.into())?;
                }
                b'c' => self.global()?,
                b')' => self.tuple(0)?,
                // TUPLE1, TUPLE2, TUPLE3
                short @ 0x85..=0x87 => self.tuple(usize::from(short - 0x84))?,
                b't' => {
                    let count = self.since_mark()?;
                    self.tuple(count)?;
                }
                b']' => self.list()?,
                b'}' => self.dict(Vec::new())?,
                // APPEND, APPENDS
                b'a' => self.append(1)?,
                b'e' => {
                    let count = self.since_mark()?;
                    self.append(count)?;
                }
                // SETITEM, SETITEMS
                b's' => self.set_items(2)?,
                b'u' => {
                    let count = self.since_mark()?;
                    self.set_items(count)?;
                }
                // BINPUT, LONG_BINPUT
                b'q' => {
                    let place = self.byte()?;
                    self.put(place.into())?;
                }
                b'r' => {
                    let place = u32::from_le_bytes(self.array()?);
                    self.put(place as usize)?;
                }
                // BINGET, LONG_BINGET
                b'h' => {
                    let place = self.byte()?;
                    self.get(place.into())?;
                }
                b'j' => {
                    let place = u32::from_le_bytes(self.array()?);
                    self.get(place as usize)?;
                }
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                // BINPERSID
                b'Q' => self.storage()?,
                other => {
                    return Err(format!(
                        "has the instruction 0x{other:02x} at byte {place} of its pickle, which torch.save does not \
                         write"
                    ));
                }
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let ended = || "has a pickle that ends early".to_owned();
        let end = self.at.checked_add(count).ok_or_else(ended)?;
        let bytes = self.bytes.get(self.at..end).ok_or_else(ended)?;
        self.at = end;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "has a pickle that ends early".to_owned())
    }

    /// Before memory is used for so many more values.
    fn spend(&mut self, values: usize) -> Result<(), String> {
        self.values = self.values.saturating_add(values);
        if self.values > MAX_VALUES {
            return Err(format!("has a pickle of more than {MAX_VALUES} values: not a model's"));
        }
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        // What was popped makes room again.
        if self.stack.len() == self.stack.capacity() {
            self.spend(self.stack.len().max(64))?;
        }
        self.stack.push(value);
        Ok(())
    }

    /// What is below a mark belongs to somebody else.
    fn pop(&mut self) -> Result<Value<'a>, String> {
        let floor = self.marks.last().copied().unwrap_or_default();
        if self.stack.len() <= floor {
            return Err(Self::misses());
        }
        self.stack.pop().ok_or_else(Self::misses)
    }

    /// The last `count` values.
    fn pop_many(&mut self, count: usize) -> Result<Vec<Value<'a>>, String> {
        let floor = self.marks.last().copied().unwrap_or_default();
        let rest = self.stack.len().checked_sub(count).filter(|rest| *rest >= floor);
        Ok(self.stack.split_off(rest.ok_or_else(Self::misses)?))
    }

    fn misses() -> String {
        "has a pickle with an instruction that misses its values".to_owned()
    }

    fn mark(&mut self) -> Result<(), String> {
        if self.marks.len() == self.marks.capacity() {
            self.spend(self.marks.len().max(64))?;
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// How many values are above the last mark, which goes.
    fn since_mark(&mut self) -> Result<usize, String> {
        let mark = self.marks.pop().ok_or_else(Self::misses)?;
        self.stack.len().checked_sub(mark).ok_or_else(Self::misses)
    }

    fn long(&mut self) -> Result<i64, String> {
        let length = usize::from(self.byte()?);
        let bytes = self.take(length)?;
        if length > 8 {
            return Err(format!(
                "has a number of {length} bytes in its pickle, which no size of a tensor takes"
            ));
        }
        // Two's complement: the sign is in the last byte.
        let fill = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
        let mut number = [fill; 8];
        number[..length].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(number))
    }

    fn text(&mut self, length: usize) -> Result<(), String> {
        if length > MAX_NAME {
            return Err(format!("has a text of {length} bytes in its pickle; names have at most {MAX_NAME}"));
        }
        let bytes = self.take(length)?;
        let text =
            std::str::from_utf8(bytes).map_err(|_| "has a text in its pickle that is no UTF-8".to_owned())?;
        self.push(Value::Text(text))
    }

    fn global(&mut self) -> Result<(), String> {
        let mut line = || -> Result<&'a str, String> {
            let rest = &self.bytes[self.at..];
            let rest = &rest[..rest.len().min(MAX_NAME + 1)];
            let length = rest.iter().position(|byte| *byte == b'\n');
            let length = length.ok_or_else(|| "names something in its pickle without an end".to_owned())?;
            let bytes = self.take(length + 1)?;
            std::str::from_utf8(&bytes[..length]).map_err(|_| "names something that is no UTF-8".to_owned())
        };
        let (module, name) = (line()?, line()?);
        self.push(Value::Global(Global::named(module, name)?))
    }

    fn tuple(&mut self, count: usize) -> Result<(), String> {
        self.spend(count)?;
        let members = self.pop_many(count)?;
        let (start, len) = (self.pickle.members.len() as u32, count as u32);
        self.pickle.members.extend(members);
        self.push(Value::Tuple { start, len })
    }

    fn list(&mut self) -> Result<(), String> {
        self.spend(CONTAINER)?;
        self.pickle.lists.push(Vec::new());
        self.push(Value::List(self.pickle.lists.len() as u32 - 1))
    }

    fn dict(&mut self, items: Vec<(Value<'a>, Value<'a>)>) -> Result<(), String> {
        self.spend(CONTAINER)?;
        self.pickle.dicts.push(items);
        self.push(Value::Dict(self.pickle.dicts.len() as u32 - 1))
    }

    fn append(&mut self, count: usize) -> Result<(), String> {
        self.spend(count)?;
        let members = self.pop_many(count)?;
        let Some(Value::List(place)) = self.stack.last() else { return Err(Self::misses()) };
        self.pickle.lists[*place as usize].extend(members);
        Ok(())
    }

    fn set_items(&mut self, count: usize) -> Result<(), String> {
        self.spend(count)?;
        let members = self.pop_many(count)?;
        let Some(Value::Dict(place)) = self.stack.last() else { return Err(Self::misses()) };
        let (pairs, []) = members.as_chunks::<2>() else { return Err(Self::misses()) };
        self.pickle.dicts[*place as usize].extend(pairs.iter().map(|[name, value]| (*name, *value)));
        Ok(())
    }

    fn put(&mut self, place: usize) -> Result<(), String> {
        let value = *self.stack.last().ok_or_else(Self::misses)?;
        // Numbered one after the other, which keeps this a table.
        if place >= self.memo.len() {
            self.spend(place + 1 - self.memo.len())?;
            self.memo.resize(place + 1, None);
        }
        self.memo[place] = Some(value);
        Ok(())
    }

    fn get(&mut self, place: usize) -> Result<(), String> {
        let value = self.memo.get(place).copied().flatten().ok_or_else(Self::misses)?;
        self.push(value)
    }

    /// A call, of what is known.
    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        match callee {
            Value::Global(Global::OrderedDict) => self.ordered_dict(arguments),
            Value::Global(Global::RebuildTensor) => self.tensor(arguments),
            Value::Global(Global::RebuildParameter) => match self.pickle.members(arguments) {
                Some([tensor @ Value::Tensor(_), ..]) => {
                    let tensor = *tensor;
                    self.push(tensor)
                }
                _ => Err("has a parameter that is no tensor".to_owned()),
            },
            other => Err(format!("calls {}, which makes no tensor", other.kind())),
        }
    }

    /// Empty; or, in Python 2, of a list of pairs.
    fn ordered_dict(&mut self, arguments: Value<'a>) -> Result<(), String> {
        let strange = || "makes an OrderedDict of something strange".to_owned();
        match self.pickle.members(arguments) {
            Some([]) => self.dict(Vec::new()),
            Some(&[Value::List(pairs)]) => {
                let pair = |pair: &Value<'a>| match pair {
                    Value::List(pair) => match self.pickle.lists[*pair as usize].as_slice() {
                        [name, value] => Some((*name, *value)),
                        _ => None,
                    },
                    _ => None,
                };
                let pairs = &self.pickle.lists[pairs as usize];
                let count = pairs.len();
                let items: Option<Vec<_>> = pairs.iter().map(pair).collect();
                self.spend(2 * count)?;
                self.dict(items.ok_or_else(strange)?)
            }
            _ => Err(strange()),
        }
    }

    /// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks, metadata=None)`
    fn tensor(&mut self, arguments: Value<'a>) -> Result<(), String> {
        let strange = || "makes a tensor of something strange".to_owned();
        let pickle = &self.pickle;
        let (known, metadata) =
            pickle.members(arguments).and_then(|members| members.split_at_checked(6)).ok_or_else(strange)?;
        let &[Value::Storage(storage), Value::Int(offset), shape, strides, _, _] = known else {
            return Err(strange());
        };
        match metadata {
            [] | [Value::None] => {}
            [Value::Dict(place)] if pickle.dicts[*place as usize].is_empty() => {}
            _ => {
                return Err(
                    "has a tensor that is conjugated, negated or otherwise not as it is stored".to_owned()
                );
            }
        }
        let offset = u64::try_from(offset).map_err(|_| strange())?;
        let shape = pickle.sizes(shape).ok_or_else(strange)?;
        let strides =
            pickle.sizes(strides).filter(|strides| strides.len() == shape.len()).ok_or_else(strange)?;
        if self.pickle.tensors.len() == MAX_TENSORS {
            return Err(format!("has more than {MAX_TENSORS} tensors: not a model's"));
        }
        self.pickle.tensors.push(Tensor { storage: storage as usize, offset, shape, strides });
        self.push(Value::Tensor(self.pickle.tensors.len() as u32 - 1))
    }

    /// State of a dictionary, which is what its modules' versions are in (`_metadata`): not kept.
    fn build(&mut self) -> Result<(), String> {
        let state = self.pop()?;
        match (self.stack.last(), state) {
            (Some(Value::Dict(_)), Value::Dict(_)) => Ok(()),
            (Some(other), _) => Err(format!("sets the state of {}", other.kind())),
            (None, _) => Err(Self::misses()),
        }
    }

    /// `("storage", class, key, location, numbers)`; before torch 1.6 with a view at the end, which is None.
    fn storage(&mut self) -> Result<(), String> {
        let reference = self.pop()?;
        let Some(
            &[
                Value::Text("storage"),
                Value::Global(Global::Storage(dtype)),
                Value::Text(key),
                Value::Text(_),
                Value::Int(numbers),
            ]
            | &[
                Value::Text("storage"),
                Value::Global(Global::Storage(dtype)),
                Value::Text(key),
                Value::Text(_),
                Value::Int(numbers),
                Value::None,
            ],
        ) = self.pickle.members(reference)
        else {
            return Err("refers to something that is no storage of a tensor".to_owned());
        };
        let numbers = u64::try_from(numbers).map_err(|_| format!("has a storage of {numbers} numbers"))?;
        if self.pickle.storages.len() == MAX_TENSORS {
            return Err(format!("has more than {MAX_TENSORS} tensors: not a model's"));
        }
        self.pickle.storages.push(Storage { dtype, key, numbers });
        self.push(Value::Storage(self.pickle.storages.len() as u32 - 1))
    }
}

/// A name of somebody else's choice, fit for a line of text.
pub(super) fn shown(name: &str) -> String {
    const MOST: usize = 100;
    let cut: String = name.chars().take(MOST).collect();
    let dots = if cut.len() < name.len() { "…" } else { "" };
    format!("{}{dots}", cut.escape_debug())
}
