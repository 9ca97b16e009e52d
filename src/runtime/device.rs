//! Which device and dtype the model gets, and what this machine has.

use std::fmt;

#[cfg(all(feature = "torch", test))]
pub use resolve::cuda_devices;
#[cfg(feature = "torch")]
pub use resolve::{DeviceError, resolve_devices, resolve_dtype};

use crate::config::DeviceChoice;

/// The processor's features that decide how fast a model runs on it, fastest first.
const CPU_FEATURES: [&str; 6] = ["amx_bf16", "amx_int8", "avx512_bf16", "avx512f", "avx2", "fma"];

/// What this machine has, for `--version` and bug reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The libtorch that the binary was built with, or `none`.
    pub libtorch: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Those of the processor's features that matter here.
    pub cpu_features: Vec<&'static str>,
    /// The CUDA devices, or one sentence that says what is missing.
    pub cuda: Result<usize, String>,
}

/// Looks at the machine. Opens the CUDA half of libtorch where there is one.
pub fn facts() -> DeviceFacts {
    DeviceFacts {
        libtorch: env!("BUILT_WITH_LIBTORCH").into(),
        cores: cores(),
        cpu_features: cpu_features(),
        #[cfg(feature = "torch")]
        cuda: resolve::cuda_devices(),
        #[cfg(not(feature = "torch"))]
        cuda: Err("built without libtorch".into()),
    }
}

/// Opens the CUDA half of libtorch if a model may want it. To be called before any is loaded: libtorch looks for that half
/// once, and for a convolution on the CPU, too.
pub fn open_cuda_for(choices: &[DeviceChoice]) {
    if may_want_cuda(choices) {
        // Whoever cannot do without is told what is missing.
        #[cfg(feature = "torch")]
        let _missing = resolve::load_cuda();
    }
}

fn may_want_cuda(choices: &[DeviceChoice]) -> bool {
    choices.iter().any(|choice| *choice != DeviceChoice::Cpu)
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Linux names the features of the processor in `/proc/cpuinfo`; `std` cannot detect AMX on stable Rust.
fn cpu_features() -> Vec<&'static str> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    CPU_FEATURES.into_iter().filter(|feature| flags.split_whitespace().any(|flag| flag == *feature)).collect()
}

impl fmt::Display for DeviceFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "libtorch: {}", self.libtorch)?;
        let features = self.cpu_features.join(" ");
        writeln!(
            f,
            "cpu:      {} cores, {}",
            self.cores,
            if features.is_empty() { "no AVX" } else { &features }
        )?;
        match &self.cuda {
            Ok(n) => write!(f, "cuda:     {n} device{}", if *n == 1 { "" } else { "s" }),
            Err(missing) => write!(f, "cuda:     none ({missing})"),
        }
    }
}

#[cfg(feature = "torch")]
mod resolve {
    use std::{error::Error, ffi::c_int, sync::OnceLock};

    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
    use tch::{Cuda, Device, Kind};

    use crate::{
        config::{DeviceChoice, DtypeChoice},
        libtorch,
    };

