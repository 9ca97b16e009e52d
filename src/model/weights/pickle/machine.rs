//! The stack machine, as far as state dicts need it.

use std::collections::{BTreeMap, HashMap};

use super::{
    PickleError, Storage, Tensor,
    names::{Global, global},
    tensor,
};
use crate::model::weights::shown;

/// Some 35 opcodes describe a tensor, so this is room for 28,000 of them.
pub(super) const MAX_OPCODES: usize = 1_000_000;
/// Python fills dicts and lists in batches of a thousand.
pub(super) const MAX_STACK: usize = 65_536;
/// Weights have at most five dimensions.
pub(super) const MAX_RANK: usize = 8;

/// A value on the stack. Composite ones are positions in the machine's lists.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    /// None, a truth value, a number or bytes: no part of a tensor's description.
    Plain,
    /// A list; no part of a tensor's description either, so what it holds is dropped.
    List,
    Int(i64),
    Str(&'a str),
    Tuple {
        start: usize,
        end: usize,
    },
    Dict(usize),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(usize),
}

/// The state of one reading.
pub(super) struct Machine<'a> {
    pickle: &'a [u8],
    /// The next byte.
    at: usize,
    /// The opcode that is being carried out.
    opcode_at: usize,
    stack: Vec<Value<'a>>,
    /// How high the stack was at each open MARK.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    /// The members of all tuples.
    members: Vec<Value<'a>>,
    /// Every dict; entries whose key is no string are dropped.
    dicts: Vec<Vec<(&'a str, Value<'a>)>>,
    tensors: Vec<Tensor<'a>>,
}

impl<'a> Machine<'a> {
    pub fn new(pickle: &'a [u8]) -> Self {
        Self {
            pickle,
            at: 0,
            opcode_at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            members: Vec::new(),
            dicts: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Runs the pickle to its end.
    pub fn run(mut self) -> Result<BTreeMap<&'a str, Tensor<'a>>, PickleError> {
        for _ in 0..MAX_OPCODES {
            self.opcode_at = self.at;
            let opcode = self.byte()?;
            if opcode == b'.' {
                let top = self.pop()?;
                return self.state_dict(top);
            }
            self.step(opcode)?;
            if self.stack.len() + self.marks.len() > MAX_STACK {
                return Err(PickleError::Stack(MAX_STACK));
            }
        }
        Err(PickleError::Opcodes(MAX_OPCODES))
    }

    fn step(&mut self, opcode: u8) -> Result<(), PickleError> {
        let value = match opcode {
            // PROTO; later ones would bring opcodes that are refused anyway.
            0x80 => return self.byte().map(drop),
            // FRAME: only a hint on how to read.
            0x95 => return self.take(8).map(drop),
            b'(' => {
                self.marks.push(self.stack.len());
                return Ok(());
            }

            // NONE, NEWTRUE, NEWFALSE
            b'N' | 0x88 | 0x89 => Value::Plain,
            // BININT, BININT1, BININT2, LONG1
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Value::Int(self.byte()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
            0x8a => self.long()?,
            // BINFLOAT
            b'G' => self.take(8).map(|_| Value::Plain)?,
            // SHORT_BINBYTES, BINBYTES
            b'C' => self.short_bytes().map(|_| Value::Plain)?,
            b'B' => self.long_bytes().map(|_| Value::Plain)?,
            // SHORT_BINUNICODE, BINUNICODE
            0x8c => self.short_bytes().and_then(|bytes| self.text(bytes)).map(Value::Str)?,
            b'X' => self.long_bytes().and_then(|bytes| self.text(bytes)).map(Value::Str)?,

            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.tuple(self.stack.len())?,
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                let from = self.stack.len().checked_sub(n).ok_or_else(|| self.underflow())?;
                self.tuple(from)?
            }
            b't' => {
                let from = self.mark()?;
                self.tuple(from)?
            }
            // EMPTY_LIST, APPEND, APPENDS
            b']' => Value::List,
            b'a' => {
                self.pop()?;
                return self.list();
            }
            b'e' => {
                let from = self.mark()?;
                self.stack.truncate(from);
                return self.list();
            }
            // EMPTY_DICT, SETITEM, SETITEMS
            b'}' => self.empty_dict(),
            b's' => {
                let from = self.stack.len().checked_sub(2).ok_or_else(|| self.underflow())?;
                return self.set_items(from);
            }
            b'u' => {
                let from = self.mark()?;
                return self.set_items(from);
            }

            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' => return self.byte().and_then(|key| self.put(key.into())),
            b'r' => return self.array().and_then(|key| self.put(u32::from_le_bytes(key))),
            0x94 => return self.put(self.memo.len() as u32),
            // BINGET, LONG_BINGET
            b'h' => self.byte().and_then(|key| self.get(key.into()))?,
            b'j' => self.array().and_then(|key| self.get(u32::from_le_bytes(key)))?,

            // GLOBAL, STACK_GLOBAL, BINPERSID, REDUCE, BUILD
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                Value::Global(global(module, name)?)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (module, name) {
                    (Value::Str(module), Value::Str(name)) => Value::Global(global(module, name)?),
                    _ => return Err(self.malformed("a global needs two names")),
                }
            }
            b'Q' => self.storage()?,
            b'R' => self.reduce()?,
            b'b' => return self.build(),

            // INST names its class itself.
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                return Err(PickleError::Code(shown(&format!("{module}.{name}"))));
            }
            b'o' => return Err(PickleError::Code("the opcode OBJ".into())),
            0x81 => return Err(PickleError::Code("the opcode NEWOBJ".into())),
            0x92 => return Err(PickleError::Code("the opcode NEWOBJ_EX".into())),
            0x82..=0x84 => return Err(PickleError::Code("an extension (opcode EXT)".into())),
            b'P' => return Err(PickleError::Code("a persistent object (opcode PERSID)".into())),
            other => {
                return Err(self.malformed(format!("opcode {other:#04x} is none that describes tensors")));
            }
        };
        self.stack.push(value);
        Ok(())
    }

