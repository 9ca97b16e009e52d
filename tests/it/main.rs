//! One test binary.
mod layering;
mod parity;
