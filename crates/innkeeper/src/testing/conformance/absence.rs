//! The trial of what a driver can't do: it must be refused, by the field that asks for it, before anything starts.

use innkeeper_api::{Capability, ErrorKind};

use super::context::{Context, refused};
use super::{Verdict, require};
use crate::driver::lacks;
use crate::progress::Silent;
use crate::spec::{
    self, Bytes, ConsoleSpec, DiskBus, DiskCache, DiskSpec, Firmware, ForwardSpec, MachineChoice,
    MemoryKind, NetworkKind, NetworkSpec, Protocol, ShareSpec, VmSpec, WatchdogAction,
};

/// Makes a spec ask for a capability; returns the field that asks. None where no field of a spec does.
pub(super) fn ask(
    spec: &mut VmSpec,
    capability: Capability,
    folder: &std::path::Path,
) -> Option<&'static str> {
    match capability {
        Capability::BootUefi => {
            no_kernel(spec);
            spec.boot.firmware = Some(Firmware::Uefi);
            Some("boot.firmware")
        }
        Capability::BootBios => {
            no_kernel(spec);
            spec.boot.firmware = Some(Firmware::Bios);
            Some("boot.firmware")
        }
        Capability::PinnedMachine => {
            spec.machine = MachineChoice::Named("no-such-machine-1.0".to_owned());
            Some("machine")
        }
        Capability::Disks => {
            spec.disks.push(DiskSpec {
                size: Some(Bytes::mib(1)),
                ..DiskSpec::named("extra")
            });
            Some("disks")
        }
        Capability::PortForward => {
            let forward = ForwardSpec {
                protocol: Protocol::Tcp,
                host_address: std::net::Ipv4Addr::LOCALHOST.into(),
                host_port: crate::engine::ports::free_port().ok()?,
                guest_port: 80,
            };
            spec.networks = vec![NetworkSpec {
                kind: NetworkKind::User,
                name: None,
                mac: None,
                forwards: vec![forward],
            }];
            Some("networks")
        }
        Capability::ShareVirtiofs => {
            spec.shares.push(ShareSpec {
                host: folder.to_owned(),
                guest: "/mnt".into(),
                read_only: true,
            });
            Some("shares")
        }
        Capability::SecureBoot => {
            no_kernel(spec);
            spec.boot.firmware = Some(Firmware::Uefi);
            spec.boot.secure_boot = true;
            Some("boot")
        }
        Capability::CpuHotplug => {
            spec.max_cpus = Some(spec.cpus + 1);
            Some("max_cpus")
        }
        Capability::MemoryHotplug => {
            spec.max_memory = Some(Bytes::new(spec.memory.get() * 2));
            Some("max_memory")
        }
        Capability::Balloon => {
            spec.memory_target = Some(spec.memory);
            Some("memory_target")
        }
        Capability::Nested => {
            spec.nested = true;
            Some("nested")
        }
        Capability::HugePages => {
            spec.memory_kind = MemoryKind::Huge;
            Some("memory_kind")
        }
        Capability::DiskNvme => {
            disk(spec).bus = DiskBus::Nvme;
            Some("disks.extra")
        }
        Capability::DiskUsb => {
            disk(spec).bus = DiskBus::Usb;
            Some("disks.extra")
        }
        Capability::DiskCache => {
            disk(spec).cache = DiskCache::None;
            Some("disks.extra")
        }
        Capability::DiskLimits => {
            disk(spec).limits.requests = Some(100);
            Some("disks.extra")
        }
        Capability::Drive => {
            spec.disks.push(DiskSpec {
                removable: true,
                read_only: true,
                ..DiskSpec::named("cd")
            });
            Some("disks.cd")
        }
        Capability::Consoles => {
            spec.consoles.push(ConsoleSpec {
                name: "second".to_owned(),
                log: false,
            });
            Some("consoles")
        }
        Capability::Tpm => {
            spec.tpm = true;
            Some("tpm")
        }
        Capability::Watchdog => {
            spec.watchdog = Some(WatchdogAction::Reset);
            Some("watchdog")
        }
        Capability::Vsock => {
            spec.vsock = true;
            Some("vsock")
        }
        _ => None,
    }
}

/// A small disk of the VM's own.
fn disk(spec: &mut VmSpec) -> &mut DiskSpec {
    let index = spec.disks.len();
    spec.disks.push(DiskSpec {
        size: Some(Bytes::mib(1)),
        ..DiskSpec::named("extra")
    });
    &mut spec.disks[index]
}

/// Firmware finds its own kernel: a spec that names both contradicts itself.
fn no_kernel(spec: &mut VmSpec) {
    spec.boot.kernel = None;
    spec.boot.initrd = None;
    spec.boot.cmdline = None;
}

pub(super) async fn what_a_driver_lacks_is_refused_by_its_field(context: &Context) -> Verdict {
    let report = context.report().await?;
    for capability in Capability::ALL {
        let told = report
            .capabilities
            .iter()
            .filter(|entry| entry.capability == *capability)
            .count();
        require!(told == 1, "{} is told {told} times", capability.as_str());
    }
    for (index, capability) in Capability::ALL.iter().enumerate() {
        let Some(why) = lacks(&report, *capability) else {
            continue;
        };
        require!(
            !why.is_empty(),
            "{} is lacking without a reason",
            capability.as_str()
        );
        let mut spec = context.spec();
        let Some(field) = ask(&mut spec, *capability, context.host.home()) else {
            continue;
        };
        let name = format!("asks-{index}");
        let created = context.host.create(&name, spec, &Silent).await;
        refused(
            &format!("asking for {}", capability.as_str()),
            created,
            ErrorKind::Unsupported,
            &[field],
        )?;
    }
    require!(
        context.host.list().await?.is_empty(),
        "something is left of what was refused"
    );
    // A machine type that nobody has is refused by every driver.
    let mut spec = context.spec();
    let field = ask(&mut spec, Capability::PinnedMachine, context.host.home()).unwrap_or_default();
    let created = context.host.create("unpinned", spec, &Silent).await;
    refused(
        "an unknown machine type",
        created,
        ErrorKind::Unsupported,
        &[field],
    )
}

/// A spec can be edited after its driver was chosen: what it asks for then is not left out silently.
pub(super) async fn what_a_driver_lacks_is_refused_at_start_after_an_edit(
    context: &Context,
) -> Verdict {
    let report = context.report().await?;
    let host = &context.host;
    for (index, capability) in Capability::ALL.iter().enumerate() {
        // A machine type is for life: changing it is refused for that reason.
        if lacks(&report, *capability).is_none() || *capability == Capability::PinnedMachine {
            continue;
        }
        let name = format!("edited-{index}");
        context.create(&name, context.spec()).await?;
        let text = host.spec_text(&name)?;
        let mut spec = spec::read(&text, "vm.yaml").map_err(crate::Error::from)?;
        if let Some(field) = ask(&mut spec, *capability, host.home()) {
            host.replace_spec(&name, &text, &spec::write(&spec)).await?;
            refused(
                &format!("starting what asks for {}", capability.as_str()),
                host.start(&name).await,
                ErrorKind::Unsupported,
                &[field],
            )?;
            let info = host.info(&name).await?;
            require!(info.vmm_pid.is_none(), "it runs all the same: {info:?}");
        }
        host.remove(&name, true).await?;
    }
    Ok(())
}
