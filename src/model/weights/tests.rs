//! Both formats and the shards against the files of `tools/fixtures/pickles.py`; without libtorch.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{Format, Index, Layout, Layouts};
use crate::{
    config::ModelSource,
    model::{ModelError, ModelFiles},
};

/// What a tensor of `good` is to be.
#[derive(Deserialize, Clone)]
pub(super) struct Expected {
    dtype: String,
    pub shape: Vec<i64>,
    /// The bytes of all entries in order.
    hex: String,
    #[cfg_attr(not(feature = "torch"), expect(dead_code))]
    pub values: Vec<f32>,
}

#[cfg(feature = "torch")]
impl Expected {
    pub fn is_weight(&self) -> bool {
        ["F64", "F32", "F16", "BF16"].contains(&self.dtype.as_str())
    }
}

pub(super) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights").join(name)
}

/// Every file of `good`, with what it holds.
pub(super) fn good() -> Vec<(PathBuf, Format, BTreeMap<String, Expected>)> {
    let json = fs::read(fixture("good/expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, Expected>> = serde_json::from_slice(&json).unwrap();
    let formats = [("bin", Format::Torch), ("safetensors", Format::Safetensors)];
    let files = formats.iter().flat_map(|(end, format)| {
        let file = move |name| fixture(&format!("good/{name}.{end}"));
        expected.iter().map(move |(name, tensors)| (file(name), *format, tensors.clone()))
    });
    files.filter(|(path, ..)| path.exists()).collect()
}

/// The bytes of all entries in order, strides followed.
fn gather(data: &[u8], layout: &Layout) -> Vec<u8> {
    let size = layout.dtype.bitsize() / 8;
    let mut entries = vec![0_usize];
    for (&n, &stride) in layout.shape.iter().zip(&layout.strides) {
        let along = |at: &usize| (0..n as usize).map(|i| at + i * stride as usize).collect::<Vec<_>>();
        entries = entries.iter().flat_map(along).collect();
    }
    entries.iter().flat_map(|at| data[at * size..][..size].to_vec()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads every entry of every tensor, which panics where one lies outside.
fn touch(file: &[u8], layouts: &Layouts) {
    for layout in layouts.values() {
        gather(&file[layout.bytes.clone()], layout);
    }
}

#[test]
fn good_files_hold_what_python_saved() {
    let files = good();
    assert_eq!(files.len(), 19, "14 state dicts, 5 of them in both formats");
    for (path, format, expected) in files {
        let bytes = fs::read(&path).unwrap();
        let layouts = format.read(&bytes, "file").unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(layouts.keys().eq(expected.keys()), "{}", path.display());
        for (name, expected) in &expected {
            let layout = &layouts[name];
            let found = hex(&gather(&bytes[layout.bytes.clone()], layout));
            assert_eq!(
                (layout.dtype.to_string(), &layout.shape, &found),
                (expected.dtype.clone(), &expected.shape, &expected.hex),
                "{name} of {}",
                path.display()
            );
        }
    }
}

#[test]
fn a_tied_tensor_lies_in_the_file_once() {
    let layouts = Format::Torch.read(&fs::read(fixture("good/tied.bin")).unwrap(), "file").unwrap();
    assert_eq!(layouts["a"], layouts["b"]);
}

#[test]
fn harmful_and_broken_files_are_refused_and_run_nothing() {
    let json = fs::read(fixture("refused/expected.json")).unwrap();
    let expected: BTreeMap<String, String> = serde_json::from_slice(&json).unwrap();
    assert!(expected.len() > 90);
    for (name, part) in expected {
        let bytes = fs::read(fixture(&format!("refused/{name}.bin"))).unwrap();
        let error = Format::Torch.read(&bytes, "the-file").expect_err(&name);
        let message = error.to_string();
        assert!(message.contains("the-file") && message.contains(&part), "{name}: {message}");
        assert!(message.len() < 600 && !message.contains(char::is_control), "{name}: {message:?}");
        let is_code = message.contains("never runs code") && message.contains("convert it to safetensors");
        assert_eq!(matches!(error, ModelError::Code { .. }), is_code, "{name}: {message}");
    }
    assert!(!Path::new("sidelens-ran-code").exists());
}

#[test]
fn what_would_run_code_is_told_from_what_is_broken() {
    let read = |name: &str| Format::Torch.read(&fs::read(fixture(name)).unwrap(), "file").unwrap_err();
    for name in
        ["global_os_system", "stack_global_os_system", "builtins_eval", "inst", "build_setstate", "ext4"]
    {
        let error = read(&format!("refused/{name}.bin"));
        assert!(matches!(error, ModelError::Code { .. }), "{name}: {error}");
    }
    for name in ["legacy", "compressed", "past_the_storage", "billion_laughs"] {
        let error = read(&format!("refused/{name}.bin"));
        assert!(matches!(error, ModelError::Weights { .. }), "{name}: {error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for (name, format) in [("views.bin", Format::Torch), ("fp32.safetensors", Format::Safetensors)] {
        let bytes = fs::read(fixture(&format!("good/{name}"))).unwrap();
        for end in 0..bytes.len() {
            assert!(format.read(&bytes[..end], "file").is_err(), "{name} cut to {end}");
        }
    }
}

#[test]
fn no_flipped_bit_panics_or_leads_outside_the_file() {
    for (name, format) in [
        ("views.bin", Format::Torch),
        ("protocol_4.bin", Format::Torch),
        ("fp32.safetensors", Format::Safetensors),
    ] {
        let mut bytes = fs::read(fixture(&format!("good/{name}"))).unwrap();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(layouts) = format.read(&bytes, "file") {
                touch(&bytes, &layouts);
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

fn at(path: PathBuf) -> ModelFiles {
    ModelFiles::open(&ModelSource::Directory(path)).unwrap()
}

fn copy(from: &str) -> (tempfile::TempDir, ModelFiles) {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixture(from)).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let files = at(dir.path().into());
    (dir, files)
}

#[test]
fn shards_hold_what_the_single_file_holds() {
    let read = |name: &str| {
        let index = Index::open(&at(fixture(name))).unwrap();
        let tensor = |name: &str| {
            let found = index.get(name).unwrap();
            (name.to_owned(), found.layout.shape.clone(), gather(found.data, found.layout))
        };
        (index.names().map(tensor).collect::<Vec<_>>(), index.n_files())
    };
    let single = read("single-safetensors");
    assert_eq!((single.0.len(), single.1), (6, 1));
    assert_eq!(read("single-bin"), single);
    for sharded in ["sharded-safetensors", "sharded-bin"] {
        // The index counts for the fingerprint too.
        assert_eq!(read(sharded), (single.0.clone(), 4), "{sharded}");
    }
}

#[test]
fn broken_shards_are_named() {
    let index = "model.safetensors.index.json";
    let second = "model-00002-of-00003.safetensors";
    let message = |change: &dyn Fn(&Path)| {
        let (dir, files) = copy("sharded-safetensors");
        change(dir.path());
        Index::open(&files).unwrap_err().to_string()
    };
    let edit = |from: &'static str, to: &'static str| {
        move |dir: &Path| {
            let json = fs::read_to_string(dir.join(index)).unwrap();
            assert!(json.contains(from));
            fs::write(dir.join(index), json.replacen(from, to, 1)).unwrap();
        }
    };
    for (message, parts) in [
        (message(&|dir| fs::remove_file(dir.join(second)).unwrap()), vec![index, second, "not there"]),
        (message(&|dir| fs::write(dir.join(second), "x").unwrap()), vec![second]),
        (message(&edit("model-00001", "../model-00001")), vec![index, "no name of a file"]),
        (message(&edit("model-00001", "/model-00001")), vec![index, "no name of a file"]),
        (message(&edit("layer.0.weight", "layer.9.weight")), vec![index, "`layer.9.weight`", "00001-of"]),
        (message(&edit("weight_map", "weights")), vec![index, "weight_map"]),
        (message(&edit("{", "")), vec![index]),
    ] {
        for part in parts {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}

#[test]
fn the_best_format_is_taken() {
    let (dir, files) = copy("single-bin");
    let place = || Index::open(&files).unwrap().place().to_owned();
    assert!(place().ends_with("pytorch_model.bin"));
    let add = |from: &str, to: &str| fs::copy(fixture(from), dir.path().join(to)).unwrap();
    for shard in 1..=3 {
        let name = format!("model-{shard:05}-of-00003.safetensors");
        add(&format!("sharded-safetensors/{name}"), &name);
    }
    add("sharded-safetensors/model.safetensors.index.json", "model.safetensors.index.json");
    assert!(place().ends_with("model.safetensors.index.json"));
    add("single-safetensors/model.safetensors", "model.safetensors");
    assert!(place().ends_with("model.safetensors"));

    let empty = tempfile::tempdir().unwrap();
    let message = Index::open(&at(empty.path().into())).unwrap_err().to_string();
    for name in ["model.safetensors,", "model.safetensors.index.json", "pytorch_model.bin"] {
        assert!(message.contains(name), "{message}");
    }
    assert!(Index::open(&ModelFiles::open(&ModelSource::Demo).unwrap()).unwrap().names().count() > 10);
}
