//! Finds UEFI firmware by the descriptors that distributions install beside it.
//!
//! Source of the format: QEMU `docs/interop/firmware.json`. Descriptors are taken in the order of their file names, those of an earlier
//! directory hiding those of a later one with the same name. Firmware for secure boot is what enforces it from the first start: the usual
//! keys are in its variables, and only firmware itself can change them (`requires-smm`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::host::UefiFirmware;

/// Longest descriptor that is read, in bytes.
const LENGTH_LIMIT: u64 = 64 * 1024;

/// Most descriptors that are looked at.
const COUNT_LIMIT: usize = 256;

/// Features that a plain VM does not have.
const UNWANTED: [&str; 4] = ["secure-boot", "enrolled-keys", "requires-smm", "amd-sev-es"];

/// Features without which secure boot enforces nothing.
const SECURE: [&str; 3] = ["secure-boot", "enrolled-keys", "requires-smm"];

/// Which firmware is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// What starts every loader.
    Plain,
    /// What refuses loaders that are not signed.
    Secure,
}

/// Well-known places, for hosts without descriptors: architecture as QEMU names it, code, variables.
const KNOWN: [(&str, &str, &str); 6] = [
    (
        "x86_64",
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "x86_64",
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "x86_64",
        "/opt/homebrew/share/qemu/edk2-x86_64-code.fd",
        "/opt/homebrew/share/qemu/edk2-i386-vars.fd",
    ),
    (
        "aarch64",
        "/usr/share/AAVMF/AAVMF_CODE.fd",
        "/usr/share/AAVMF/AAVMF_VARS.fd",
    ),
    (
        "aarch64",
        "/opt/homebrew/share/qemu/edk2-aarch64-code.fd",
        "/opt/homebrew/share/qemu/edk2-arm-vars.fd",
    ),
    (
        "riscv64",
        "/usr/share/qemu-efi-riscv64/RISCV_VIRT_CODE.fd",
        "/usr/share/qemu-efi-riscv64/RISCV_VIRT_VARS.fd",
    ),
];

/// Finds firmware for an architecture as QEMU names it; a machine type's name tells which descriptors fit.
pub(super) fn find(
    directories: &[PathBuf],
    architecture: &str,
    machine: &str,
    kind: Kind,
) -> Option<UefiFirmware> {
    let mut descriptors: BTreeMap<std::ffi::OsString, PathBuf> = BTreeMap::new();
    for directory in directories {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        for entry in entries.take(COUNT_LIMIT) {
            let path = entry.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                descriptors.entry(entry.file_name()).or_insert(path);
            }
        }
    }
    let described = descriptors
        .values()
        .filter_map(|path| read(path))
        .filter_map(|descriptor| select(&descriptor, architecture, machine, kind));
    let known = KNOWN
        .iter()
        .filter(|(of, _, _)| *of == architecture && kind == Kind::Plain)
        .map(|(_, code, variables)| UefiFirmware {
            code: PathBuf::from(code),
            variables: PathBuf::from(variables),
            format: "raw".to_owned(),
        });
    described
        .chain(known)
        .find(|firmware| firmware.code.is_file() && firmware.variables.is_file())
}

fn read(path: &Path) -> Option<Value> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(LENGTH_LIMIT)
        .read_to_end(&mut bytes)
        .ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Takes what a descriptor describes, if it fits.
fn select(
    descriptor: &Value,
    architecture: &str,
    machine: &str,
    kind: Kind,
) -> Option<UefiFirmware> {
    let words = |value: &Value| -> Vec<String> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|word| word.as_str().map(str::to_owned))
            .collect()
    };
    let mapping = &descriptor["mapping"];
    let split = mapping["mode"].as_str().is_none_or(|mode| mode == "split");
    let fits = words(&descriptor["interface-types"])
        .iter()
        .any(|kind| kind == "uefi")
        && mapping["device"] == "flash"
        && split
        && has_features(&words(&descriptor["features"]), kind)
        && descriptor["targets"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|target| {
                target["architecture"] == architecture
                    && words(&target["machines"])
                        .iter()
                        .any(|pattern| matches(pattern, machine))
            });
    if !fits {
        return None;
    }
    let text = |part: &str, name: &str| mapping[part][name].as_str().map(str::to_owned);
    let format = text("executable", "format")?;
    // One field for both: the plan opens the two alike.
    if !["raw", "qcow2"].contains(&format.as_str()) || text("nvram-template", "format")? != format {
        return None;
    }
    Some(UefiFirmware {
        code: PathBuf::from(text("executable", "filename")?),
        variables: PathBuf::from(text("nvram-template", "filename")?),
        format,
    })
}

fn has_features(features: &[String], kind: Kind) -> bool {
    let has = |word: &&str| features.iter().any(|feature| feature == word);
    match kind {
        Kind::Plain => !UNWANTED.iter().any(has),
        Kind::Secure => SECURE.iter().all(has),
    }
}

/// Matches a glob of which only a star at the end is used in descriptors.
fn matches(pattern: &str, machine: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => machine.starts_with(prefix),
        None => machine == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(features: &[&str], code: &Path) -> Value {
        json!({
            "interface-types": ["uefi"], "features": features,
            "mapping": { "device": "flash",
                "executable": { "filename": code, "format": "raw" },
                "nvram-template": { "filename": code, "format": "raw" } },
            "targets": [{ "architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"] }],
        })
    }

    #[test]
    fn takes_the_first_plain_one_that_exists() {
        let directory = tempfile::tempdir().unwrap();
        let code = directory.path().join("code.fd");
        std::fs::write(&code, b"").unwrap();
        let missing = directory.path().join("missing.fd");
        for (name, descriptor) in [
            ("10-gone.json", descriptor(&[], &missing)),
            ("20-secure.json", descriptor(&["secure-boot"], &code)),
            ("30-plain.json", descriptor(&["verbose-dynamic"], &code)),
        ] {
            std::fs::write(directory.path().join(name), descriptor.to_string()).unwrap();
        }
        std::fs::write(directory.path().join("05-broken.json"), b"{").unwrap();
        let directories = [directory.path().to_owned()];
        assert_eq!(
            find(&directories, "x86_64", "pc-q35-10.0", Kind::Plain)
                .unwrap()
                .code,
            code
        );
        assert_eq!(
            select(&descriptor(&[], &code), "x86_64", "microvm", Kind::Plain),
            None
        );
        assert_eq!(
            select(
                &descriptor(&[], &code),
                "aarch64",
                "pc-q35-10.0",
                Kind::Plain
            ),
            None
        );
        let secure = |features: &[&str]| {
            select(
                &descriptor(features, &code),
                "x86_64",
                "pc-q35-10.0",
                Kind::Secure,
            )
            .is_some()
        };
        assert!(secure(&SECURE));
        assert!(!secure(&["secure-boot", "requires-smm"]));
        assert!(!secure(&[]));
        assert_eq!(
            select(&json!([1]), "x86_64", "pc-q35-10.0", Kind::Plain),
            None
        );
    }
}
