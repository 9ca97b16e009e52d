//! The module at work. Whatever goes wrong is told in one line, since libtorch's own message is a traceback.

use std::path::Path;

use tch::{CModule, Device, IValue, Kind, TchError, Tensor, jit};

use super::{Config, Input, Output, PadTo, TextConfig};
use crate::{
    domain::{ModelSpec, Pooling},
    model::{
        Placement, Towers,
        layers::{TokenBatch, mean},
    },
};

/// A loaded module.
pub struct Module {
    module: CModule,
    output: Output,
    pooling: Pooling,
    dimensions: i64,
    /// Rows and columns of a picture, for a module that takes pictures.
    size: Option<[u32; 2]>,
    text: Option<TextConfig>,
    device: Device,
}

impl Module {
    /// Loads the module, puts it in the served dtype, and tries it on a batch of two.
    ///
    /// # Errors
    /// In one line, when it cannot be loaded or does not give what `config` says.
    pub fn load(
        path: &Path,
        config: Config,
        spec: &ModelSpec,
        Placement { device, kind }: Placement,
    ) -> Result<Self, String> {
        if device.is_cuda() {
            // It compiles kernels anew for shapes that it meets, while a search waits.
            jit::f_set_tensor_expr_fuser_enabled(false).map_err(in_short)?;
        }
        let mut module = CModule::load_on_device(path, device).map_err(in_short)?;
        module.f_set_eval().map_err(in_short)?;
        let pooling = spec.pooling.image.or(spec.pooling.text).unwrap_or(config.pooling);
        let module = Self {
            module,
            output: config.output,
            pooling,
            dimensions: config.dimensions as i64,
            size: config.image.map(|image| image.size),
            text: config.text,
            device,
        };
        module.in_kind(kind).map_err(|reason| match kind {
            Kind::Float => reason,
            _ => format!("{reason} (not in fp32; a module that has only that needs `dtype` = `fp32`)"),
        })
    }

    /// The module in another dtype, tried.
    fn in_kind(mut self, kind: Kind) -> Result<Self, String> {
        let changed = self.convert_parameters(kind).map_err(in_short)?;
        match self.try_out(kind) {
            Err(_) if changed => {
                // Buffers kept their dtype, which those that hold positions need, but a batch norm's statistics
                // must not. libtorch can only convert all of them.
                self.module.to(self.device, kind, false);
                self.try_out(kind)?;
            }
            result => result?,
        }
        Ok(self)
    }

