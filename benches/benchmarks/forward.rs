//! Forward passes of a ViT-B/32 with random weights, beside the matrix products that it cannot do without.
//!
//! The checkpoint (605 MB) is drawn once, into the build folder. `forward/products` multiplies what the blocks of the
//! image tower multiply, and nothing else: an engine that only multiplied would be as fast. `plain products` are the
//! same as libtorch multiplies them, with weights as they are stored; on a GPU, where nothing is packed, there is no difference.

use std::{
    fs,
    hint::black_box,
    path::{Path, PathBuf},
};

use criterion::{BenchmarkId, Criterion, Throughput};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use sidelens::{
    config::{DeviceChoice, DtypeChoice, ModelConfig, ModelSource},
    domain::{Pixels, Prepared, Tokens},
    model::Linear,
    runtime::{LoadedModel, facts, load},
};
use tch::{Device, Kind, Tensor};

/// Pictures of a pass.
const PICTURES: &[usize] = &[1, 8, 32];
/// The same on a GPU, which wants more to be busy.
const PICTURES_CUDA: &[usize] = &[1, 8, 32, 64, 128, 256, 512];
/// Texts of a pass, and tokens of each: a search, and product titles.
const TEXTS: &[(usize, usize)] = &[(1, 8), (32, 16)];

const HIDDEN: i64 = 768;
const LAYERS: usize = 12;
const PATCHES: i64 = 50;

pub fn bench(criterion: &mut Criterion) {
    let facts = facts();
    let has_bf16 = facts.cpu_features.iter().any(|feature| feature.ends_with("_bf16"));
    let mut shapes = vec![("cpu", DeviceChoice::Cpu, DtypeChoice::Fp32)];
    if has_bf16 {
        shapes.push(("cpu", DeviceChoice::Cpu, DtypeChoice::Bf16));
    }
    if facts.cuda.is_ok() {
        shapes.push(("cuda", DeviceChoice::Cuda(0), DtypeChoice::Auto));
    }
    let dir = checkpoint();
    for (name, device, dtype) in shapes {
        one(criterion, &dir, name, device, dtype);
    }
}

fn one(criterion: &mut Criterion, dir: &Path, name: &str, device: DeviceChoice, dtype: DtypeChoice) {
    let source = ModelSource::Directory(dir.to_owned());
    let config = ModelConfig { source, device, dtype, ..ModelConfig::default() };
    let LoadedModel { mut engines, dtype, .. } = load(&config).expect("the checkpoint loads");
    // On the CPU the last one is the one for searches, over all threads.
    let mut backend = engines.pop().expect("there is an engine").backend;
    backend.enter_thread();
    let mut group = criterion.benchmark_group("forward");
    group.sample_size(10);
    let pictures = if name == "cpu" { PICTURES } else { PICTURES_CUDA };
    for &n in pictures {
        let batch: Vec<_> = (0..n).map(picture).collect();
        group.throughput(Throughput::Elements(n as u64));
        // Vectors come back to the host, so the device has finished.
        group.bench_function(BenchmarkId::new(format!("{name} {dtype}, pictures"), n), |bencher| {
            bencher.iter(|| backend.embed(black_box(&batch)).expect("embeds"));
        });
    }
    for &(n, length) in TEXTS {
        let batch: Vec<_> = (0..n).map(|i| text(i, length)).collect();
        group.throughput(Throughput::Elements(n as u64));
        let id = BenchmarkId::new(format!("{name} {dtype}, texts of {length} tokens"), n);
        group.bench_function(id, |bencher| {
            bencher.iter(|| backend.embed(black_box(&batch)).expect("embeds"));
        });
    }
    let kind = match dtype.as_str() {
        "bf16" => Kind::BFloat16,
        "fp16" => Kind::Half,
        _ => Kind::Float,
    };
    let device = if name == "cpu" { Device::Cpu } else { Device::Cuda(0) };
    for &n in pictures {
        group.throughput(Throughput::Elements(n as u64));
        let products = Products::new(n as i64, device, kind, |weight| {
            let product = Linear::new(weight, None).expect("packs");
            Box::new(move |x| product.forward(x).expect("multiplies"))
        });
        group.bench_function(BenchmarkId::new(format!("{name} {dtype}, products"), n), |bencher| {
            bencher.iter(|| products.multiply());
        });
        let products = Products::new(n as i64, device, kind, |weight| {
            Box::new(move |x| x.linear::<&Tensor>(&weight, None))
        });
        group.bench_function(BenchmarkId::new(format!("{name} {dtype}, plain products"), n), |bencher| {
            bencher.iter(|| products.multiply());
        });
    }
    group.finish();
}

fn picture(seed: usize) -> Prepared {
    let rgb8 = (0..224 * 224 * 3).map(|i| (i * 7 + seed * 31) as u8).collect();
    Prepared::Pixels(Pixels { rgb8, height: 224, width: 224 })
}

fn text(seed: usize, length: usize) -> Prepared {
    let mut ids: Vec<u32> = (0..length as u32).map(|i| 1 + (i * 37 + seed as u32 * 11) % 49_000).collect();
    ids[length - 1] = 49_407;
    Prepared::Tokens(Tokens { ids, n_tokens: length, truncated: false })
}

