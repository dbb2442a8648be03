//! Replays the seeds of every fuzz target, and cheap variations of them: what a fuzzer has once found stays found.

use std::path::{Path, PathBuf};

use innkeeper_fuzz::{TARGETS, run};

fn fuzz_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = fuzz_directory().join("seeds").join(target);
    let entries = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut seeds: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let bytes = std::fs::read(&path).expect("a seed");
            (path, bytes)
        })
        .collect();
    seeds.sort();
    seeds
}

#[test]
fn every_target_has_its_seeds_and_its_program() {
    for (name, _) in TARGETS {
        assert!(!seeds(name).is_empty(), "{name} has no seeds");
        let program = fuzz_directory().join(format!("fuzz_targets/{name}.rs"));
        let code = std::fs::read_to_string(&program).expect("a program");
        assert!(
            code.contains(&format!("\"{name}\"")),
            "{}",
            program.display()
        );
        let manifest =
            std::fs::read_to_string(fuzz_directory().join("Cargo.toml")).expect("a manifest");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
    for place in ["seeds", "fuzz_targets"] {
        let count = std::fs::read_dir(fuzz_directory().join(place))
            .expect("a directory")
            .count();
        assert_eq!(count, TARGETS.len(), "fuzz/{place} has what no target uses");
    }
}

#[test]
fn seeds_are_taken() {
    for (name, _) in TARGETS {
        for (path, bytes) in seeds(name) {
            println!("{}", path.display());
            run(name, &bytes);
        }
    }
}

/// Cut at every length and with every byte changed: most of what a careless index would fall over, in a second.
#[test]
fn seeds_that_are_cut_or_changed_are_taken() {
    for (name, _) in TARGETS {
        // A directory per run is dear.
        let most = if *name == "copy_receive" { 60 } else { 600 };
        for (_, bytes) in seeds(name) {
            let step = (bytes.len() / most).max(1);
            for at in (0..bytes.len()).step_by(step) {
                run(name, &bytes[..at]);
                for change in [0x01, 0x80, 0xff] {
                    let mut changed = bytes.clone();
                    changed[at] ^= change;
                    run(name, &changed);
                }
            }
        }
    }
}