    /// Converts the parameters that are floats; says whether there were any.
    fn convert_parameters(&self, kind: Kind) -> Result<bool, TchError> {
        let mut changed = false;
        for (_, mut parameter) in self.module.named_parameters()? {
            if parameter.f_is_floating_point()? && parameter.f_kind()? != kind {
                let converted = parameter.f_to_kind(kind)?;
                parameter.f_set_data(&converted)?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Runs two inputs at once.
    fn try_out(&self, kind: Kind) -> Result<(), String> {
        let run = |batch: i64| match (&self.text, self.size) {
            (Some(text), _) => {
                let lengths = [text.max_length.min(2), 1].into_iter().take(batch as usize);
                let texts: Vec<Vec<u32>> = lengths.map(|length| vec![text.pad_id; length]).collect();
                self.encode_texts(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>())
            }
            (None, size) => {
                let [height, width] = size.unwrap_or_default().map(i64::from);
                self.encode_images(&Tensor::f_zeros([batch, 3, height, width], (kind, self.device))?)
            }
        };
        let Err(two) = run(2) else { return Ok(()) };
        match run(1) {
            Err(one) => Err(in_short(one)),
            Ok(_) => Err(format!(
                "it works on one input but not on two ({}): its trace has fixed the size of a batch; export it \
                 with torch.jit.script, or trace it on two inputs and without sizes taken as numbers",
                in_short(two)
            )),
        }
    }

    /// Calls the module; `is_token` where a text has padding.
    fn run(&self, inputs: &[IValue], batch: i64, is_token: Option<&Tensor>) -> Result<Tensor, TchError> {
        let output = self.module.forward_is(inputs).map_err(|error| TchError::Torch(in_short(error)))?;
        let states = pick(output, &self.output).map_err(TchError::Torch)?;
        let vectors = match (self.pooling, states.dim()) {
            (Pooling::None, _) => Some(states.shallow_clone()),
            (Pooling::Cls, 3) => Some(states.f_select(1, 0)?),
            (Pooling::Mean, 3) => Some(mean(&states, is_token)?),
            (Pooling::Mean, 4) => Some(states.f_mean_dim([2_i64, 3].as_slice(), false, Kind::Float)?),
            _ => None,
        };
        let wanted = [batch, self.dimensions];
        vectors.filter(|vectors| vectors.size() == wanted).ok_or_else(|| {
            TchError::Torch(format!(
                "the module gave a tensor {:?}, of which pooling `{}` makes no {wanted:?}; see `output`, \
                 `pooling` and `dimensions` in sidelens.toml",
                states.size(),
                self.pooling
            ))
        })
    }
}

impl Towers for Module {
    fn encode_images(&self, pixel_values: &Tensor) -> Result<Tensor, TchError> {
        let batch = pixel_values.size4()?.0;
        self.run(&[IValue::Tensor(pixel_values.shallow_clone())], batch, None)
    }

    fn encode_texts(&self, texts: &[&[u32]]) -> Result<Tensor, TchError> {
        let config = self.text.as_ref().ok_or_else(crate::model::missing_tower)?;
        let texts = match config.pad_to {
            PadTo::Longest => TokenBatch::new(texts, config.pad_id, self.device)?,
            PadTo::MaxLength => TokenBatch::of_length(config.max_length, texts, config.pad_id, self.device)?,
        };
        let input = |input: &Input| match (input, &texts.is_token) {
            (Input::InputIds, _) => Ok(IValue::Tensor(texts.ids.shallow_clone())),
            (Input::AttentionMask, Some(is_token)) => Ok(IValue::Tensor(is_token.f_to_kind(Kind::Int64)?)),
            (Input::AttentionMask, None) => Ok(IValue::Tensor(texts.ids.f_ones_like()?)),
        };
        let inputs = config.inputs.iter().map(input).collect::<Result<Vec<_>, TchError>>()?;
        self.run(&inputs, texts.batch, texts.is_token.as_ref())
    }
}

/// The tensor that `output` names.
fn pick(value: IValue, output: &Output) -> Result<Tensor, String> {
    let found = describe(&value);
    let picked = match (value, output) {
        (IValue::Tensor(tensor), Output::Index(0)) => return Ok(tensor),
        (IValue::TensorList(list), Output::Index(n)) => list.into_iter().nth(*n).map(IValue::Tensor),
        (IValue::Tuple(list) | IValue::GenericList(list), Output::Index(n)) => list.into_iter().nth(*n),
        (IValue::GenericDict(pairs), Output::Key(key)) => pairs
            .into_iter()
            .find(|(name, _)| matches!(name, IValue::String(name) if name == key))
            .map(|(_, value)| value),
        _ => None,
    };
    match (picked, output) {
        (Some(IValue::Tensor(tensor)), _) => Ok(tensor),
        (_, Output::Index(n)) => Err(format!("the module gave {found}, where `output` = {n} is no tensor")),
        (_, Output::Key(key)) => {
            Err(format!("the module gave {found}, where `output` = \"{key}\" is no tensor"))
        }
    }
}

/// What came out, in words.
fn describe(value: &IValue) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        IValue::Tensor(tensor) => format!("a tensor {:?}", tensor.size()),
        IValue::TensorList(items) => format!("a list of {} tensors", items.len()),
        IValue::Tuple(items) => format!("a tuple of {}", list(items.iter().map(describe).collect())),
        IValue::GenericList(items) => format!("a list of {}", list(items.iter().map(describe).collect())),
        IValue::GenericDict(pairs) => {
            let key = |name: &IValue| match name {
                IValue::String(name) => format!("\"{name}\""),
                _ => "one that is no string".into(),
            };
            format!("a dict with the keys {}", list(pairs.iter().map(|(name, _)| key(name)).collect()))
        }
        IValue::None => "None".into(),
        _ => "what is neither a tensor, a tuple, a list nor a dict".into(),
    }
}

/// The line of libtorch's message that says what went wrong: its interpreter puts a traceback before it, and
/// C++ frames may follow.
fn in_short(error: TchError) -> String {
    let message = match error {
        TchError::Torch(message) => message,
        other => other.to_string(),
    };
    let mut lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let raised = lines.clone().find(|line| {
        line.split_once(": ").is_some_and(|(kind, _)| kind.ends_with("Error") && !kind.contains(' '))
    });
    raised.or_else(|| lines.next()).unwrap_or("libtorch gave no reason").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::ModelSource,
        model::{Family, ModelFiles, torchscript::TorchScript},
    };

