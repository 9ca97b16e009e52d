//! What threads are there. The one that counts is in a process of its own, this binary once more, where no other test has
//! threads.

use std::{env, fs, process::Command, thread, time::Duration};

use sidelens::{
    config::{DeviceChoice, ModelConfig},
    runtime::load,
};

/// The threads of this process, but for the one that computes searches.
fn n_others() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux");
    // One that ends meanwhile has no name.
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    let names = tasks.filter_map(|task| name(task.expect("readable")));
    names.filter(|name| name.trim_end() != "search").count()
}

#[test]
#[ignore = "a process of its own, started by the other test of this file"]
fn child() {
    const THREADS: usize = 4;
    let before = n_others();
    let models = [(); 2].map(|()| {
        let config = ModelConfig { device: DeviceChoice::Cpu, threads: THREADS, ..ModelConfig::default() };
        load(&config).expect("the demo model loads")
    });
    // A pool that libtorch makes once, whatever for: no model here computes with it.
    let expected = before + THREADS - 1;
    // Helpers end by themselves, a moment after the thread that they helped.
    (0..500).find(|_| {
        thread::sleep(Duration::from_millis(10));
        n_others() == expected
    });
    assert_eq!(n_others(), expected);
    drop(models);
}

/// Else searches wait asleep: libgomp spins only while threads and their helpers are no more than the cores.
#[test]
fn loading_leaves_no_thread_behind() {
    let child = Command::new(env::current_exe().expect("this binary"))
        .args(["threads::child", "--exact", "--ignored"])
        .output()
        .expect("it starts");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
}
