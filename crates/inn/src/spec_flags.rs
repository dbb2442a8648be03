//! The flags that say what a VM should be, for `run`, `create` and `explain`: a file's spec, with the flags on top.
//!
//! Only words are read here; what fits together is judged by the library.

use std::io::Read;
use std::path::{Path, PathBuf};

use innkeeper::Error;
use innkeeper::api::ErrorKind;
use innkeeper::spec::{
    self, Arch, Bytes, DiskSpec, DriverChoice, ForwardSpec, MachineChoice, ReadyWhen, ShareSpec,
    VmSpec,
};

use crate::failure::{Failure, Result};

/// Largest spec that is read from standard input or a file, in bytes; the reader's own bound is the same.
const LARGEST_SPEC: u64 = 1 << 20;

/// What a VM should be.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct SpecFlags {
    /// Image, such as debian:12, tiny, a path, or a URL with #sha256=DIGEST
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Option<String>,

    /// Spec to begin with; flags change it (- reads standard input)
    #[arg(short, long, value_name = "FILE", help_heading = "Spec")]
    file: Option<PathBuf>,

    /// Virtual CPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Spec")]
    cpus: Option<u32>,

    /// Memory, such as 512MiB or 2GiB
    #[arg(short, long, value_name = "SIZE", value_parser = size, help_heading = "Spec")]
    memory: Option<Bytes>,

    /// Size of the root disk
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Spec")]
    disk_size: Option<Bytes>,

    /// Folder of this computer that the guest sees (repeatable)
    #[arg(short = 'v', long = "volume", value_name = "HOST:GUEST[:ro]", value_parser = share, help_heading = "Spec")]
    shares: Vec<ShareSpec>,

    /// Port of this computer that leads into the guest (repeatable)
    #[arg(short = 'p', long = "publish", value_name = "[ADDRESS:]HOST:GUEST[/udp]", value_parser = forward, help_heading = "Spec")]
    forwards: Vec<ForwardSpec>,

    /// Driver, or auto for the lightest one that can
    #[arg(long, value_name = "DRIVER", help_heading = "Spec")]
    driver: Option<String>,

    /// Architecture of the guest: x86_64, arm64 or riscv64
    #[arg(long, value_name = "ARCH", value_parser = arch, help_heading = "Spec")]
    pub(crate) arch: Option<Arch>,

    /// Machine type as the driver names it, or auto
    #[arg(long, value_name = "TYPE", help_heading = "Spec")]
    machine: Option<String>,

    /// Label (repeatable)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label, help_heading = "Spec")]
    labels: Vec<(String, String)>,

    /// When it counts as ready: agent, cloud-init, ssh, serial:TEXT or none
    #[arg(long, value_name = "WHEN", help_heading = "Spec")]
    ready: Option<ReadyWhen>,
}

impl SpecFlags {
    /// Makes the spec: the file's, or the default one, with the flags on top.
    pub(crate) fn spec(&self) -> Result<VmSpec> {
        let mut spec = match &self.file {
            Some(path) => read_file(path)?,
            None => VmSpec::default(),
        };
        if self.image.is_some() {
            spec.image.clone_from(&self.image);
        }
        if spec.image.is_none() && self.file.is_none() {
            let error = Error::new(ErrorKind::BadInput, "neither an image nor a spec was given");
            return Err(error
                .with_hint("inn run debian:12; inn image ls --all shows what there is")
                .into());
        }
        self.change(&mut spec)?;
        Ok(spec)
    }

    /// Returns the image's word if it is all that was given: it may be a VM's name then.
    pub(crate) fn only_a_name(&self) -> Option<&str> {
        let SpecFlags {
            image: Some(image),
            file: None,
            cpus: None,
            memory: None,
            disk_size: None,
            driver: None,
            arch: None,
            machine: None,
            ready: None,
            ..
        } = self
        else {
            return None;
        };
        let lists_are_empty =
            self.shares.is_empty() && self.forwards.is_empty() && self.labels.is_empty();
        lists_are_empty.then_some(image)
    }

    fn change(&self, spec: &mut VmSpec) -> Result<()> {
        if let Some(cpus) = self.cpus {
            spec.cpus = cpus;
        }
        if let Some(memory) = self.memory {
            spec.memory = memory;
        }
        if let Some(size) = self.disk_size {
            set_root_size(spec, size);
        }
        spec.shares.extend(self.shares.iter().cloned());
        if !self.forwards.is_empty() {
            let network = spec.networks.first_mut().ok_or_else(|| {
                Failure::usage("-p needs a network, and the spec says networks: []")
            })?;
            network.forwards.extend(self.forwards.iter().cloned());
        }
        match self.driver.as_deref() {
            None => {}
            Some("auto") => spec.driver = DriverChoice::Auto,
            Some(name) => spec.driver = DriverChoice::Named(name.to_owned()),
        }
        if self.arch.is_some() {
            spec.arch = self.arch;
        }
        match self.machine.as_deref() {
            None => {}
            Some("auto") => spec.machine = MachineChoice::Auto,
            Some(name) => spec.machine = MachineChoice::Named(name.to_owned()),
        }
        spec.labels.extend(self.labels.iter().cloned());
        if let Some(ready) = &self.ready {
            spec.ready = Some(ready.clone());
        }
        Ok(())
    }
}

