//! Wire types of Innkeeper: what a keeper, the REST API, the MCP server and the web page say to each other.
//!
//! Only shapes live here: serde and schema derives, no logic, no IO. A field that a peer does not know is ignored when it is
//! read, so that an older reader keeps working; a word that it does not know is an error that names it.

mod driver;
mod event;
mod network;
mod problem;
mod requests;
mod vm;

pub use driver::{Capability, CapabilityReport, DriverReport, HostReport, Need, Unsupported};
pub use event::{Event, EventKind};
pub use network::{LinkShape, NetworkInfo, NetworkPort, PortRequest, ShapeRequest};
pub use problem::{ErrorKind, Problem};
pub use requests::{
    Accepted, Admission, ApplyOutcome, ApplyRequest, KillRequest, Later, PauseRequest,
    RestartRequest, ResumeRequest, StartRequest, StopOutcome, StopRequest, StoppedBy,
    SuspendRequest,
};
pub use vm::{
    AgentInfo, AgentState, DiskInfo, ForwardInfo, NicInfo, ShareInfo, ShareState, SshInfo, VmInfo,
    VmState, VmStats,
};
