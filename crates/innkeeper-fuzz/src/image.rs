//! What comes with images: disks, kernels, packages, catalogues, names, and the user's own user-data.

use innkeeper_image::parse;
use innkeeper_image::{Catalogue, Reference, Seed};

use crate::text;

pub(crate) fn qcow2_header(data: &[u8]) {
    if let Ok(header) = parse::check_foreign_header(data) {
        assert!(matches!(header.version, 2 | 3));
        assert!((1..=64 << 40).contains(&header.virtual_bytes));
    }
}

/// Decompression is bounded by 512 MiB; a fuzzer's memory limit holds what that is worth.
pub(crate) fn kernel(data: &[u8]) {
    if let Ok(kernel) = parse::extract_vmlinux(data) {
        assert!(kernel.starts_with(b"\x7fELF"));
    }
    let _ = parse::raw_image(data);
    let _ = parse::decompress(data);
}

pub(crate) fn kernel_module(data: &[u8]) {
    let _ = parse::depends_of(data);
}

/// The readers of apt's configuration and of `Packages` files.
pub(crate) fn deb822(data: &[u8]) {
    let Some(text) = text(data) else {
        return;
    };
    for stanza in parse::parse_deb822(text) {
        for (name, value) in &stanza {
            assert!(!name.contains('\n'));
            let _ = parse::dependencies(value);
        }
    }
    let _ = parse::parse_one_line(text);
    let _ = parse::parse_sources(text);
    let _ = parse::find_checksum(text, "image.qcow2");
}

/// The tar archive in a package: no path leads out, nothing wanted is over its limit.
pub(crate) fn deb_archive(data: &[u8]) {
    let mut input = data;
    let _ = parse::read_archive(
        &mut input,
        "fuzz",
        |_| true,
        |path, bytes| {
            assert!(!path.starts_with('/') && !path.is_empty());
            assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")));
            assert!(bytes.len() <= data.len());
            Ok(())
        },
    );
}

/// Manifests, indexes and configurations of a registry, and what it says about tokens.
pub(crate) fn oci_documents(data: &[u8]) {
    parse::try_documents(data);
}

/// Two layers over each other: nothing is written but the disk, which takes no more than its limit.
pub(crate) fn oci_layer(data: &[u8]) {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    let _ = parse::try_layer(data, &path);
    let beside = std::fs::read_dir(directory.path()).expect("it is there");
    assert_eq!(beside.count(), 1, "something was written beside the disk");
    // A name of two bytes may make a directory of one block.
    let used = path.metadata().expect("it is there").blocks() * 512;
    assert!(
        used <= (64 << 20) + 4096 * data.len() as u64,
        "{used} bytes"
    );
}

pub(crate) fn catalogue(data: &[u8]) {
    if let Ok(catalogue) = Catalogue::parse("fuzz", data) {
        for entry in catalogue.entries() {
            let reference: Reference = format!("{}:{}", entry.name, entry.version)
                .parse()
                .expect("an entry can be referred to");
            assert!(
                matches!(reference, Reference::Named { .. }),
                "{reference:?}"
            );
        }
    }
}

/// A reference is shown as it is read again.
pub(crate) fn reference(data: &[u8]) {
    if let Some(text) = text(data)
        && let Ok(reference) = text.parse::<Reference>()
    {
        let again: Reference = reference.to_string().parse().expect("it is read again");
        assert_eq!(again, reference);
    }
}

/// The user's own user-data travels unchanged, or is refused.
pub(crate) fn user_data(data: &[u8]) {
    let Some(text) = text(data) else {
        return;
    };
    let seed = Seed {
        instance_id: "fuzz".to_owned(),
        hostname: "fuzz".to_owned(),
        user_data: Some(text.to_owned()),
        ..Seed::default()
    };
    if let Ok(files) = seed.files() {
        let written = &files["user-data"];
        assert!(!written.is_empty());
    }
}