/// Gives the disk named `root` this size, and puts one first if there is none.
fn set_root_size(spec: &mut VmSpec, size: Bytes) {
    match spec.disks.iter_mut().find(|disk| disk.name == "root") {
        Some(root) => root.size = Some(size),
        None => spec.disks.insert(
            0,
            DiskSpec {
                size: Some(size),
                ..DiskSpec::named("root")
            },
        ),
    }
}

/// Reads a spec from a file, or from standard input for `-`.
fn read_file(path: &Path) -> Result<VmSpec> {
    let is_stdin = path.as_os_str() == "-";
    let origin = if is_stdin {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    };
    let failed = |source| Error::io(format!("reading the spec {origin}"), source);
    let mut bytes = Vec::new();
    if is_stdin {
        std::io::stdin()
            .lock()
            .take(LARGEST_SPEC + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(LARGEST_SPEC + 1).read_to_end(&mut bytes))
            .map_err(failed)?;
    }
    if bytes.len() as u64 > LARGEST_SPEC {
        return Err(Failure::usage(format!(
            "the spec {origin} is larger than 1MiB"
        )));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::usage(format!("the spec {origin} is not UTF-8 text")))?;
    Ok(spec::read(&text, &origin).map_err(Error::from)?)
}

/// Reads a size.
pub(crate) fn size(text: &str) -> Result<Bytes, String> {
    let size: Bytes = text.parse().map_err(|error| format!("{error}"))?;
    if size.get() == 0 {
        return Err("a size of zero".to_owned());
    }
    Ok(size)
}

/// Reads an architecture.
pub(crate) fn arch(text: &str) -> Result<Arch, String> {
    text.parse().map_err(|error| format!("{error}"))
}

fn forward(text: &str) -> Result<ForwardSpec, String> {
    text.parse().map_err(|error| format!("{error}"))
}

/// Reads a share; a relative folder is one of the working directory, as shells understand it (a spec has only absolute ones).
fn share(text: &str) -> Result<ShareSpec, String> {
    let absolute = match text.split_once(':') {
        Some((host, rest)) if !host.is_empty() && !host.starts_with(['/', '~']) => {
            let host = std::path::absolute(host).map_err(|error| format!("{host}: {error}"))?;
            format!("{}:{rest}", host.display())
        }
        _ => text.to_owned(),
    };
    absolute.parse().map_err(|error| format!("{error}"))
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::io::Write;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        spec: SpecFlags,
    }

    fn spec(words: &[&str]) -> Result<VmSpec> {
        let words = std::iter::once(&"inn").chain(words);
        Flags::try_parse_from(words).unwrap().spec.spec()
    }

    #[test]
    fn flags_make_a_spec() {
        let spec = spec(&[
            "debian:12",
            "--cpus",
            "4",
            "-m",
            "2GiB",
            "--disk-size",
            "20GiB",
            "-v",
            "/src:/work:ro",
            "-p",
            "8080:80",
            "--driver",
            "qemu",
            "--machine",
            "microvm",
            "--arch",
            "aarch64",
            "--label",
            "env=dev",
            "--ready",
            "serial:login:",
        ])
        .unwrap();
        insta::assert_debug_snapshot!(spec);
    }

    #[test]
    fn flags_go_over_the_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"image: debian:12\ncpus: 8\nlabels: {a: x, b: y}\n")
            .unwrap();
        let path = file.path().to_str().unwrap();
        let spec = spec(&["-f", path, "--label", "b=z", "--memory", "3GiB"]).unwrap();
        assert_eq!(spec.image.as_deref(), Some("debian:12"));
        assert_eq!((spec.cpus, spec.memory), (8, Bytes::gib(3)));
        assert_eq!(spec.labels["a"], "x");
        assert_eq!(spec.labels["b"], "z");
    }

    #[test]
    fn relative_folders_are_of_the_working_directory() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(share("sub:/work").unwrap().host, here.join("sub"));
        assert_eq!(share(".:/work").unwrap().host, here);
    }

    #[test]
    fn nothing_given_is_told() {
        let Err(Failure::Told { error, .. }) = spec(&[]) else {
            panic!("a spec of nothing");
        };
        assert_eq!(error.exit_code(), 2);
        assert!(error.hint().is_some());
    }

    #[test]
    fn wrong_words_are_refused_at_once() {
        for words in [
            ["--cpus", "0"],
            ["--memory", "0"],
            ["--memory", "lots"],
            ["--arch", "vax"],
            ["--label", "x"],
            ["--ready", "soon"],
            ["-p", "http"],
            ["-v", "nowhere"],
        ] {
            let words = ["inn", "tiny", words[0], words[1]];
            assert!(Flags::try_parse_from(words).is_err(), "{words:?}");
        }
    }
}
