//! The systemd unit of the agent, for seeds and packages to install.

/// Name of the virtio-serial port that the agent serves.
pub const PORT_NAME: &str = "org.innkeeper.agent.0";
/// vsock port on which the agent listens for its host where there is no such port: below 1024, so that it is root's.
pub const VSOCK_PORT: u32 = 1021;
/// Where a seed puts the agent's binary in a full guest.
pub const AGENT_PATH: &str = "/usr/local/sbin/inn-agent";
/// File name of the unit.
pub const UNIT_NAME: &str = "inn-agent.service";
/// Text of the unit. `KillMode=process` spares what exec sessions left running when the agent itself is restarted.
pub const UNIT_TEXT: &str = "\
[Unit]
Description=Innkeeper guest agent
Documentation=man:inn-agent(8)
DefaultDependencies=no
After=local-fs.target
Before=shutdown.target
Conflicts=shutdown.target

[Service]
ExecStart=/usr/local/sbin/inn-agent
Restart=always
RestartSec=1
KillMode=process
OOMScoreAdjust=-900

[Install]
WantedBy=multi-user.target
";
