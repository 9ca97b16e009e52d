//! The kernels that oneDNN makes for itself.

use std::env;

/// What bounds them, by the names that oneDNN has for it; the first is heeded before the others, and all of them before
/// what is said here.
///
/// A kernel for each matrix shape and number of rows takes half a megabyte, and texts have any number of rows: as many as
/// are kept where nothing is said, a thousand and for each thread a thousand more, are hundreds of megabytes a thread.
/// What each thread keeps besides saves nothing that can be measured. The kernels themselves are worth keeping, a
/// quarter of a millisecond each; a model wants five for each number of rows.
const LIMITS: [(&[&str], &str); 2] = [
    (&["LRU_CACHE_CAPACITY"], "1"),
    (&["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"], "512"),
];

/// Bounds the kernels that are kept in memory, unless the environment does.
///
/// # Safety
/// No other thread may be there: the environment is written to.
pub unsafe fn bound_kernels() {
    for (names, limit) in LIMITS {
        if names.iter().all(|name| env::var_os(name).is_none()) {
            // SAFETY: As this function's.
            unsafe { env::set_var(names[0], limit) };
        }
    }
}
