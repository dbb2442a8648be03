//! Images that are built once for all tests, and lent to installations by hard links: a layer is never changed in place, and removing a
//! link leaves the others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use innkeeper::Host;
use innkeeper::progress::Silent;
use innkeeper::spec::Arch;

/// Returns the directory that outlives a test run: `INNKEEPER_TEST_CACHE`, else the user's cache directory.
fn cache_directory() -> PathBuf {
    let path = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    path("INNKEEPER_TEST_CACHE")
        .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("innkeeper-tests")))
        .or_else(|| path("HOME").map(|home| home.join(".cache/innkeeper-tests")))
        .unwrap_or_else(|| std::env::temp_dir().join("innkeeper-tests"))
}

/// Returns where records of trials are written: `INNKEEPER_TEST_RESULTS`, else below the cache.
pub fn results_directory() -> PathBuf {
    std::env::var_os("INNKEEPER_TEST_RESULTS")
        .filter(|value| !value.is_empty())
        .map_or_else(|| cache_directory().join("results"), PathBuf::from)
}

/// Puts the image `tiny` for this computer's architecture into the store below `home`.
///
/// Errors: in words, why it can't be had.
pub async fn lend_tiny(home: &Path) -> Result<(), String> {
    lend(home, "tiny", None).await
}

/// Puts an image into the store below `home`, building it first if this cache does not have it (or has it for another agent).
///
/// Errors: in words, why it can't be had.
pub async fn lend(home: &Path, image: &str, arch: Option<Arch>) -> Result<(), String> {
    let store = cache_directory().join("store");
    // Private, as the store of an installation must be.
    fs::create_dir_all(&store)
        .map_err(|error| format!("can't make {}: {error}", store.display()))?;
    // The store's own locks make all but one of several tests wait for the build.
    let host = Host::builder()
        .home(&store)
        .runtime("/tmp/ik-cache")
        .from_environment()
        .open()
        .map_err(|error| error.chain().join(": "))?;
    host.pull_image(image, arch, &Silent)
        .await
        .map_err(|error| error.chain().join(": "))?;
    for directory in ["layers", "images"] {
        link_files(&store.join(directory), &home.join(directory))
            .map_err(|error| format!("can't lend the image: {error}"))?;
    }
    Ok(())
}

/// Links the files of one directory into another; leases and locks, which are an installation's own, stay behind.
fn link_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() || entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let there = to.join(entry.file_name());
        match fs::hard_link(entry.path(), &there) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // Another file system: a copy costs time but is as good.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                fs::copy(entry.path(), &there)?;
            }
            other => other?,
        }
    }
    Ok(())
}