    /// Turns what lies on the stack from `from` on into a tuple.
    fn tuple(&mut self, from: usize) -> Result<Value<'a>, PickleError> {
        let start = self.members.len();
        self.members.extend(self.stack.drain(from..));
        Ok(Value::Tuple { start, end: self.members.len() })
    }

    fn empty_dict(&mut self) -> Value<'a> {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }

    /// Puts the keys and values from `from` on into the dict below them.
    fn set_items(&mut self, from: usize) -> Result<(), PickleError> {
        let items = self.stack.split_off(from);
        let Some(Value::Dict(dict)) = self.stack.last() else {
            return Err(self.malformed("items are set on something that is no dict"));
        };
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.malformed("a key has no value"));
        }
        self.dicts[*dict].extend(pairs.iter().filter_map(|[key, value]| match key {
            Value::Str(key) => Some((*key, *value)),
            _ => None,
        }));
        Ok(())
    }

    /// Checks that a list is on top; what was appended is dropped already.
    fn list(&self) -> Result<(), PickleError> {
        match self.stack.last() {
            Some(Value::List) => Ok(()),
            _ => Err(self.malformed("items are appended to something that is no list")),
        }
    }

    /// `("storage", class, key, location, length)`. The location is where it was saved from, such as `cuda:0`.
    fn storage(&mut self) -> Result<Value<'a>, PickleError> {
        let id = self.pop()?;
        match self.members_of(id) {
            [
                Value::Str("storage"),
                Value::Global(Global::Storage(dtype)),
                Value::Str(key),
                Value::Str(_),
                Value::Int(len),
            ] => Ok(Value::Storage(Storage { dtype: *dtype, key, len: *len })),
            _ => Err(self.malformed("a persistent id is no storage")),
        }
    }

    /// Calls one of the known names.
    fn reduce(&mut self) -> Result<Value<'a>, PickleError> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Value::Tuple { .. } = arguments else {
            return Err(self.malformed("a call has no arguments"));
        };
        let arguments = self.members_of(arguments);
        match (callee, arguments) {
            (Value::Global(Global::OrderedDict), []) => Ok(self.empty_dict()),
            (
                Value::Global(Global::RebuildTensor),
                // Whether it wants gradients and who listens for them come behind.
                [Value::Storage(storage), Value::Int(offset), shape, strides, ..],
            ) => {
                let (Some(shape), Some(strides)) = (self.integers(*shape), self.integers(*strides)) else {
                    return Err(self.malformed(format!("a shape is no tuple of up to {MAX_RANK} integers")));
                };
                let tensor =
                    tensor(*storage, *offset, shape, strides).map_err(|what| self.malformed(what))?;
                self.tensors.push(tensor);
                Ok(Value::Tensor(self.tensors.len() - 1))
            }
            (Value::Global(Global::RebuildParameter), [Value::Tensor(tensor), ..]) => {
                Ok(Value::Tensor(*tensor))
            }
            (Value::Global(called), _) => {
                Err(self
                    .malformed(format!("{called:?} is called with other arguments than torch.save writes")))
            }
            _ => Err(PickleError::Code("a call of something that is no name".into())),
        }
    }

    /// An OrderedDict of PyTorch carries `_metadata`, the versions of its modules. It is passed over, and any
    /// other attribute refused, as `__setstate__` would be called by Python.
    fn build(&mut self) -> Result<(), PickleError> {
        let state = self.pop()?;
        let (Some(Value::Dict(_)), Value::Dict(attributes)) = (self.stack.last(), state) else {
            return Err(PickleError::Code("the state of an object (opcode BUILD)".into()));
        };
        match self.dicts[attributes].iter().find(|(name, _)| *name != "_metadata") {
            None => Ok(()),
            Some((name, _)) => Err(PickleError::Code(format!("an attribute {} of a dict", shown(name)))),
        }
    }

    /// The tensors of a state dict that is the whole pickle, or one level below.
    fn state_dict(self, top: Value<'a>) -> Result<BTreeMap<&'a str, Tensor<'a>>, PickleError> {
        let entries = |value| match value {
            Value::Dict(dict) => self.dicts[dict].as_slice(),
            _ => &[],
        };
        let tensors = |value| {
            let entries = entries(value).iter();
            // Where a name comes twice the later one counts, as in Python.
            let tensors = entries.filter_map(|(name, value)| match value {
                Value::Tensor(tensor) => Some((*name, self.tensors[*tensor].clone())),
                _ => None,
            });
            Some(tensors.collect::<BTreeMap<_, _>>()).filter(|tensors| !tensors.is_empty())
        };
        let below = |wanted| entries(top).iter().rev().find(|(name, _)| *name == wanted);
        let nested = ["state_dict", "model"].into_iter().filter_map(below);
        nested.map(|(_, value)| *value).chain([top]).find_map(tensors).ok_or(PickleError::NoStateDict)
    }

    fn members_of(&self, value: Value<'a>) -> &[Value<'a>] {
        match value {
            Value::Tuple { start, end } => &self.members[start..end],
            _ => &[],
        }
    }

    /// A shape or strides.
    fn integers(&self, value: Value<'a>) -> Option<Vec<i64>> {
        let Value::Tuple { start, end } = value else { return None };
        // The limit keeps a file from having one long tuple copied many times.
        if end - start > MAX_RANK {
            return None;
        }
        let number = |value: &Value| if let Value::Int(n) = value { Some(*n) } else { None };
        self.members_of(value).iter().map(number).collect()
    }

    fn put(&mut self, key: u32) -> Result<(), PickleError> {
        let value = *self.stack.last().ok_or_else(|| self.underflow())?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn get(&self, key: u32) -> Result<Value<'a>, PickleError> {
        self.memo.get(&key).copied().ok_or_else(|| self.malformed(format!("nothing was kept as {key}")))
    }

    fn pop(&mut self) -> Result<Value<'a>, PickleError> {
        // What lies below a mark is not to be had before the mark is gone.
        match self.marks.last() {
            Some(&mark) if self.stack.len() <= mark => Err(self.underflow()),
            _ => self.stack.pop().ok_or_else(|| self.underflow()),
        }
    }

    fn mark(&mut self) -> Result<usize, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.malformed("there is no mark"))?;
        if mark > self.stack.len() { Err(self.underflow()) } else { Ok(mark) }
    }

    /// An integer of up to 255 bytes; one that no size needs is no part of a tensor.
    fn long(&mut self) -> Result<Value<'a>, PickleError> {
        let bytes = self.short_bytes()?;
        if bytes.len() > 8 {
            return Ok(Value::Plain);
        }
        // Two's complement: the last byte has the sign.
        let sign = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    fn short_bytes(&mut self) -> Result<&'a [u8], PickleError> {
        let n = self.byte()?;
        self.take(n.into())
    }

    fn long_bytes(&mut self) -> Result<&'a [u8], PickleError> {
        let n = u32::from_le_bytes(self.array()?);
        self.take(n as usize)
    }

    fn text(&self, bytes: &'a [u8]) -> Result<&'a str, PickleError> {
        std::str::from_utf8(bytes).map_err(|_| self.malformed("a string is not UTF-8"))
    }

    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = &self.pickle[self.at..];
        let n =
            rest.iter().position(|&byte| byte == b'\n').ok_or(PickleError::Truncated(self.pickle.len()))?;
        let line = self.take(n)?;
        self.at += 1;
        self.text(line)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        self.take(N).map(|bytes| bytes.try_into().expect("as many as were asked for"))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], PickleError> {
        let rest = &self.pickle[self.at..];
        let taken = rest.get(..n).ok_or(PickleError::Truncated(self.pickle.len()))?;
        self.at += n;
        Ok(taken)
    }

    fn underflow(&self) -> PickleError {
        self.malformed("a value is missing")
    }

    fn malformed(&self, what: impl Into<String>) -> PickleError {
        PickleError::Malformed { at: self.opcode_at, what: what.into() }
    }
}
