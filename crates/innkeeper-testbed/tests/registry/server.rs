//! A real registry on loopback (Debian's docker-registry), with images that the test makes itself.
//!
//! Content is laid where the registry keeps it, in its documented layout; what is tested is how it is got. The access log tells what was asked.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

const LIMIT: Duration = Duration::from_secs(30);

/// A registry; ends when it is dropped.
pub struct Registry {
    child: Child,
    root: tempfile::TempDir,
    port: u16,
}

/// What an image of a test is.
pub struct TestImage {
    pub layers: Vec<Vec<u8>>,
    pub configuration: serde_json::Value,
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("packed");
    encoder.finish().expect("packed")
}

fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    std::fs::write(path, bytes).expect("written");
}

impl Registry {
    /// Starts one; none, saying why, where the program is not installed.
    pub fn start(users: Option<&str>) -> Option<Registry> {
        let root = tempfile::tempdir().expect("a directory");
        // Taken by nobody just now; the registry can't be asked for any port and say which.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port")
            .port();
        let mut configuration = serde_json::json!({
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": false}},
            "storage": {"filesystem": {"rootdirectory": root.path().join("data")}},
            "http": {"addr": format!("127.0.0.1:{port}"), "secret": "a test's"},
        });
        if let Some(users) = users {
            write(&root.path().join("users"), users);
            configuration["auth"] = serde_json::json!({"htpasswd": {"realm": "test", "path": root.path().join("users")}});
        }
        let file = root.path().join("config.yml");
        write(&file, configuration.to_string());
        let log = std::fs::File::create(root.path().join("log")).expect("a log");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                println!("SKIPPED: docker-registry can't be run: {error}");
                return None;
            }
        };
        let mut registry = Registry { child, root, port };
        let deadline = Instant::now() + LIMIT;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = registry.child.try_wait().expect("its state");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the registry does not listen: {}",
                registry.log()
            );
            // poll: the registry listens.
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(registry)
    }

    /// Everything it said, an access a line.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root.path().join("log")).unwrap_or_default()
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("data/docker/registry/v2")
    }

    /// Where the registry keeps a blob.
    pub fn blob_file(&self, hex: &str) -> PathBuf {
        self.data()
            .join(format!("blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    fn put_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let hex = hex(bytes);
        write(&self.blob_file(&hex), bytes);
        let link = self.data().join(format!(
            "repositories/{repository}/_layers/sha256/{hex}/link"
        ));
        write(&link, format!("sha256:{hex}"));
        hex
    }

    fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        document: &serde_json::Value,
    ) -> (String, usize) {
        let bytes = document.to_string().into_bytes();
        let hex = hex(&bytes);
        write(&self.blob_file(&hex), &bytes);
        let manifests = self
            .data()
            .join(format!("repositories/{repository}/_manifests"));
        write(
            &manifests.join(format!("revisions/sha256/{hex}/link")),
            format!("sha256:{hex}"),
        );
        if let Some(tag) = tag {
            write(
                &manifests.join(format!("tags/{tag}/current/link")),
                format!("sha256:{hex}"),
            );
            write(
                &manifests.join(format!("tags/{tag}/index/sha256/{hex}/link")),
                format!("sha256:{hex}"),
            );
        }
        (hex, bytes.len())
    }

    /// Puts an image there, below an index of several architectures; gives the SHA-256 of its layers as they are stored.
    pub fn put(&self, repository: &str, tag: &str, image: &TestImage) -> Vec<String> {
        let mut layers = Vec::new();
        let mut digests = Vec::new();
        for plain in &image.layers {
            let packed = gzip(plain);
            let hex = self.put_blob(repository, &packed);
            layers.push(serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": format!("sha256:{hex}"), "size": packed.len(),
            }));
            digests.push(hex);
        }
        let plain: Vec<String> = image
            .layers
            .iter()
            .map(|plain| format!("sha256:{}", hex(plain)))
            .collect();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let configuration = serde_json::json!({
            "architecture": architecture, "os": "linux", "config": image.configuration,
            "rootfs": {"type": "layers", "diff_ids": plain},
        })
        .to_string();
        let hex = self.put_blob(repository, configuration.as_bytes());
        let (manifest, size) = self.put_manifest(
            repository,
            None,
            &serde_json::json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": format!("sha256:{hex}"), "size": configuration.len()},
                "layers": layers,
            }),
        );
        let descriptor = |architecture: &str| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{manifest}"), "size": size,
                "platform": {"os": "linux", "architecture": architecture},
            })
        };
        self.put_manifest(
            repository,
            Some(tag),
            &serde_json::json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": [descriptor("s390x"), descriptor(architecture)],
            }),
        );
        digests
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a layer: paths to content (a directory ends in a slash), symbolic and hard links.
pub fn layer(files: &BTreeMap<&str, Vec<u8>>, hard_links: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(size as u64);
        header
    };
    for (path, content) in files {
        let kind = if path.ends_with('/') {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        };
        let mut header = header(kind, content.len());
        archive
            .append_data(&mut header, path, content.as_slice())
            .expect("added");
    }
    for (path, target) in hard_links {
        let mut header = header(tar::EntryType::Link, 0);
        archive
            .append_link(&mut header, path, target)
            .expect("added");
    }
    archive.into_inner().expect("an archive")
}
