//! SSH keys: one Ed25519 pair per installation, in OpenSSH's format.

use std::path::{Path, PathBuf};

use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey};

use crate::{Error, Result, atomic};

/// Makes a key pair: `path` (mode 0600) and `path.pub`; gives the public key's line.
///
/// An existing private key is kept, and its public half is written again where it lacks.
pub fn generate_ed25519(path: &Path, comment: &str) -> Result<String> {
    let failed = |failure: ssh_key::Error| {
        Error::malformed(format!("ssh key {}", path.display()), failure.to_string())
    };
    if comment.chars().any(char::is_control) {
        return Err(Error::invalid(
            "ssh key's comment",
            comment,
            "must not have control characters",
        ));
    }
    let key = if path.exists() {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        PrivateKey::from_openssh(&text).map_err(failed)?
    } else {
        let mut key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(failed)?;
        key.set_comment(comment);
        let text = key.to_openssh(LineEnding::LF).map_err(failed)?;
        atomic::write(path, text.as_bytes(), 0o600)?;
        key
    };
    let public = key.public_key().to_openssh().map_err(failed)?;
    let mut public_path = path.as_os_str().to_owned();
    public_path.push(".pub");
    atomic::write(
        &PathBuf::from(public_path),
        format!("{public}\n").as_bytes(),
        0o644,
    )?;
    Ok(public)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("id_ed25519");
        let public = generate_ed25519(&path, "inn@test").unwrap();
        assert!(
            public.starts_with("ssh-ed25519 AAAA") && public.ends_with(" inn@test"),
            "{public}"
        );
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(generate_ed25519(&path, "other").unwrap(), public);
        assert!(generate_ed25519(&directory.path().join("x"), "a\nb").is_err());
    }
}
