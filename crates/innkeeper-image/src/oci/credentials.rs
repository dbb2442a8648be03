//! User names and passwords for registries, from where other tools keep them: configuration files and credential helpers.
//!
//! The form is that of Docker's `config.json` (and of `auth.json` of podman and skopeo): `credHelpers` for one registry, `auths`,
//! `credsStore` for all others. Keys are compared by host and port; a path below a host is not told apart. A helper is a program
//! `docker-credential-NAME`; the name is checked, and only the registry's host goes to it. Nothing of this is written anywhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Deserialize;

use crate::progress::{Context, Step};
use crate::tool::{self, Tool};
use crate::{Error, Result};

/// Largest file of credentials.
const FILE_LIMIT: u64 = 1 << 20;

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Password {
        user: String,
        password: String,
    },
    /// A long-lived token that is exchanged for short-lived ones.
    Token(String),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// Finds what there is for a host in the first of the files that knows it.
pub(crate) fn find(files: &[PathBuf], host: &str, context: &Context) -> Result<Option<Credential>> {
    for path in files {
        let mut text = Vec::new();
        match File::open(path) {
            Ok(file) => file
                .take(FILE_LIMIT)
                .read_to_end(&mut text)
                .map_err(Error::io("read", path))?,
            Err(failure) if failure.kind() == std::io::ErrorKind::NotFound => continue,
            Err(failure) => return Err(Error::io("open", path)(failure)),
        };
        if let Some(found) = find_in(path, &text, host, context)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn find_in(path: &Path, text: &[u8], host: &str, context: &Context) -> Result<Option<Credential>> {
    let configuration: Configuration = serde_json::from_slice(text)
        .map_err(|failure| Error::malformed(path.display().to_string(), failure.to_string()))?;
    if let Some((_, helper)) = configuration
        .cred_helpers
        .iter()
        .find(|(key, _)| host_of(key) == host)
    {
        return ask(helper, host, context);
    }
    let entry = configuration
        .auths
        .iter()
        .find(|(key, _)| host_of(key) == host);
    if let Some(found) = entry
        .map(|(_, entry)| entry.credential(path))
        .transpose()?
        .flatten()
    {
        return Ok(Some(found));
    }
    match &configuration.creds_store {
        Some(helper) => ask(helper, host, context),
        None => Ok(None),
    }
}

/// Host and port of a key, which may be a URL or have a path.
fn host_of(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    key.split('/').next().unwrap_or_default()
}

impl Entry {
    fn credential(&self, path: &Path) -> Result<Option<Credential>> {
        if let Some(token) = self
            .identitytoken
            .as_ref()
            .filter(|token| !token.is_empty())
        {
            return Ok(Some(Credential::Token(token.clone())));
        }
        if let (Some(user), Some(password)) = (&self.username, &self.password) {
            return Ok(Some(Credential::Password {
                user: user.clone(),
                password: password.clone(),
            }));
        }
        let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) else {
            // A mark that a helper has it.
            return Ok(None);
        };
        let decoded = base64::engine::general_purpose::STANDARD.decode(auth).ok();
        let pair = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = pair.as_deref().and_then(|text| text.split_once(':'));
        let (user, password) = pair.ok_or_else(|| {
            Error::malformed(
                path.display().to_string(),
                "an entry's auth is not user:password in base64",
            )
        })?;
        Ok(Some(Credential::Password {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        }))
    }
}

/// Asks a helper; one that fails has nothing for this host, as far as can be told without reading its prose.
fn ask(helper: &str, host: &str, context: &Context) -> Result<Option<Credential>> {
    let valid = (1..=64).contains(&helper.len())
        && helper
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !valid {
        return Err(Error::invalid(
            "credential helper",
            helper,
            "must be letters, digits, '.', '_' and '-'",
        ));
    }
    let name = format!("docker-credential-{helper}");
    let program = tool::find(&name).ok_or_else(|| Error::Unsupported {
        what: format!("the credential helper {helper}"),
        reason: format!("there is no program {name} in PATH"),
        fix: "install it, or take it out of the file of credentials".into(),
    })?;
    match Tool::new(&program, "give credentials")
        .arg("get")
        .input(host)
        .output(context)
    {
        Ok(output) => {
            let helped: Helped = serde_json::from_slice(&output).map_err(|_| {
                Error::malformed(name, "its answer is not JSON with Username and Secret")
            })?;
            Ok(Some(match helped.username.as_str() {
                "<token>" => Credential::Token(helped.secret),
                user => Credential::Password {
                    user: user.to_owned(),
                    password: helped.secret,
                },
            }))
        }
        Err(Error::ToolFailed { .. }) => {
            context.step(
                Step::Resolve,
                format!("{name} has nothing for {host}; going on without"),
            );
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::sync::Arc;

    fn look(text: &str, host: &str) -> Result<Option<Credential>> {
        find_in(
            Path::new("config.json"),
            text.as_bytes(),
            host,
            &Context::new(Arc::new(Silent)),
        )
    }

    #[test]
    fn files_are_read_and_hosts_compared_whole() {
        let text = r#"{"auths":{"https://images.example.org/v1/":{"auth":"YW5uOnB3Ong="},"other.example.org":{"identitytoken":"t"}}}"#;
        let found = look(text, "images.example.org").ok().flatten();
        assert!(
            found
                == Some(Credential::Password {
                    user: "ann".into(),
                    password: "pw:x".into()
                })
        );
        assert!(
            look(text, "other.example.org").ok().flatten() == Some(Credential::Token("t".into()))
        );
        assert!(look(text, "example.org").is_ok_and(|found| found.is_none()));
        assert!(look(r#"{"auths":{"a.example":{"auth":"%%"}}}"#, "a.example").is_err());
    }

    #[test]
    fn a_helpers_name_is_no_path() {
        let message = look(r#"{"credsStore":"../../bin/sh"}"#, "a.example")
            .err()
            .map(|failure| failure.to_string());
        assert!(message.is_some_and(|message| message.contains("must be letters")));
        assert!(look(r#"{"credsStore":"not-there-at-all"}"#, "a.example").is_err());
    }
}
