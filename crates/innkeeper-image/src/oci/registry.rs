//! A client of registries (OCI distribution specification 1.1): manifests and blobs, with the token that is asked for.
//!
//! ```text
//!  request ──► 401 Bearer realm, service ──► token (with a password where there is one) ──► the request again
//!         └──► 401 Basic ─────────────────────────────────────────────────────────────────► the request again
//! ```
//! Nothing is believed but digests. A password goes to the registry's own host or to the token service that it names, and there only over TLS
//! (or on loopback); redirects get neither. `ureq` is what downloads here use already; the crate for registries brings another client
//! and another TLS.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::Deserialize;

use super::credentials::{self, Credential};
use super::model::{ACCEPT, Blob};
use super::name::{OciName, is_loopback};
use crate::digest::sha256_hex;
use crate::download::{self, Answer, Download, Source, failed};
use crate::progress::Context;
use crate::{Error, Result};

/// Largest answer of a token service.
const TOKEN_LIMIT: u64 = 1 << 20;

type Response = ureq::http::Response<ureq::Body>;

/// What the next request carries.
#[derive(Clone)]
struct Authorization(String);

/// A repository in a registry.
pub(crate) struct Registry<'a> {
    name: &'a OciName,
    agent: ureq::Agent,
    files: &'a [PathBuf],
    context: Context,
    actions: &'static str,
    authorization: Mutex<Option<Authorization>>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl<'a> Registry<'a> {
    /// Prepares a client; credentials come from the first of the files that has them.
    pub(crate) fn new(name: &'a OciName, files: &'a [PathBuf], context: &Context) -> Registry<'a> {
        Registry {
            name,
            agent: download::agent(),
            files,
            context: context.clone(),
            actions: "pull",
            authorization: Mutex::new(None),
        }
    }

    fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.name.base(), self.name.repository())
    }

    /// Gets a manifest by tag or digest: its bytes, and their SHA-256. A digest that was asked for is held.
    pub(crate) fn manifest(&self, wanted: &str, limit: u64) -> Result<(Vec<u8>, String)> {
        let url = self.url(&format!("manifests/{wanted}"));
        let response = self.send(&url, |agent| agent.get(&url).header("Accept", ACCEPT))?;
        let bytes = self.body(&url, response, limit)?;
        let actual = sha256_hex(&bytes);
        if let Some(expected) = wanted.strip_prefix("sha256:")
            && expected != actual
        {
            return Err(Error::Checksum {
                url,
                expected: expected.to_owned(),
                actual,
            });
        }
        Ok((bytes, actual))
    }

    /// Gets a small blob into memory.
    pub(crate) fn small(&self, blob: &Blob) -> Result<Vec<u8>> {
        let url = self.url(&format!("blobs/sha256:{}", blob.hex));
        let response = self.send(&url, |agent| agent.get(&url))?;
        let bytes = self.body(&url, response, blob.size)?;
        let actual = sha256_hex(&bytes);
        if actual != blob.hex {
            return Err(Error::Checksum {
                url,
                expected: blob.hex.clone(),
                actual,
            });
        }
        Ok(bytes)
    }

    /// Gets a blob into a directory, going on where an earlier try ended; gives its file.
    pub(crate) fn blob(&self, blob: &Blob, directory: &Path) -> Result<PathBuf> {
        let url = self.url(&format!("blobs/sha256:{}", blob.hex));
        let download = Download {
            url: &url,
            expected: &blob.hex,
            directory,
            size: Some(blob.size),
            source: Some(self),
        };
        download::fetch(&download, &self.context)
    }

    fn body(&self, url: &str, response: Response, limit: u64) -> Result<Vec<u8>> {
        if response.status() != 200 {
            return Err(refusal(url, response.status().as_u16()));
        }
        let mut bytes = Vec::new();
        response
            .into_body()
            .into_reader()
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|failure| failed(url, failure.to_string()))?;
        if bytes.len() as u64 > limit {
            return Err(failed(
                url,
                format!("it is larger than the {limit} bytes that were promised or are read"),
            ));
        }
        Ok(bytes)
    }

    /// Sends a request, and once more with what the registry asks for.
    fn send(
        &self,
        url: &str,
        request: impl Fn(&ureq::Agent) -> ureq::RequestBuilder<ureq::typestate::WithoutBody>,
    ) -> Result<Response> {
        let call = |authorization: Option<Authorization>| {
            let mut request = request(&self.agent);
            if let Some(Authorization(value)) = authorization {
                request = request.header("Authorization", value);
            }
            request
                .call()
                .map_err(|failure| failed(url, failure.to_string()))
        };
        let known = self
            .authorization
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone();
        let response = call(known)?;
        if response.status() != 401 {
            return Ok(response);
        }
        // Not asked yet, or a token has run out.
        let authorization = self.authorize(url, &response)?;
        *self
            .authorization
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(authorization.clone());
        call(Some(authorization))
    }

    fn authorize(&self, url: &str, response: &Response) -> Result<Authorization> {
        let challenges = response
            .headers()
            .get_all("www-authenticate")
            .iter()
            .filter_map(|value| value.to_str().ok());
        let challenges: Vec<Challenge> = challenges.filter_map(challenge).collect();
        let credential = credentials::find(self.files, self.name.host(), &self.context)?;
        if let Some(Challenge::Bearer { realm, service }) = challenges
            .iter()
            .find(|one| matches!(one, Challenge::Bearer { .. }))
        {
            return self.token(realm, service.as_deref(), credential);
        }
        match (challenges.contains(&Challenge::Basic), credential) {
            (true, Some(Credential::Password { user, password })) => Ok(basic(&user, &password)),
            _ => Err(denied(url, self.name.host())),
        }
    }

    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        credential: Option<Credential>,
    ) -> Result<Authorization> {
        let host = realm
            .strip_prefix("http://")
            .map(|rest| rest.split('/').next().unwrap_or_default());
        let allowed = realm.starts_with("https://")
            || host.is_some_and(|host| {
                is_loopback(host)
                    || (host == self.name.host() && self.name.base().starts_with("http:"))
            });
        if !allowed {
            return Err(failed(
                realm,
                "the registry names a token service without TLS",
            ));
        }
        let scope = format!("repository:{}:{}", self.name.repository(), self.actions);
        let result = match credential {
            Some(Credential::Token(token)) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("service", service.unwrap_or_default()),
                    ("client_id", "innkeeper"),
                    ("scope", &scope),
                    ("refresh_token", &token),
                ];
                self.agent.post(realm).send_form(form)
            }
            other => {
                let mut request = self.agent.get(realm).query("scope", &scope);
                if let Some(service) = service {
                    request = request.query("service", service);
                }
                if let Some(Credential::Password { user, password }) = other {
                    request = request.header("Authorization", basic(&user, &password).0);
                }
                request.call()
            }
        };
        let response = result.map_err(|failure| failed(realm, failure.to_string()))?;
        if matches!(response.status().as_u16(), 401 | 403) {
            return Err(denied(realm, self.name.host()));
        }
        let bytes = self.body(realm, response, TOKEN_LIMIT)?;
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|_| failed(realm, "its answer is not JSON"))?;
        let token = token
            .token
            .or(token.access_token)
            .filter(|token| is_token(token));
        Ok(Authorization(format!(
            "Bearer {}",
            token.ok_or_else(|| failed(realm, "its answer has no token"))?
        )))
    }
}

