//! Stands for a hypervisor that lives but can't be talked to: it can only be killed.

use std::sync::Arc;

use innkeeper_api::ErrorKind;

use crate::driver::{Channel, Driver, Machine};
use crate::error::{Error, Result};

/// Stands for a hypervisor that lives but can't be talked to: it can only be killed.
pub(super) struct Unreachable {
    pub driver: Arc<dyn Driver>,
    pub record: serde_json::Value,
}

#[async_trait::async_trait]
impl Machine for Unreachable {
    fn pid(&self) -> u32 {
        self.record
            .get("pid")
            .and_then(serde_json::Value::as_u64)
            .and_then(|pid| u32::try_from(pid).ok())
            .unwrap_or(0)
    }

    fn accel(&self) -> &str {
        ""
    }

    async fn power_button(&self) -> Result<()> {
        Err(Error::new(
            ErrorKind::Unreachable,
            "the hypervisor can't be reached",
        ))
    }

    async fn quit(&self) -> Result<()> {
        self.kill().await
    }

    async fn kill(&self) -> Result<()> {
        self.driver.kill_record(&self.record).await
    }

    async fn agent_channel(&self) -> Result<Box<dyn Channel>> {
        Err(Error::new(
            ErrorKind::Unreachable,
            "the hypervisor can't be reached",
        ))
    }
}
