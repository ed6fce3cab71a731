//! The machine that pickles are programs for: a stack, marks on it, and a memo.

use super::{Global, Pickle, Storage, Tensor, Value};

/// What is ever on the stack, in the memo or in a container. A tensor takes about 40.
const MAX_VALUES: usize = 1 << 20;
/// Models have hundreds, the largest shards thousands.
const MAX_TENSORS: usize = 20_000;
/// A container's own weight in values: it is allocated.
const CONTAINER: usize = 8;
/// No name in a checkpoint, of a tensor or of a class, is as long.
const MAX_NAME: usize = 1024;

const PROTOCOL: u8 = 2;

pub(super) struct Machine<'a> {
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
    /// For the program that `bytes` begin with, and an empty `pickle`.
    pub(super) fn new(bytes: &'a [u8], pickle: Pickle<'a>) -> Self {
        Self { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: Vec::new(), values: 0, pickle }
    }

    /// What it has made, and how long the program is.
    pub(super) fn run(mut self) -> Result<(Pickle<'a>, usize), String> {
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
                    return if is_done { Ok((self.pickle, self.at)) } else { Err(Self::misses()) };
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
