//! A VM's identifier as the UUID that its guest sees.

use innkeeper_api::ErrorKind;

use crate::error::{Error, Result};

/// Writes 32 hexadecimal digits as a UUID.
pub(super) fn uuid(id: &str) -> Result<String> {
    if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Error::new(
            ErrorKind::BadInput,
            format!("the VM's id {id:?} is not 32 hexadecimal digits"),
        ));
    }
    Ok(format!(
        "{}-{}-{}-{}-{}",
        &id[..8],
        &id[8..12],
        &id[12..16],
        &id[16..20],
        &id[20..]
    ))
}
