//! The steps behind the encoder: pooling, dense layers, normalisation.
//!
//! Source: sentence-transformers 6.2.0, `sentence_transformer/modules/pooling.py`, `base/modules/dense.py`
//! and `normalize.py`.

use serde::Deserialize;
use serde_json::Value;

use super::whole::Whole;
use crate::{
    domain::Pooling,
    model::{
        ModelError, ModelFiles,
        config::{Activation, CONFIG},
        modules::{self, Module},
    },
};

/// The ways of pooling by their old keys, one of which is true.
const OLD_KEYS: [(&str, &str); 6] = [
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

/// What happens to the encoder's token states.
#[derive(Debug, PartialEq)]
pub struct Steps {
    /// How they become one vector.
    pub pooling: PoolingStep,
    /// What happens to the vector, in this order.
    pub after: Vec<Step>,
    /// Components of the vector in the end.
    pub dimensions: usize,
}

/// How token states become one vector.
#[derive(Debug, PartialEq)]
pub struct PoolingStep {
    /// The way.
    pub way: Pooling,
    /// The file that says so; empty where there is none.
    pub file: String,
    /// Whether it passes over the tokens of a prompt.
    pub leaves_prompts_out: bool,
}

/// One step behind the pooling.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// A linear layer with an activation.
    Dense(Dense),
    /// To unit length.
    Normalize,
    /// To so many of its first components.
    Truncate(i64),
}

/// A linear layer with an activation.
#[derive(Debug, PartialEq)]
pub struct Dense {
    /// The directory of its weights, from the top of the checkpoint.
    pub path: String,
    /// Components that go in.
    pub inputs: i64,
    /// Components that come out.
    pub outputs: i64,
    /// Whether it has a bias.
    pub bias: bool,
    /// What follows.
    pub activation: Activation,
}

impl Steps {
    /// Reads `modules.json` and the steps' own files. `files` are the encoder's, whose states are `hidden`
    /// wide; `pooling`, if there is one, stands in for the checkpoint's.
    ///
    /// # Errors
    /// When a file is missing, or says something that cannot be served.
    pub fn read(files: &ModelFiles, pooling: Option<Pooling>, hidden: i64) -> Result<Self, ModelError> {
        let files = files.top();
        let way = pooling.unwrap_or(Pooling::Mean);
        let mut steps = Self {
            pooling: PoolingStep { way, file: String::new(), leaves_prompts_out: false },
            after: Vec::new(),
            dimensions: 0,
        };
        let mut width = hidden;
        if let Some(modules) = modules::read(&files)? {
            let [first, second, others @ ..] = modules.as_slice() else {
                return Err(unserved("alone", &modules));
            };
            for (module, class) in [(first, "Transformer"), (second, "Pooling")] {
                if module.class() != class {
                    return Err(unserved(module.class(), &modules));
                }
            }
            steps.pooling = PoolingStep::read(&files, second, pooling)?;
            for module in others {
                match module.class() {
                    "Dense" => {
                        let dense = Dense::read(&files, &module.path, width)?;
                        width = dense.outputs;
                        steps.after.push(Step::Dense(dense));
                    }
                    "Normalize" => {
                        // Old ones have no file.
                        if let Some(config) = files.below(&module.path)?.json_if_there(CONFIG)? {
                            of_the_vector(&module.path, &config)?;
                        }
                        steps.after.push(Step::Normalize);
                    }
                    // It does something in training only.
                    "Dropout" => {}
                    other => return Err(unserved(other, &modules)),
                }
            }
        }
        if let Some(n) = Whole::read(&files)?.truncate_dim.filter(|n| *n < width) {
            width = n;
            steps.after.push(Step::Truncate(n));
        }
        steps.dimensions = usize::try_from(width).unwrap_or_default();
        Ok(steps)
    }
}

impl PoolingStep {
    /// Reads the step `module` of the checkpoint whose top is `files`; `pooling`, if there is one, stands in
    /// for the step's.
    ///
    /// # Errors
    /// When its file is missing, or says something that cannot be served.
    pub fn read(files: &ModelFiles, module: &Module, pooling: Option<Pooling>) -> Result<Self, ModelError> {
        let config: Value = files.below(&module.path)?.json(CONFIG)?;
        let file = config_of(&module.path);
        let way = match (pooling, modes(&config).as_slice()) {
            (Some(pooling), _) => pooling,
            (None, [mode]) if mode == "mean" => Pooling::Mean,
            (None, [mode]) if mode == "cls" => Pooling::Cls,
            (None, modes) => {
                return Err(ModelError::Unsupported {
                    file,
                    key: "pooling_mode",
                    found: format!("`{}`", modes.join("`, `")),
                    expected: "Sidelens has `mean` and `cls`, one at a time; the setting `pooling` can put one \
                               in its place",
                });
            }
        };
        Ok(Self { way, file, leaves_prompts_out: config["include_prompt"] == false })
    }
}

