//! Names of images in registries: `oci:HOST[:PORT]/PATH[:TAG][@sha256:DIGEST]`.
//!
//! There is no default registry and no default tag: what a short name means is a decision that others made for their own tools. The grammar
//! is that of the distribution specification (pull.md). `oci+http:` asks for a registry without TLS; on this computer's loopback that
//! needs no asking.

use std::fmt;
use std::str::FromStr;

use crate::digest::is_hex;
use crate::{Error, Result};

/// The name of an image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OciName {
    /// Host with an optional port, as in a URL.
    host: String,
    repository: String,
    tag: Option<String>,
    /// SHA-256 of the manifest, in hexadecimal.
    digest: Option<String>,
    plain_http: bool,
}

/// How such names begin.
pub(crate) const SCHEMES: [&str; 2] = ["oci:", "oci+http:"];

impl OciName {
    /// Host and port of the registry.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Path of the repository in its registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag, where one is named.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// SHA-256 of the manifest in hexadecimal, where it is named.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// Last part of the repository: what a VM of it may be called after.
    pub fn short(&self) -> &str {
        self.repository.rsplit('/').next().unwrap_or_default()
    }

    /// What the registry is asked for: the digest before the tag.
    pub(crate) fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("sha256:{digest}"),
            (None, tag) => tag.clone().unwrap_or_default(),
        }
    }

    /// Beginning of the registry's addresses.
    pub(crate) fn base(&self) -> String {
        let scheme = if self.plain_http || is_loopback(&self.host) {
            "http"
        } else {
            "https"
        };
        format!("{scheme}://{}", self.host)
    }
}

/// Whether nothing leaves this computer on the way to a host.
pub(crate) fn is_loopback(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix("[::1]") {
        return rest.is_empty() || rest.starts_with(':');
    }
    let name = host.split(':').next().unwrap_or_default();
    name == "localhost"
        || name
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback())
}

impl fmt::Display for OciName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = SCHEMES[usize::from(self.plain_http)];
        write!(formatter, "{scheme}{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@sha256:{digest}")?;
        }
        Ok(())
    }
}

fn valid_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else {
                return false;
            };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (
                None,
                port.strip_prefix(':').or(port.is_empty().then_some("1")),
            )
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), Some("1")),
        },
    };
    let name_is_right = name.is_none_or(|name| {
        (1..=253).contains(&name.len())
            && name.split('.').all(|label| {
                !label.is_empty()
                    && label
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            })
    });
    name_is_right
        && port.is_some_and(|port| {
            port.bytes().all(|byte| byte.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

/// Lower-case letters and digits, between them `.`, `_`, `__` or any number of `-`.
fn valid_part(part: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    !part.is_empty()
        && bytes
            .iter()
            .all(|byte| is_plain(*byte) || b"._-".contains(byte))
        && bytes.first().copied().is_some_and(is_plain)
        && bytes.last().copied().is_some_and(is_plain)
        && part.split(is_plain_char).all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
        })
}

fn is_plain_char(character: char) -> bool {
    character.is_ascii_lowercase() || character.is_ascii_digit()
}

fn valid_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && !tag.starts_with(['.', '-'])
}

impl FromStr for OciName {
    type Err = Error;

    fn from_str(text: &str) -> Result<OciName> {
        let invalid = |problem: &str| Error::invalid("image", text, problem);
        let form =
            "a registry's image is named in full: oci:HOST[:PORT]/NAME:TAG, or with @sha256:DIGEST";
        let (plain_http, rest) =
            match (text.strip_prefix(SCHEMES[0]), text.strip_prefix(SCHEMES[1])) {
                (Some(rest), _) => (false, rest),
                (_, Some(rest)) => (true, rest),
                _ => return Err(invalid(form)),
            };
        if text.len() > 512 {
            return Err(invalid("is longer than 512 bytes"));
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest
                    .strip_prefix("sha256:")
                    .filter(|digest| is_hex(digest, 64));
                let digest = digest.ok_or_else(|| {
                    invalid("the digest must be @sha256: and 64 hexadecimal digits")
                })?;
                (rest, Some(digest.to_ascii_lowercase()))
            }
            None => (rest, None),
        };
        let (host, path) = rest.split_once('/').ok_or_else(|| {
            invalid(&format!(
                "it names no registry, and there is no default one; {form}"
            ))
        })?;
        let (repository, tag) = match path.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        // `library/debian` begins like a host; a name that can be told from a path has a point, a port, or is localhost.
        if !(host.contains(['.', ':']) || host == "localhost") {
            return Err(invalid(&format!(
                "{host:?} is no registry's host, and there is no default one; {form}"
            )));
        }
        if !valid_host(host) {
            return Err(invalid(
                "the host before the first slash must be a name or address with an optional port",
            ));
        }
        if repository.len() > 255 || !repository.split('/').all(valid_part) {
            return Err(invalid(
                "the name after the host must be lower-case letters and digits, with single '.', '_', '-' or '/' between them",
            ));
        }
        if tag.is_some_and(|tag| !valid_tag(tag)) {
            return Err(invalid(
                "the tag must be 1 to 128 letters, digits, '.', '_' and '-', and not begin with '.' or '-'",
            ));
        }
        if tag.is_none() && digest.is_none() {
            return Err(invalid(
                "it has neither a tag nor a digest; append :TAG or @sha256:DIGEST",
            ));
        }
        Ok(OciName {
            host: host.to_owned(),
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
            plain_http,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names_are_read_and_written_back() {
        for text in [
            "oci:localhost:5000/debian:12",
            "oci:images.example.org/team/a-b__c.d/x:v1.2_3",
            "oci:[::1]:5000/a:b",
            "oci+http:images.example.org:8080/a:b",
        ] {
            assert_eq!(text.parse::<OciName>().unwrap().to_string(), text);
        }
        let digest = "a".repeat(64);
        let name: OciName = format!("oci:127.0.0.1:5000/x:1@sha256:{digest}")
            .parse()
            .unwrap();
        assert_eq!(
            (name.wanted(), name.base()),
            (
                format!("sha256:{digest}"),
                "http://127.0.0.1:5000".to_owned()
            )
        );
        let name: OciName = "oci:images.example.org/x/y:1".parse().unwrap();
        assert_eq!(
            (name.short(), name.base().as_str()),
            ("y", "https://images.example.org")
        );
    }

    #[test]
    fn refusals_say_what_would_be_right() {
        for (text, part) in [
            ("oci:debian:12", "no default one"),
            ("oci:library/debian:12", "no registry's host"),
            ("oci:localhost/debian", "neither a tag nor a digest"),
            ("oci:localhost/Debian:1", "lower-case"),
            ("oci:localhost/a/../b:1", "lower-case"),
            ("oci:localhost/a//b:1", "lower-case"),
            ("oci:localhost:99999/a:1", "the host before"),
            ("oci:user@localhost/a:1", "sha256"),
            ("oci:localhost/a@sha256:12", "64 hexadecimal"),
            ("oci:localhost/a:-1", "the tag must"),
        ] {
            let message = text.parse::<OciName>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn only_loopback_is_loopback() {
        assert!(
            is_loopback("127.1.2.3:5000") && is_loopback("[::1]:5000") && is_loopback("localhost")
        );
        assert!(
            !is_loopback("127.example.org")
                && !is_loopback("localhost.example.org")
                && !is_loopback("10.0.0.1")
        );
    }
}
