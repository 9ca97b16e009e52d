//! What a file of `torch.save` holds: a zip archive with a pickle that describes the tensors, and one entry per
//! storage with their bytes.
//!
//! PyTorch stores the entries as they are, so that they can be used in the mapping. Source: PyTorch 2.11,
//! `caffe2/serialize/inline_container.h` (the archive) and `torch/serialization.py` (the records).

use std::{io::Cursor, ops::Range};

use zip::{CompressionMethod, ZipArchive};

use super::{
    index::{Layout, Layouts},
    pickle::{self, PickleError, Tensor},
    shown,
};
use crate::model::ModelError;

/// How a file of `torch.save` before 1.6 goes on after its protocol: a pickled number.
const LEGACY: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

const CONVERT: &str = "load it with `torch.load(.., weights_only=True)` in a recent PyTorch and save it again, \
                       or convert it to safetensors";

type Archive<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// The tensors of a file that `torch.save` wrote.
///
/// # Errors
/// [`ModelError::Code`] when the pickle asks for anything but tensors, else [`ModelError::Weights`].
pub(super) fn read(bytes: &[u8], place: &str) -> Result<Layouts, ModelError> {
    let broken = |reason| ModelError::Weights { file: place.into(), reason };
    if bytes.get(2..).is_some_and(|rest| rest.starts_with(LEGACY))
        || bytes.get(257..).is_some_and(|rest| rest.starts_with(b"ustar"))
    {
        return Err(broken(format!("PyTorch before 1.6 wrote it; {CONVERT}")));
    }
    if !bytes.starts_with(b"PK") {
        return Err(broken(format!("it is no zip archive, as torch.save writes; {CONVERT}")));
    }
    let mut archive = ZipArchive::new(Cursor::new(bytes))
        .map_err(|error| broken(format!("{error}; download the file again")))?;
    let root = root(&archive).map_err(broken)?;
    let mut entry = |name: &str| {
        let name = format!("{root}/{name}");
        stored(&mut archive, &name, bytes.len())
            .map_err(|reason| broken(format!("entry {}: {reason}", shown(&name))))
    };
    if let Some(range) = entry("byteorder")?
        && &bytes[range] != b"little"
    {
        return Err(broken(format!("its numbers are not little-endian; {CONVERT}")));
    }
    if entry("constants.pkl")?.is_some() {
        return Err(broken("it is a TorchScript module rather than a state dict".into()));
    }
    let data = entry("data.pkl")?.ok_or_else(|| broken("it has no data.pkl".into()))?;
    let tensors = pickle::read(&bytes[data]).map_err(|error| match error {
        PickleError::Code(asks_for) => ModelError::Code { file: place.into(), asks_for },
        other => broken(format!("data.pkl: {other}")),
    })?;
    let mut layouts = Layouts::new();
    for (name, tensor) in tensors {
        let storage = entry(&format!("data/{}", tensor.storage))?;
        let layout =
            layout(&tensor, storage).map_err(|reason| broken(format!("tensor {}: {reason}", shown(name))))?;
        layouts.insert(name.to_owned(), layout);
    }
    Ok(layouts)
}

/// The directory that everything lies in; it is named after the file that was saved.
fn root(archive: &Archive) -> Result<String, String> {
    let pickles = archive.file_names().filter_map(Result::ok);
    let mut roots = pickles.filter_map(|name| Some(name.strip_suffix("/data.pkl")?.to_owned()));
    match (roots.next(), roots.next()) {
        (Some(root), None) => Ok(root),
        (None, _) => Err("it is a zip archive, but holds no data.pkl, as torch.save writes".into()),
        (Some(_), Some(_)) => Err("it holds several data.pkl".into()),
    }
}

/// Where an entry's bytes lie in the file; none when there is no such entry.
fn stored(archive: &mut Archive, name: &str, file_len: usize) -> Result<Option<Range<usize>>, String> {
    let Some(number) = archive.index_for_name(name) else { return Ok(None) };
    let entry = archive.by_index_raw(number).map_err(|error| format!("{error}; download the file again"))?;
    if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
        return Err(format!("it is compressed or encrypted, which torch.save never does; {CONVERT}"));
    }
    let place = || {
        let start = entry.data_start()?;
        let end = start.checked_add(entry.compressed_size())?;
        Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    };
    match place() {
        Some(range) if entry.size() == entry.compressed_size() && range.end <= file_len => Ok(Some(range)),
        _ => Err("it reaches past the end of the file; download it again".into()),
    }
}

/// The place of a tensor whose extent in its storage was checked, once the storage itself is checked.
fn layout(tensor: &Tensor, storage: Option<Range<usize>>) -> Result<Layout, String> {
    let storage = storage.ok_or_else(|| format!("there is no storage {}", shown(tensor.storage)))?;
    let size = tensor.dtype.bitsize() / 8;
    let in_bytes = |entries: i64| usize::try_from(entries).ok()?.checked_mul(size);
    let claimed = in_bytes(tensor.storage_len);
    if claimed.is_none_or(|claimed| claimed > storage.len()) {
        return Err(format!(
            "storage {} is to have {} entries of {}, but has {} bytes; download the file again",
            shown(tensor.storage),
            tensor.storage_len,
            tensor.dtype,
            storage.len()
        ));
    }
    let at = |entries| storage.start + in_bytes(entries).expect("no more than the storage has");
    Ok(Layout {
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        strides: tensor.strides.clone(),
        bytes: at(tensor.entries.start)..at(tensor.entries.end),
    })
}
