//! Weights that are spread over several files by an index.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::{Component, Path},
    sync::Arc,
};

use serde::Deserialize;

use super::{
    index::{Format, Layout, Layouts},
    shown,
};
use crate::model::{FileBytes, ModelError, ModelFiles};

/// `model.safetensors.index.json`; its `metadata` says nothing that the shards do not.
#[derive(Deserialize)]
struct ShardIndex {
    /// Tensor name to file name.
    weight_map: BTreeMap<String, String>,
}

/// The shards with their places, and every tensor: its file, counted from one, and how it lies there.
type Shards = (Vec<(String, Arc<FileBytes>)>, BTreeMap<String, (usize, Layout)>);

/// Opens every shard that the index in `json` names.
///
/// # Errors
/// When the index is broken, names a file outside the directory or one that is missing or broken, or promises a
/// tensor that its shard does not hold.
pub(super) fn read(
    files: &ModelFiles,
    index: &str,
    json: &[u8],
    format: Format,
) -> Result<Shards, ModelError> {
    let broken = |file: &str, reason| ModelError::Weights { file: file.into(), reason };
    let ShardIndex { weight_map } = serde_json::from_slice(json).map_err(|e| broken(index, e.to_string()))?;
    let mut opened: BTreeMap<&str, (Arc<FileBytes>, Layouts)> = BTreeMap::new();
    for shard in weight_map.values() {
        let Entry::Vacant(place) = opened.entry(shard) else { continue };
        if !is_file_name(shard) {
            return Err(broken(index, format!("{} is no name of a file beside it", shown(shard))));
        }
        let bytes = files.map(shard).map_err(|error| match error {
            ModelError::NoFile { .. } => ModelError::NoShard { index: index.into(), shard: shown(shard) },
            other => other,
        })?;
        let layouts = format.read(&bytes, &files.place_of(shard))?;
        place.insert((bytes, layouts));
    }
    let numbers: BTreeMap<&str, usize> = opened.keys().copied().zip(1..).collect();
    let mut tensors = BTreeMap::new();
    for (name, shard) in &weight_map {
        let (_, layouts) = opened.get_mut(shard.as_str()).expect("every shard was opened");
        let layout = layouts.remove(name).ok_or_else(|| {
            let reason = format!("it has no tensor {}, which {index} says it holds", shown(name));
            broken(&files.place_of(shard), reason)
        })?;
        tensors.insert(name.clone(), (numbers[shard.as_str()], layout));
    }
    let shards = opened.into_iter().map(|(name, (bytes, _))| (files.place_of(name), bytes)).collect();
    Ok((shards, tensors))
}

/// Whether a name stays in the directory, on any system.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let single = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    single && !name.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_stay_in_the_directory() {
        for name in ["model-00001-of-00002.safetensors", "a", "..a"] {
            assert!(is_file_name(name), "{name}");
        }
        for name in ["", ".", "..", "../a", "/etc/passwd", "a/b", "a/", "..\\a", "C:a", "a\0"] {
            assert!(!is_file_name(name), "{name}");
        }
    }
}
