//! Machines that come in from other products, and those that go out.

use std::path::Path;

use innkeeper_api::VmInfo;

use crate::engine::{ExportForm, Exported, ImportOptions, ImportPlan};
use crate::error::Result;
use crate::host::Host;
use crate::progress::Progress;

impl Host {
    /// Tells what [`Host::import`] would do: what maps, what does not and why.
    pub async fn plan_import(&self, path: &Path, options: &ImportOptions) -> Result<ImportPlan> {
        self.engine.plan_import(path, options).await
    }

    /// Makes a VM of a machine of another product, with its disks. It exists when this returns, or nothing of it does.
    pub async fn import(
        &self,
        path: &Path,
        options: &ImportOptions,
        progress: &dyn Progress,
    ) -> Result<VmInfo> {
        self.engine.import_machine(path, options, progress).await
    }

    /// Takes a stopped VM out as the new file `to`: all of it, or one disk, which `disk` names (the first if none is given).
    pub async fn export(
        &self,
        name: &str,
        to: &Path,
        form: ExportForm,
        disk: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Exported> {
        self.engine.export(name, to, form, disk, progress).await
    }
}
