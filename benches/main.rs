//! `cargo bench`: what each step costs, and a table of it at the end.
//!
//! One file an operation in `benchmarks/`, shapes in a named table at its top. `cargo bench -- decode` runs those
//! whose name holds `decode`. What needs an engine is left out without the feature `torch`.

#![allow(missing_docs, reason = "criterion's macros leave no place for them")]

mod benchmarks;
mod summary;

use std::{path::Path, time::SystemTime};

use criterion::Criterion;

fn main() {
    let started = SystemTime::now();
    let results = Path::new(env!("CARGO_TARGET_TMPDIR")).join("criterion");
    let mut criterion = Criterion::default().output_directory(&results).configure_from_args();
    for bench in benchmarks::ALL {
        bench(&mut criterion);
    }
    criterion.final_summary();
    summary::print(&results, started);
}