/// The products of the image tower's blocks. Every block has weights of its own, as in the model: one set would stay
/// in the cache.
struct Products {
    narrow: Tensor,
    wide: Tensor,
    blocks: Vec<[Product; 4]>,
}

type Product = Box<dyn Fn(&Tensor) -> Tensor>;

impl Products {
    fn new(pictures: i64, device: Device, kind: Kind, product: impl Fn(Tensor) -> Product) -> Self {
        let draw = |rows, columns| (Tensor::rand([rows, columns], (Kind::Float, device)) - 0.5).to_kind(kind);
        let shapes = [[3 * HIDDEN, HIDDEN], [HIDDEN, HIDDEN], [4 * HIDDEN, HIDDEN], [HIDDEN, 4 * HIDDEN]];
        let block = || shapes.map(|[rows, columns]| product(draw(rows, columns)));
        Self {
            narrow: draw(pictures * PATCHES, HIDDEN),
            wide: draw(pictures * PATCHES, 4 * HIDDEN),
            blocks: (0..LAYERS).map(|_| block()).collect(),
        }
    }

    /// Gives a number of the last product, so that all have been computed.
    fn multiply(&self) -> f64 {
        let _no_grad = tch::no_grad_guard();
        let mut first_number = 0.0;
        for (layer, [qkv, output, inner, outer]) in self.blocks.iter().enumerate() {
            for product in [qkv, output, inner] {
                drop(black_box(product(&self.narrow)));
            }
            let last = outer(&self.wide);
            if layer + 1 == LAYERS {
                first_number = last.double_value(&[0, 0]);
            }
        }
        first_number
    }
}

/// Draws the checkpoint, if it is not there from another time.
fn checkpoint() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("random-vit-b-32");
    if dir.join("config.json").is_file() {
        return dir;
    }
    fs::create_dir_all(&dir).expect("the folder can be made");
    let write = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).expect("the file can be written");
    let size = json!({"shortest_edge": 224});
    write("preprocessor_config.json", json!({"size": size, "crop_size": 224}).to_string().as_bytes());
    let words = json!({"<unk>": 0, "</s>": 49407});
    let tokenizer = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": words}});
    write("tokenizer.json", tokenizer.to_string().as_bytes());

    let tensors = shapes();
    let longest = tensors.iter().map(|(_, shape)| shape.iter().product()).max().unwrap_or(0);
    // Every tensor is a part of one drawn row: what the numbers are changes no product's time, but they must stay
    // small enough that nothing overflows.
    let mut state = 7_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.07
    };
    let data: Vec<u8> = (0..longest).flat_map(|_| draw().to_le_bytes()).collect();
    let views = tensors.iter().map(|(name, shape)| {
        let bytes = &data[..shape.iter().product::<usize>() * 4];
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("as many bytes as entries"))
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors"))
        .expect("the weights are written");
    // The defaults of a CLIP configuration are ViT-B/32's. Last, so that its presence says that all is there.
    write("config.json", br#"{"model_type": "clip", "projection_dim": 512}"#);
    dir
}

/// The tensors of CLIP ViT-B/32.
fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![
        ("vision_model.embeddings.class_embedding".to_owned(), vec![768]),
        ("vision_model.embeddings.patch_embedding.weight".to_owned(), vec![768, 3, 32, 32]),
        ("vision_model.embeddings.position_embedding.weight".to_owned(), vec![50, 768]),
        ("visual_projection.weight".to_owned(), vec![512, 768]),
        ("text_model.embeddings.token_embedding.weight".to_owned(), vec![49408, 512]),
        ("text_model.embeddings.position_embedding.weight".to_owned(), vec![77, 512]),
        ("text_projection.weight".to_owned(), vec![512, 512]),
    ];
    let mut norm = |name: String, size: usize| {
        ["weight", "bias"].map(|part| tensors.push((format!("{name}.{part}"), vec![size])))
    };
    norm("vision_model.pre_layrnorm".into(), 768);
    norm("vision_model.post_layernorm".into(), 768);
    norm("text_model.final_layer_norm".into(), 512);
    for (tower, size) in [("vision_model", 768), ("text_model", 512)] {
        for layer in 0..12 {
            let name = |part: &str| format!("{tower}.encoder.layers.{layer}.{part}");
            let mut linear = |part: &str, inputs: usize, outputs: usize| {
                tensors.push((name(&format!("{part}.weight")), vec![outputs, inputs]));
                tensors.push((name(&format!("{part}.bias")), vec![outputs]));
            };
            for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                linear(&format!("self_attn.{part}"), size, size);
            }
            linear("mlp.fc1", size, 4 * size);
            linear("mlp.fc2", 4 * size, size);
            for part in ["layer_norm1", "layer_norm2"] {
                tensors.push((name(&format!("{part}.weight")), vec![size]));
                tensors.push((name(&format!("{part}.bias")), vec![size]));
            }
        }
    }
    tensors
}