/// The configuration of the step at `path`, for messages.
fn config_of(path: &str) -> String {
    format!("{}/{CONFIG}", path.trim_end_matches('/'))
}

/// Refuses a step that reads or writes something else than the vector.
fn of_the_vector(path: &str, config: &Value) -> Result<(), ModelError> {
    for key in ["module_input_name", "module_output_name"] {
        if !config[key].is_null() && config[key] != "sentence_embedding" {
            return Err(ModelError::Unsupported {
                file: config_of(path),
                key,
                found: config[key].to_string(),
                expected: "steps behind the pooling work on the `sentence_embedding`",
            });
        }
    }
    Ok(())
}

/// The ways of pooling that a configuration asks for.
fn modes(config: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let modes: Vec<String> = match &config["pooling_mode"] {
        Value::Null => OLD_KEYS
            .iter()
            .filter(|(key, _)| config[*key] == true)
            .map(|(_, mode)| (*mode).to_owned())
            .collect(),
        Value::Array(modes) => modes.iter().map(text).collect(),
        mode => vec![text(mode)],
    };
    if modes.is_empty() { vec!["mean".into()] } else { modes }
}

fn unserved(found: &str, modules: &[Module]) -> ModelError {
    let expected = "Sidelens has Transformer, then Pooling, then any Dense, Normalize and Dropout";
    modules::unserved(found, modules, expected)
}

