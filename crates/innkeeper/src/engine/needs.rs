//! What this host lacks apart from drivers, with the command that fixes it.

use std::path::PathBuf;

use innkeeper_api::Need;

use super::Engine;

impl Engine {
    /// Looks for the tools that making images and disks needs, and for the agents.
    pub(crate) fn host_needs(&self) -> Vec<Need> {
        let mut needs = Vec::new();
        let mut tool = |program: &str, without: &str, package: &str| {
            if !self.has_program(program) {
                needs.push(Need {
                    what: program.to_owned(),
                    without: without.to_owned(),
                    fix: format!("apt-get install {package}"),
                });
            }
        };
        tool(
            "qemu-img",
            "disks can't be converted, resized or looked at",
            "qemu-utils",
        );
        tool(
            "mke2fs",
            "disks with a file system can't be made",
            "e2fsprogs",
        );
        if innkeeper_image::can_build_debian() || self.has_program("apt-get") {
            tool(
                "mmdebstrap",
                "debian images can't be built from packages",
                "mmdebstrap",
            );
            tool(
                "newuidmap",
                "debian images can't be built without root",
                "uidmap",
            );
        }
        if let Some(arch) = crate::spec::Arch::host()
            && let Err(error) = self.agents.find(arch)
        {
            needs.push(Need {
                what: format!("guest agent for {arch}"),
                without: "the image `tiny` can't be made, and other guests have no agent"
                    .to_owned(),
                fix: error.hint().unwrap_or_default().to_owned(),
            });
        }
        needs
    }

    fn has_program(&self, program: &str) -> bool {
        // Tools of the system's administrator are not on every user's path.
        let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
        self.search_path
            .iter()
            .chain(&system)
            .any(|directory| directory.join(program).is_file())
    }
}
