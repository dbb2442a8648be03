//! Manifests, indexes and configurations of images, as registries give them (OCI image specification 1.1, and the older form of Docker).
//!
//! Only what is used is read; everything is bounded and checked here, so that what comes out can be worked with. A document that could be read
//! as an index and as a manifest is refused (CVE-2021-41190).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::blob::Packing;
use crate::digest::is_hex;
use crate::reference::Arch;
use crate::{Error, Result};

/// Largest manifest or index: what the distribution specification says registries should take.
pub(crate) const MANIFEST_LIMIT: u64 = 4 << 20;
/// Largest configuration.
pub(crate) const CONFIGURATION_LIMIT: u64 = 8 << 20;
/// Most layers; builders stop at 127.
const MOST_LAYERS: usize = 512;
/// Largest layer as it is stored.
const LAYER_LIMIT: u64 = 32 << 30;
/// Most words and variables of a workload, and their bytes: the kernel would not start it with more.
const WORKLOAD_LIMIT: usize = 128 << 10;

/// What manifests are asked for by.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// What an image runs, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Workload {
    /// First words of what is run.
    pub entrypoint: Vec<String>,
    /// Further words, which a user's command replaces.
    pub command: Vec<String>,
    /// Variables of its environment.
    pub environment: BTreeMap<String, String>,
    /// User, or user:group, by name or number; empty for root.
    pub user: String,
    /// Directory that it runs in; empty for the root directory.
    pub directory: String,
    /// Signal that asks it to end, by name or number; empty for SIGTERM.
    pub stop_signal: String,
}

/// Names content by what it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    urls: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<Execution>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// Content to get: its SHA-256 in hexadecimal, and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) hex: String,
    pub(crate) size: u64,
}

/// A layer to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerBlob {
    pub(crate) blob: Blob,
    pub(crate) packing: Packing,
}

/// What a manifest turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A list of images; this is the manifest of the one for the architecture that was asked for.
    Index(Blob),
    Manifest {
        configuration: Blob,
        layers: Vec<LayerBlob>,
    },
}

/// What an image's configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Configured {
    pub(crate) workload: Workload,
    /// SHA-256 of each layer, unpacked.
    pub(crate) plain: Vec<String>,
}

fn malformed(what: &str, problem: impl Into<String>) -> Error {
    Error::malformed(what, problem)
}

impl Descriptor {
    fn blob(&self, what: &str, limit: u64) -> Result<Blob> {
        let hex = self
            .digest
            .strip_prefix("sha256:")
            .filter(|hex| is_hex(hex, 64) && !hex.bytes().any(|byte| byte.is_ascii_uppercase()))
            .ok_or_else(|| malformed(what, "it names something by another digest than sha256"))?;
        if self.size > limit {
            return Err(malformed(
                what,
                format!(
                    "it names something of {} bytes; {limit} are read",
                    self.size
                ),
            ));
        }
        Ok(Blob {
            hex: hex.to_owned(),
            size: self.size,
        })
    }

    fn packing(&self, what: &str) -> Result<Packing> {
        if !self.urls.is_empty() {
            return Err(malformed(
                what,
                "a layer is to be had from elsewhere (urls), which is not supported",
            ));
        }
        match self.media_type.as_str() {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Packing::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Packing::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Packing::Zstd),
            other => Err(malformed(
                what,
                format!("a layer has the media type {other:?}, which is no file system's"),
            )),
        }
    }
}

/// Reads a manifest or an index.
pub(crate) fn read_manifest(text: &[u8], arch: Arch) -> Result<Found> {
    let what = "the image's manifest";
    let document: Document =
        serde_json::from_slice(text).map_err(|failure| malformed(what, failure.to_string()))?;
    if document.schema_version != 2 {
        return Err(malformed(
            what,
            format!("it has version {}, and 2 is known", document.schema_version),
        ));
    }
    match (document.manifests, document.config, document.layers) {
        (Some(manifests), None, None) => {
            let fits = |platform: &Platform| {
                platform.os == "linux" && platform.architecture.parse::<Arch>().ok() == Some(arch)
            };
            match manifests
                .iter()
                .find(|one| one.platform.as_ref().is_some_and(fits))
            {
                Some(found) => Ok(Found::Index(found.blob(what, MANIFEST_LIMIT)?)),
                None => Err(not_for(
                    arch,
                    manifests.iter().filter_map(|one| one.platform.as_ref()),
                )),
            }
        }
        (None, Some(configuration), Some(layers)) => {
            if layers.len() > MOST_LAYERS {
                return Err(malformed(
                    what,
                    format!("it has more than {MOST_LAYERS} layers"),
                ));
            }
            let layers = layers.iter().map(|layer| {
                Ok(LayerBlob {
                    blob: layer.blob(what, LAYER_LIMIT)?,
                    packing: layer.packing(what)?,
                })
            });
            Ok(Found::Manifest {
                configuration: configuration.blob(what, CONFIGURATION_LIMIT)?,
                layers: layers.collect::<Result<_>>()?,
            })
        }
        _ => Err(malformed(
            what,
            "it is neither an index nor a manifest, or both",
        )),
    }
}

fn not_for<'a>(arch: Arch, platforms: impl Iterator<Item = &'a Platform>) -> Error {
    let mut known: Vec<String> = platforms
        .filter(|platform| platform.os != "unknown")
        .take(20)
        .map(|platform| {
            format!("{}/{}", platform.os, platform.architecture)
                .chars()
                .filter(|c| !c.is_control())
                .take(40)
                .collect()
        })
        .collect();
    known.dedup();
    Error::Unsupported {
        what: format!("the image for linux/{}", arch.debian_name()),
        reason: "the registry does not have it".into(),
        fix: format!("it has {}", known.join(", ")),
    }
}

