//! The table at the end, read back from what criterion saved.

use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, SystemTime},
};

use serde_json::Value;

/// Prints the benchmarks that were measured since `started`, in the order of their names.
pub fn print(results: &Path, started: SystemTime) {
    let mut rows = Vec::new();
    collect(results, started, &mut rows);
    if rows.is_empty() {
        return;
    }
    rows.sort();
    let width = rows.iter().map(|row| row[0].len()).max().unwrap_or(0);
    println!("\n{:width$}  {:>12}  {:>20}", "benchmark", "median", "throughput");
    for [name, median, throughput] in &rows {
        println!("{name:width$}  {median:>12}  {throughput:>20}");
    }
}

/// Walks to the folders called `new`, each of which holds one benchmark's latest figures.
fn collect(folder: &Path, started: SystemTime, rows: &mut Vec<[String; 3]>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        match path.ends_with("new") {
            true => rows.extend(row(&path, started)),
            false => collect(&path, started, rows),
        }
    }
}

fn row(folder: &Path, started: SystemTime) -> Option<[String; 3]> {
    let estimates = folder.join("estimates.json");
    if fs::metadata(&estimates).ok()?.modified().ok()? < started {
        return None;
    }
    let read = |path| serde_json::from_reader::<_, Value>(File::open(path).ok()?).ok();
    let benchmark = read(folder.join("benchmark.json"))?;
    let nanoseconds = read(estimates)?["median"]["point_estimate"].as_f64()?;
    let throughput = benchmark["throughput"].as_object().and_then(|throughput| {
        let (unit, amount) = throughput.iter().next()?;
        let rate = amount.as_f64()? / nanoseconds * 1e9;
        Some(match unit.as_str() {
            "Bytes" => format!("{:.1} MB/s", rate / 1e6),
            _ => format!("{rate:.1} a second"),
        })
    });
    let median = format!("{:.3?}", Duration::from_nanos(nanoseconds as u64));
    Some([benchmark["full_id"].as_str()?.to_owned(), median, throughput.unwrap_or_default()])
}