impl Dense {
    /// Reads the `config.json` of the layer at `path`, which is handed `inputs` components.
    fn read(files: &ModelFiles, path: &str, inputs: i64) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct Config {
            in_features: i64,
            out_features: i64,
            bias: Option<bool>,
            activation_function: Option<String>,
            use_residual: Option<bool>,
        }
        let files = files.below(path)?;
        of_the_vector(path, &files.json(CONFIG)?)?;
        let config: Config = files.json(CONFIG)?;
        let unsupported =
            |key, found, expected| ModelError::Unsupported { file: config_of(path), key, found, expected };
        if config.in_features != inputs {
            let found = format!("{} where {inputs} components come in", config.in_features);
            return Err(unsupported("in_features", found, "both must be the same"));
        }
        if config.out_features < 1 {
            let found = config.out_features.to_string();
            return Err(unsupported("out_features", found, "vectors have at least one component"));
        }
        if config.use_residual == Some(true) {
            return Err(unsupported("use_residual", "true".into(), "Sidelens has dense layers without one"));
        }
        // A Python path, such as `torch.nn.modules.activation.Tanh`.
        let activation = match config.activation_function.as_deref() {
            None => Activation::Tanh,
            Some(name) => match name.strip_prefix("torch.nn.").and_then(|name| name.rsplit('.').next()) {
                Some("Identity") => Activation::Identity,
                Some("Tanh") => Activation::Tanh,
                Some("GELU") => Activation::Gelu,
                Some("ReLU") => Activation::Relu,
                Some("SiLU") => Activation::Silu,
                _ => {
                    let expected = "Sidelens has torch.nn's Identity, Tanh, GELU, ReLU and SiLU";
                    return Err(unsupported("activation_function", format!("`{name}`"), expected));
                }
            },
        };
        let (outputs, bias) = (config.out_features, config.bias.unwrap_or(true));
        Ok(Self { path: path.into(), inputs, outputs, bias, activation })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::whole, *};
    use crate::config::ModelSource;

    const POOLING: &str = r#"{"pooling_mode_mean_tokens": true}"#;

    /// The steps of these classes behind 4 components; the files lie in the directory of their number.
    fn read(
        classes: &[&str],
        configs: &[(&str, &str)],
        pooling: Option<Pooling>,
    ) -> Result<Steps, ModelError> {
        read_with(classes, configs, pooling, &[])
    }

    /// The same with these files at the top.
    fn read_with(
        classes: &[&str],
        configs: &[(&str, &str)],
        pooling: Option<Pooling>,
        files: &[(&str, &str)],
    ) -> Result<Steps, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        let modules: Vec<_> = classes
            .iter()
            .enumerate()
            .map(|(n, class)| {
                let (path, class) = (n.to_string(), format!("sentence_transformers.models.{class}"));
                serde_json::json!({"path": path, "type": class})
            })
            .collect();
        fs::write(dir.path().join("modules.json"), serde_json::to_vec(&modules).unwrap()).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        for (place, config) in configs {
            fs::create_dir_all(dir.path().join(place)).unwrap();
            fs::write(dir.path().join(place).join("config.json"), config).unwrap();
        }
        Steps::read(&ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap(), pooling, 4)
    }

    fn pooled(config: &str) -> Result<Pooling, String> {
        let steps = read(&["Transformer", "Pooling"], &[("1", config)], None);
        steps.map(|steps| steps.pooling.way).map_err(|error| error.to_string())
    }

    #[test]
    fn pooling_is_said_in_the_old_way_and_in_the_new() {
        for (config, expected) in [
            (r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#, Pooling::Cls),
            (r#"{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}"#, Pooling::Mean),
            (r#"{"embedding_dimension": 4, "pooling_mode": "cls"}"#, Pooling::Cls),
            (r#"{"pooling_mode": ["mean"], "pooling_mode_cls_token": true}"#, Pooling::Mean),
            ("{}", Pooling::Mean),
        ] {
            assert_eq!(pooled(config), Ok(expected), "{config}");
        }
    }

    #[test]
    fn other_poolings_are_refused_unless_the_setting_says_one() {
        for (config, named) in [
            (r#"{"pooling_mode_max_tokens": true}"#, "`max`"),
            (r#"{"pooling_mode_cls_token": true, "pooling_mode_lasttoken": true}"#, "`cls`, `lasttoken`"),
            (r#"{"pooling_mode": "weightedmean"}"#, "`weightedmean`"),
        ] {
            let message = pooled(config).unwrap_err();
            assert!(message.contains("1/config.json") && message.contains(named), "{message}");
            let steps = read(&["Transformer", "Pooling"], &[("1", config)], Some(Pooling::Cls)).unwrap();
            assert_eq!(steps.pooling.way, Pooling::Cls);
        }
    }

    #[test]
    fn dense_layers_follow_one_another() {
        let classes = ["Transformer", "Pooling", "Dense", "Dropout", "Normalize", "Dense"];
        let first = r#"{"in_features": 4, "out_features": 7}"#;
        let second = r#"{"in_features": 7, "out_features": 3, "bias": false,
            "activation_function": "torch.nn.modules.linear.Identity"}"#;
        let steps = read(&classes, &[("1", POOLING), ("2", first), ("5", second)], None).unwrap();
        assert_eq!(steps.dimensions, 3);
        let [Step::Dense(first), Step::Normalize, Step::Dense(second)] = steps.after.as_slice() else {
            panic!("{} steps", steps.after.len());
        };
        assert_eq!((first.outputs, first.bias, first.activation), (7, true, Activation::Tanh));
        assert_eq!((second.inputs, second.bias, second.activation), (7, false, Activation::Identity));
    }

    #[test]
    fn vectors_are_cut_last() {
        let cut = |n: u32, dense| {
            let whole = format!(r#"{{"truncate_dim": {n}}}"#);
            let configs = [("1", POOLING), ("2", dense)];
            read_with(&["Transformer", "Pooling", "Dense"], &configs, None, &[(whole::FILE, &whole)]).unwrap()
        };
        let dense = r#"{"in_features": 4, "out_features": 7}"#;
        let steps = cut(3, dense);
        assert_eq!((steps.dimensions, steps.after.last()), (3, Some(&Step::Truncate(3))));
        // There is nothing to cut.
        let steps = cut(7, dense);
        assert_eq!((steps.dimensions, steps.after.len()), (7, 1));
    }

    #[test]
    fn what_is_not_served_is_named() {
        let classes = ["Transformer", "Pooling", "Dense"];
        for (config, word) in [
            (r#"{"in_features": 5, "out_features": 7}"#, "in_features"),
            (r#"{"in_features": 4, "out_features": 0}"#, "out_features"),
            (r#"{"in_features": 4, "out_features": 7, "use_residual": true}"#, "use_residual"),
            (
                r#"{"in_features": 4, "out_features": 7, "activation_function": "torch.nn.Mish"}"#,
                "torch.nn.Mish",
            ),
            (r#"{"in_features": 4, "out_features": 7, "activation_function": "mine.Tanh"}"#, "mine.Tanh"),
            (
                r#"{"in_features": 4, "out_features": 7, "module_input_name": "token_embeddings"}"#,
                "token_emb",
            ),
            (r#"{"in_features": 4, "out_features": 7, "module_output_name": "other"}"#, "module_output_name"),
        ] {
            let message = read(&classes, &[("1", POOLING), ("2", config)], None).err().unwrap().to_string();
            assert!(message.contains("2/config.json") && message.contains(word), "{message}");
        }
        for classes in [&["Transformer"][..], &["Transformer", "Dense"], &["MLMTransformer", "Pooling"]] {
            let message = read(classes, &[], None).err().unwrap().to_string();
            assert!(message.contains("modules.json") && message.contains(&classes.join(", ")), "{message}");
        }
        let lstm = read(&["Transformer", "Pooling", "LSTM"], &[("1", POOLING)], None).err().unwrap();
        assert!(lstm.to_string().contains("`LSTM`"), "{lstm}");
    }
}