/// Reads a configuration.
pub(crate) fn read_configuration(text: &[u8], arch: Arch, layers: usize) -> Result<Configured> {
    let what = "the image's configuration";
    let configuration: Configuration =
        serde_json::from_slice(text).map_err(|failure| malformed(what, failure.to_string()))?;
    if configuration.os != "linux" || configuration.architecture.parse::<Arch>().ok() != Some(arch)
    {
        let platform = Platform {
            architecture: configuration.architecture,
            os: configuration.os,
        };
        return Err(not_for(arch, std::iter::once(&platform)));
    }
    if configuration.rootfs.diff_ids.len() != layers {
        return Err(malformed(
            what,
            "it tells of another number of layers than the manifest",
        ));
    }
    let plain = configuration.rootfs.diff_ids.iter().map(|digest| {
        let hex = digest.strip_prefix("sha256:").filter(|hex| is_hex(hex, 64));
        hex.map(str::to_ascii_lowercase)
            .ok_or_else(|| malformed(what, "it names a layer by another digest than sha256"))
    });
    let plain = plain.collect::<Result<_>>()?;
    let execution = configuration.config.unwrap_or_default();
    let mut environment = BTreeMap::new();
    for variable in execution.env.unwrap_or_default() {
        // What has no equals sign names a variable to pass on from where the image is run: there is none.
        if let Some((name, value)) = variable.split_once('=')
            && !name.is_empty()
        {
            environment.insert(name.to_owned(), value.to_owned());
        }
    }
    let workload = Workload {
        entrypoint: execution.entrypoint.unwrap_or_default(),
        command: execution.cmd.unwrap_or_default(),
        environment,
        user: execution.user.unwrap_or_default(),
        directory: execution.working_dir.unwrap_or_default(),
        stop_signal: execution.stop_signal.unwrap_or_default(),
    };
    check_workload(&workload)?;
    Ok(Configured { workload, plain })
}

fn check_workload(workload: &Workload) -> Result<()> {
    let what = "the image's configuration";
    let texts = workload.entrypoint.iter().chain(&workload.command);
    let variables = workload
        .environment
        .iter()
        .flat_map(|(name, value)| [name, value]);
    let others = [&workload.user, &workload.directory, &workload.stop_signal];
    let mut bytes = 0;
    for text in texts.chain(variables).chain(others) {
        bytes += text.len() + 1;
        if text.contains('\0') {
            return Err(malformed(what, "a word of it holds a zero byte"));
        }
    }
    if bytes > WORKLOAD_LIMIT {
        return Err(malformed(
            what,
            "its command and environment are larger than 128 KiB",
        ));
    }
    if !workload.directory.is_empty() && !workload.directory.starts_with('/') {
        return Err(malformed(what, "its working directory is no absolute path"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: char) -> String {
        format!("sha256:{}", byte.to_string().repeat(64))
    }

    #[test]
    fn an_index_leads_to_the_architecture_even_without_a_media_type() {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[
                {{"digest":"{}","size":5,"platform":{{"os":"unknown","architecture":"unknown"}}}},
                {{"digest":"{}","size":5,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}}]}}"#,
            digest('a'),
            digest('b')
        );
        let found = read_manifest(text.as_bytes(), Arch::Arm64).unwrap();
        assert_eq!(
            found,
            Found::Index(Blob {
                hex: "b".repeat(64),
                size: 5
            })
        );
        let message = read_manifest(text.as_bytes(), Arch::X86_64)
            .unwrap_err()
            .to_string();
        assert!(message.contains("it has linux/arm64"), "{message}");
    }

    #[test]
    fn what_could_be_both_or_is_neither_is_refused() {
        let layer = |digest: &str, kind: &str| {
            format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":9}}"#)
        };
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        let manifest = |layers: &str, more: &str| {
            format!(
                r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":9}},"layers":[{layers}]{more}}}"#,
                digest('c')
            )
        };
        assert!(
            read_manifest(
                manifest(&layer(&digest('a'), gzip), "").as_bytes(),
                Arch::X86_64
            )
            .is_ok()
        );
        for bad in [
            manifest(&layer(&digest('a'), gzip), r#","manifests":[]"#),
            manifest(&layer(&digest('a'), "text/plain"), ""),
            manifest(&layer("sha256:../../x", gzip), ""),
            manifest(&layer(&digest('A'), gzip), ""),
            manifest(
                &layer(&digest('a'), gzip).replace("9}", r#"9,"urls":["x"]}"#),
                "",
            ),
            manifest(
                &layer(&digest('a'), gzip).replace("9}", "99999999999999}"),
                "",
            ),
            r#"{"schemaVersion":1}"#.to_owned(),
            r#"{"schemaVersion":2}"#.to_owned(),
        ] {
            assert!(
                read_manifest(bad.as_bytes(), Arch::X86_64).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_configuration_becomes_a_workload() {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"User":"www:www","Env":["A=b=c","X"],"Entrypoint":["/e"],"Cmd":null,"WorkingDir":"/srv"}},
                "rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            digest('d')
        );
        let configured = read_configuration(text.as_bytes(), Arch::X86_64, 1).unwrap();
        assert_eq!(
            configured.workload.environment,
            BTreeMap::from([("A".into(), "b=c".into())])
        );
        assert_eq!(
            (configured.workload.user.as_str(), configured.plain.len()),
            ("www:www", 1)
        );
        assert!(read_configuration(text.as_bytes(), Arch::Arm64, 1).is_err());
        assert!(read_configuration(text.as_bytes(), Arch::X86_64, 2).is_err());
        assert!(
            read_configuration(text.replace("/srv", "srv").as_bytes(), Arch::X86_64, 1).is_err()
        );
    }
}