impl Source for Registry<'_> {
    fn open(&self, url: &str, have: u64, validator: Option<&str>) -> Result<Answer> {
        let response = self.send(url, |agent| download::get(agent, url, have, validator))?;
        match response.status().as_u16() {
            status @ (401 | 403) => Err(refusal(url, status)),
            _ => download::read_answer(url, have, response),
        }
    }
}

fn is_token(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
}

fn basic(user: &str, password: &str) -> Authorization {
    use base64::Engine;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    Authorization(format!("Basic {pair}"))
}

fn denied(url: &str, host: &str) -> Error {
    failed(
        url,
        format!(
            "the registry wants a user; log in with a tool that keeps credentials for {host} in its config.json, such as `docker login {host}`"
        ),
    )
}

fn refusal(url: &str, status: u16) -> Error {
    match status {
        404 => failed(url, "the registry does not have it"),
        401 | 403 => failed(url, "the registry refuses it to this user"),
        429 => failed(
            url,
            "the registry refuses further requests for now (status 429); try later, or log in",
        ),
        status => failed(url, format!("the registry answered with status {status}")),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

/// Reads `Bearer realm="…",service="…"` (RFC 9110, 11.6.1); other schemes are none.
pub(super) fn challenge(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match key.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            _ => {}
        }
        rest = after;
    }
    Some(Challenge::Bearer {
        realm: realm?,
        service,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let read = challenge(
            r#"Bearer realm="https://auth.example.org/token",service="r",scope="repository:a:pull,push""#,
        );
        let bearer = Challenge::Bearer {
            realm: "https://auth.example.org/token".into(),
            service: Some("r".into()),
        };
        assert_eq!(read, Some(bearer));
        assert_eq!(challenge(r#"Basic realm="x""#), Some(Challenge::Basic));
        for bad in [
            "",
            "Bearer",
            "Bearer realm=\"x",
            "Digest realm=\"x\"",
            "Bearer service=\"x\"",
        ] {
            assert_eq!(challenge(bad), None, "{bad}");
        }
    }
}