    /// Why the device asked for cannot be had.
    #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
    pub enum DeviceError {
        /// CUDA cannot be used at all.
        #[error("device `{wanted}` cannot be used: {missing}")]
        NoCuda {
            /// The device asked for.
            wanted: DeviceChoice,
            /// What is missing.
            missing: String,
        },
        /// There are fewer devices.
        #[error(
            "device `cuda:{wanted}` is not there: this machine has {found} CUDA devices, numbered from 0"
        )]
        NoSuchDevice {
            /// The device asked for.
            wanted: usize,
            /// How many there are.
            found: usize,
        },
    }

    /// Opens the CUDA half of libtorch, once. The binary is linked to the CPU half alone, so that it starts
    /// where there is no CUDA; the other half registers itself with the first when it is opened.
    pub(super) fn load_cuda() -> Result<(), String> {
        static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
        LOADED
            .get_or_init(|| {
                // SAFETY: The library's initialisers only register kernels with libtorch_cpu.so, which is
                // loaded; it is never closed again.
                let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
                match library {
                    Ok(library) => {
                        std::mem::forget(library);
                        Ok(())
                    }
                    Err(error) => {
                        // The loader's own words name the library that is missing.
                        let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                        Err(format!(
                            "the CUDA half of libtorch does not load ({reason}); put libtorch_cuda.so of the \
                             same version and NVIDIA's libraries on LD_LIBRARY_PATH"
                        ))
                    }
                }
            })
            .clone()
    }

    /// The number of CUDA devices, or what is missing.
    pub fn cuda_devices() -> Result<usize, String> {
        load_cuda()?;
        match Cuda::device_count() {
            n if n > 0 => Ok(n as usize),
            _ => Err("no CUDA device answers; is NVIDIA's driver there, not older than this CUDA asks for \
                      (580 for CUDA 13), and the device visible?"
                .into()),
        }
    }

    /// Turns the choice into devices of this machine, at least one, all of one type. A GPU that this libtorch has no kernels
    /// for is left out where it is not asked for by number: an old one for the screen beside one that computes.
    ///
    /// # Errors
    /// When a CUDA device is asked for and cannot be had: one sentence says what is missing.
    pub fn resolve_devices(choice: DeviceChoice) -> Result<Vec<Device>, DeviceError> {
        let no_cuda = |missing| DeviceError::NoCuda { wanted: choice, missing };
        match choice {
            DeviceChoice::Cpu => Ok(vec![Device::Cpu]),
            DeviceChoice::Auto => Ok(usable(cuda_devices()).unwrap_or_else(|missing| {
                tracing::info!("no CUDA, so the CPU computes: {missing}");
                vec![Device::Cpu]
            })),
            DeviceChoice::EveryCuda => usable(cuda_devices()).map_err(no_cuda),
            DeviceChoice::Cuda(wanted) => match cuda_devices() {
                Ok(found) if wanted < found => {
                    kernels_for(wanted).map_err(no_cuda)?;
                    Ok(vec![Device::Cuda(wanted)])
                }
                Ok(found) => Err(DeviceError::NoSuchDevice { wanted, found }),
                Err(missing) => Err(no_cuda(missing)),
            },
        }
    }

    /// Those of so many devices that have kernels, or what is missing.
    fn usable(found: Result<usize, String>) -> Result<Vec<Device>, String> {
        let (mut devices, mut reasons) = (Vec::new(), Vec::new());
        for index in 0..found? {
            match kernels_for(index) {
                Ok(()) => devices.push(Device::Cuda(index)),
                Err(missing) => reasons.push(missing),
            }
        }
        if devices.is_empty() {
            return Err(reasons.join("; "));
        }
        reasons.iter().for_each(|missing| tracing::warn!("a GPU is left out: {missing}"));
        Ok(devices)
    }

    /// `Err` with what is missing where this libtorch was built for other GPUs than the CUDA device `index`.
    fn kernels_for(index: usize) -> Result<(), String> {
        // Where either does not tell, using the device will.
        let (Some(gpu), Ok(built)) = (compute_capability(index), libtorch::show_config()) else {
            return Ok(());
        };
        if has_kernels(&built, gpu) {
            return Ok(());
        }
        let (major, minor) = gpu;
        Err(format!(
            "this libtorch has no kernels for `cuda:{index}`, whose compute capability is {major}.{minor}; \
             use a newer GPU, a libtorch built for this one, or `--device cpu`"
        ))
    }

    /// Whether a libtorch with such flags of its compiler runs on a GPU of this compute capability: machine code
    /// (`code=sm_75`) runs on its generation from its minor number on, the portable kind (`code=compute_90`) on all from its
    /// number on.
    fn has_kernels(built: &str, gpu: (c_int, c_int)) -> bool {
        let mut codes = built.split("code=").skip(1).filter_map(|code| {
            let (is_portable, code) = match code.strip_prefix("sm_") {
                Some(code) => (false, code),
                None => (true, code.strip_prefix("compute_")?),
            };
            let digits = code.find(|c: char| !c.is_ascii_digit()).map_or(code, |end| &code[..end]);
            let number: c_int = digits.parse().ok()?;
            Some((is_portable, (number / 10, number % 10)))
        });
        let runs =
            |(is_portable, code): (bool, (c_int, c_int))| code <= gpu && (is_portable || code.0 == gpu.0);
        let first = codes.next();
        first.is_none_or(runs) || codes.any(runs)
    }

    /// Turns the choice into a dtype for all of `devices`, which are of one type: bf16 where the hardware multiplies it;
    /// else fp16 on GPUs, which do since Volta, and fp32.
    pub fn resolve_dtype(choice: DtypeChoice, devices: &[Device]) -> Kind {
        match choice {
            DtypeChoice::Fp32 => Kind::Float,
            DtypeChoice::Bf16 => Kind::BFloat16,
            DtypeChoice::Fp16 => Kind::Half,
            DtypeChoice::Auto => {
                let of_device = |device: &Device| match device {
                    // One that does not tell is newer than this, rather than older.
                    Device::Cuda(index) => compute_capability(*index)
                        .map_or(Kind::BFloat16, |(generation, _)| fastest_of(generation)),
                    _ if super::cpu_features().iter().any(|f| ["amx_bf16", "avx512_bf16"].contains(f)) => {
                        Kind::BFloat16
                    }
                    _ => Kind::Float,
                };
                // All compute the same, whoever of them gets a request.
                let kinds: Vec<Kind> = devices.iter().map(of_device).collect();
                let by_age = [Kind::Float, Kind::Half, Kind::BFloat16];
                by_age.into_iter().find(|kind| kinds.contains(kind)).unwrap_or(Kind::Float)
            }
        }
    }

    /// What GPUs of a generation, the major number of their compute capability, multiply fastest.
    fn fastest_of(generation: i32) -> Kind {
        match generation {
            ..7 => Kind::Float,
            7 => Kind::Half,
            8.. => Kind::BFloat16,
        }
    }

    /// A CUDA device's compute capability: (7, 0) for Volta, (7, 5) for Turing, (8, 0) for Ampere, ...
    fn compute_capability(index: usize) -> Option<(c_int, c_int)> {
        type GetAttribute = unsafe extern "C" fn(value: *mut c_int, attribute: c_int, device: c_int) -> c_int;
        const MAJOR: c_int = 75;
        const MINOR: c_int = 76;
        load_cuda().ok()?;
        let device = c_int::try_from(index).ok()?;
        let attribute = |which: c_int| {
            let mut value = 0;
            // SAFETY: The CUDA runtime, which libtorch's CUDA half has brought with it, has had this function with this
            // signature since its first version; it writes one number.
            let status = unsafe {
                let get: Symbol<GetAttribute> = Library::this().get(b"cudaDeviceGetAttribute").ok()?;
                get(&raw mut value, which, device)
            };
            (status == 0).then_some(value)
        };
        Some((attribute(MAJOR)?, attribute(MINOR)?))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_missing_cuda_is_one_clear_sentence() {
            if cuda_devices().is_ok() {
                assert_eq!(resolve_devices(DeviceChoice::Auto).unwrap()[0], Device::Cuda(0));
                return;
            }
            for (choice, name) in [(DeviceChoice::Cuda(0), "cuda:0"), (DeviceChoice::EveryCuda, "cuda")] {
                let message = resolve_devices(choice).unwrap_err().to_string();
                assert!(message.starts_with(&format!("device `{name}` cannot be used: ")), "{message}");
                assert!(!message.contains('\n'), "{message}");
            }
            assert_eq!(resolve_devices(DeviceChoice::Auto), Ok(vec![Device::Cpu]));
        }

        #[test]
        fn a_gpu_older_than_libtorch_was_built_for_is_told() {
            let built = "- NVCC architecture flags: -gencode;arch=compute_75,code=sm_75;-gencode;\
                         arch=compute_80,code=sm_80;-gencode;arch=compute_90a,code=sm_90a;-gencode;\
                         arch=compute_120,code=sm_120\n  - CuDNN 91.0.2";
            for (gpu, expected) in [
                ((6, 1), false),
                ((7, 0), false),
                ((7, 5), true),
                ((8, 0), true),
                ((8, 9), true),
                ((9, 0), true),
                ((10, 0), false),
                ((12, 1), true),
            ] {
                assert_eq!(has_kernels(built, gpu), expected, "{gpu:?}");
            }
            let portable = format!("{built} code=sm_75;code=compute_90");
            assert!(has_kernels(&portable, (10, 0)) && !has_kernels(&portable, (7, 0)));
            // As libtorch without CUDA has it.
            assert!(has_kernels("PyTorch built with: GCC 13.3", (5, 0)));
            assert_eq!(kernels_for(1000), Ok(()));
        }

        #[test]
        fn a_dtype_asked_for_is_given() {
            let cuda = [Device::Cuda(0)];
            assert_eq!(resolve_dtype(DtypeChoice::Fp32, &cuda), Kind::Float);
            assert_eq!(resolve_dtype(DtypeChoice::Bf16, &[Device::Cpu]), Kind::BFloat16);
            assert_eq!(resolve_dtype(DtypeChoice::Fp16, &cuda), Kind::Half);
        }

        #[test]
        fn a_dtype_left_open_is_the_fastest_of_the_device() {
            assert_eq!(
                [6, 7, 8, 9, 12].map(fastest_of),
                [Kind::Float, Kind::Half, Kind::BFloat16, Kind::BFloat16, Kind::BFloat16]
            );
            // As where there is none.
            assert_eq!(compute_capability(1000), None);
            assert_eq!(resolve_dtype(DtypeChoice::Auto, &[Device::Cuda(1000)]), Kind::BFloat16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_is_opened_for_whoever_may_want_it() {
        use DeviceChoice::{Auto, Cpu, Cuda, EveryCuda};
        for other in [Auto, Cuda(1), EveryCuda] {
            assert!(may_want_cuda(&[Cpu, other]), "{other:?}");
        }
        assert!(!may_want_cuda(&[Cpu, Cpu]));
    }
}
