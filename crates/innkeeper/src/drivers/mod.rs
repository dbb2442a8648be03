//! The hypervisors that Innkeeper knows, one module each. None of them imports the engine or the store.

pub mod qemu {
    //! stub
    #[derive(Default)] pub struct QemuOptions { pub path: Vec<std::path::PathBuf>, pub accel_override: Option<String>, pub cache: Option<std::path::PathBuf>, pub boot_id: String }
    pub struct QemuDriver; impl QemuDriver { pub fn new(_: QemuOptions) -> Self { QemuDriver } }
    use crate::driver::*; use crate::Result;
    #[async_trait::async_trait] impl Driver for QemuDriver {
        fn name(&self) -> &'static str { "qemu" }
        async fn probe(&self) -> innkeeper_api::DriverReport { loop {} }
        fn check(&self, _: &MachineConfig, _: &innkeeper_api::DriverReport) -> Vec<innkeeper_api::Unsupported> { vec![] }
        fn pin_machine(&self, _: Option<&str>, _: crate::spec::Arch, _: &innkeeper_api::DriverReport) -> Result<String> { loop {} }
        async fn launch(&self, _: &MachineConfig) -> Result<Running> { loop {} }
        async fn adopt(&self, _: &MachineConfig, _: &serde_json::Value) -> Result<Running> { loop {} }
        async fn kill_record(&self, _: &serde_json::Value) -> Result<()> { loop {} }
    }
}