    /// Traces `module` on one picture of 2x2 pixels, saves it beside a `sidelens.toml` that promises vectors
    /// of 12, and loads that.
    fn traced(module: fn(&Tensor) -> Tensor, kind: Kind) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let picture = Tensor::f_zeros([1, 3, 2, 2], (Kind::Float, Device::Cpu)).unwrap();
        let mut call = |inputs: &[Tensor]| vec![module(&inputs[0])];
        CModule::create_by_tracing("Traced", "forward", &[picture], &mut call)
            .and_then(|module| module.save(dir.path().join("model.pt")))
            .unwrap();
        let toml = "file = 'model.pt'\ndimensions = 12\n[image]\nsize = [2, 2]\nresample = 'bilinear'\n\
            mean = [0, 0, 0]\nstd = [1, 1, 1]";
        std::fs::write(dir.path().join("sidelens.toml"), toml).unwrap();
        let files = ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap();
        let spec = TorchScript.spec(&files, None).unwrap();
        let loaded = TorchScript.load(&files, &spec, Placement { device: Device::Cpu, kind });
        loaded.map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_module_is_tried_before_it_is_served() {
        assert_eq!(traced(|x| x.flatten(1, -1), Kind::Float), Ok(()));
        assert_eq!(traced(|x| x.flatten(1, -1), Kind::BFloat16), Ok(()));
        let weights = |x: &Tensor| x.flatten(1, -1).matmul(&Tensor::eye(12, (Kind::Float, Device::Cpu)));
        assert_eq!(traced(weights, Kind::Float), Ok(()));
        for (error, words) in [
            (traced(|x| x.shallow_clone(), Kind::Float), "a tensor [1, 3, 2, 2], of which pooling `none`"),
            (traced(|x| x.view([1, 12]), Kind::Float), "fixed the size of a batch"),
            (traced(|x| x.view([1, -1]), Kind::Float), "fixed the size of a batch"),
            (traced(weights, Kind::BFloat16), "`dtype` = `fp32`"),
        ] {
            let message = error.unwrap_err();
            assert!(message.contains(words) && message.contains("model.pt"), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    fn tensor(size: [i64; 2]) -> IValue {
        IValue::Tensor(Tensor::f_zeros(size, (Kind::Float, Device::Cpu)).unwrap())
    }

    fn size(value: IValue, output: Output) -> Result<Vec<i64>, String> {
        pick(value, &output).map(|tensor| tensor.size())
    }

    #[test]
    fn picks_from_tuples_lists_and_dicts() {
        let key = |name: &str| Output::Key(name.into());
        let pair = || vec![tensor([1, 2]), tensor([3, 4])];
        assert_eq!(size(tensor([1, 2]), Output::Index(0)).unwrap(), [1, 2]);
        assert_eq!(size(IValue::Tuple(pair()), Output::Index(1)).unwrap(), [3, 4]);
        assert_eq!(size(IValue::GenericList(pair()), Output::Index(0)).unwrap(), [1, 2]);
        let dict = || IValue::GenericDict(vec![("a".into(), tensor([1, 2])), ("b".into(), IValue::None)]);
        assert_eq!(size(dict(), key("a")).unwrap(), [1, 2]);

        for (value, output, words) in [
            (tensor([1, 2]), Output::Index(1), "a tensor [1, 2], where `output` = 1"),
            (IValue::Tuple(pair()), Output::Index(2), "a tuple of a tensor [1, 2], a tensor [3, 4]"),
            (dict(), Output::Index(0), "the keys \"a\", \"b\""),
            (dict(), key("c"), "`output` = \"c\""),
            (dict(), key("b"), "is no tensor"),
            (IValue::Int(1), Output::Index(0), "neither a tensor"),
        ] {
            let message = size(value, output).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn a_traceback_becomes_its_reason() {
        let traceback = "The following operation failed in the TorchScript interpreter.\n\
            Traceback of TorchScript (most recent call last):\n  File \"x.py\", line 1, in forward\n\
            RuntimeError: shape '[1, 12]' is invalid for input of size 24\n\
            Exception raised from f at g:1 (most recent call first):\nframe #0: h";
        let short = |message: &str| in_short(TchError::Torch(message.into()));
        assert_eq!(short(traceback), "RuntimeError: shape '[1, 12]' is invalid for input of size 24");
        assert_eq!(short("CUDA error: out of memory\nmore"), "CUDA error: out of memory");
        assert_eq!(short(""), "libtorch gave no reason");
    }
}
