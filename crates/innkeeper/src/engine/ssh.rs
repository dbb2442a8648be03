//! SSH into guests: the installation's key, and what OpenSSH's client is told.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use innkeeper_api::{ErrorKind, VmInfo};

use super::Engine;
use crate::error::{Error, Result};

impl Engine {
    /// Returns the installation's public key, making the pair if there is none.
    pub(crate) fn public_key(&self) -> Result<String> {
        let key = self.ssh_key().0;
        if !key.exists() {
            let directory = self.root.home().join("ssh");
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(|error| Error::io(format!("can't make {}", directory.display()), error))?;
            innkeeper_image::ssh::generate_ed25519(&key, "innkeeper")?;
        }
        let public = PathBuf::from(format!("{}.pub", key.display()));
        std::fs::read_to_string(&public)
            .map(|text| text.trim().to_owned())
            .map_err(|error| Error::io(format!("can't read {}", public.display()), error))
    }

    /// Returns the arguments that lead OpenSSH's `ssh` into a VM.
    pub(crate) async fn ssh_arguments(&self, name: &str) -> Result<Vec<String>> {
        let bundle = self.root.bundle(name)?;
        let info = self.look(&bundle).await?;
        if info.vmm_pid.is_none() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{name} is {}, so nobody answers there", info.state),
            )
            .with_hint(format!("start it with `inn start {name}`")));
        }
        let mut arguments = Vec::new();
        for (option, value) in self.ssh_options(&info)? {
            arguments.extend(["-o".to_owned(), format!("{option}={value}")]);
        }
        let alias = format!("inn-{name}");
        arguments.push(alias);
        Ok(arguments)
    }

    /// Returns a configuration for OpenSSH's client, one block for each VM that has an SSH server.
    pub(crate) async fn ssh_config(&self, name: Option<&str>) -> Result<String> {
        let told = match name {
            Some(name) => vec![self.look(&self.root.bundle(name)?).await?],
            None => self.look_at_all().await?,
        };
        let mut text =
            String::from("# Made by `inn ssh-config`; for an `Include` line in ~/.ssh/config.\n");
        for info in &told {
            if info.ssh.is_none() && name.is_none() {
                continue;
            }
            text.push_str(&format!("\nHost inn-{}\n", info.name));
            for (option, value) in self.ssh_options(info)? {
                text.push_str(&format!("  {option} {value}\n"));
            }
        }
        Ok(text)
    }

    /// Host keys change whenever a VM is made anew under a name, so each VM has a file of known hosts of its own, in its bundle.
    fn ssh_options(&self, info: &VmInfo) -> Result<Vec<(&'static str, String)>> {
        let Some(ssh) = &info.ssh else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} has no SSH server that Innkeeper knows of", info.name),
            )
            .with_hint(format!("use `inn shell {}`", info.name)));
        };
        Ok(vec![
            ("HostName", ssh.host.clone()),
            ("Port", ssh.port.to_string()),
            ("User", ssh.user.clone()),
            ("IdentityFile", quoted(&ssh.identity_file)),
            ("IdentitiesOnly", "yes".to_owned()),
            (
                "UserKnownHostsFile",
                quoted(&format!("{}/ssh_known_hosts", info.directory)),
            ),
            ("GlobalKnownHostsFile", "/dev/null".to_owned()),
            ("StrictHostKeyChecking", "accept-new".to_owned()),
            ("HostKeyAlias", info.name.clone()),
            ("LogLevel", "ERROR".to_owned()),
        ])
    }
}

/// Quotes a path for ssh_config(5), where `%` begins a token.
fn quoted(path: &str) -> String {
    format!("\"{}\"", path.replace('%', "%%"))
}
