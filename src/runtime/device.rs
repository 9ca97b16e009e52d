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

    use crate::config::{DeviceChoice, DtypeChoice};

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
    pub fn load_cuda() -> Result<(), String> {
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

    /// Turns the choice into devices of this machine, at least one, all of one type.
    ///
    /// # Errors
    /// When a CUDA device is asked for and cannot be had: one sentence says what is missing.
    pub fn resolve_devices(choice: DeviceChoice) -> Result<Vec<Device>, DeviceError> {
        let every = |found| (0..found).map(Device::Cuda).collect();
        match choice {
            DeviceChoice::Cpu => Ok(vec![Device::Cpu]),
            DeviceChoice::Auto => Ok(cuda_devices().map_or_else(
                |missing| {
                    tracing::info!("no CUDA, so the CPU computes: {missing}");
                    vec![Device::Cpu]
                },
                every,
            )),
            DeviceChoice::EveryCuda => match cuda_devices() {
                Ok(found) => Ok(every(found)),
                Err(missing) => Err(DeviceError::NoCuda { wanted: choice, missing }),
            },
            DeviceChoice::Cuda(wanted) => match cuda_devices() {
                Ok(found) if wanted < found => Ok(vec![Device::Cuda(wanted)]),
                Ok(found) => Err(DeviceError::NoSuchDevice { wanted, found }),
                Err(missing) => Err(DeviceError::NoCuda { wanted: choice, missing }),
            },
        }
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
                    Device::Cuda(index) => compute_capability(*index).map_or(Kind::BFloat16, fastest_of),
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

    /// The major number of a CUDA device's compute capability: 7 for Volta and Turing, 8 for Ampere, ...
    fn compute_capability(index: usize) -> Option<i32> {
        type GetAttribute = unsafe extern "C" fn(value: *mut c_int, attribute: c_int, device: c_int) -> c_int;
        const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
        load_cuda().ok()?;
        let (device, mut major) = (c_int::try_from(index).ok()?, 0);
        // SAFETY: The CUDA runtime, which libtorch's CUDA half has brought with it, has had this function with this
        // signature since its first version; it writes one number.
        let status = unsafe {
            let get: Symbol<GetAttribute> = Library::this().get(b"cudaDeviceGetAttribute").ok()?;
            get(&raw mut major, COMPUTE_CAPABILITY_MAJOR, device)
        };
        (status == 0).then_some(major)
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
