//! Trials of creating, removing, renaming and changing.

use std::net::TcpListener;
use std::time::Duration;

use innkeeper_api::{ErrorKind, VmState};

use super::context::{Context, refused};
use super::{Verdict, require};
use crate::progress::Silent;
use crate::spec::{Bytes, ForwardSpec, NetworkKind, NetworkSpec, Protocol};

pub(super) async fn a_running_vm_is_removed_by_force_only(context: &Context) -> Verdict {
    let before = context.running("busy").await?;
    refused(
        "removing a running VM",
        context.host.remove("busy", false).await,
        ErrorKind::Conflict,
        &["busy", "running"],
    )?;
    let after = context.host.info("busy").await?;
    require!(
        after.vmm_pid == before.vmm_pid,
        "the refused removal changed the hypervisor"
    );
    context.host.remove("busy", true).await?;
    refused(
        "looking at a removed VM",
        context.host.info("busy").await,
        ErrorKind::NotFound,
        &["busy"],
    )?;
    require!(
        context.host.list().await?.is_empty(),
        "the list tells of a removed VM"
    );
    refused(
        "removing it again",
        context.host.remove("busy", true).await,
        ErrorKind::NotFound,
        &["busy"],
    )
}

pub(super) async fn a_protected_vm_is_not_removed(context: &Context) -> Verdict {
    context.create("dear", context.spec()).await?;
    context.host.protect("dear", true).await?;
    for force in [false, true] {
        refused(
            "removing a protected VM",
            context.host.remove("dear", force).await,
            ErrorKind::Conflict,
            &["protected"],
        )?;
    }
    let running = context.start("dear").await?;
    refused(
        "removing it by force while it runs",
        context.host.remove("dear", true).await,
        ErrorKind::Conflict,
        &["protected"],
    )?;
    let info = context.host.info("dear").await?;
    require!(
        info.protected && info.vmm_pid == running.vmm_pid,
        "the refused removal had an effect: {info:?}"
    );
    context.host.protect("dear", false).await?;
    context.host.remove("dear", true).await?;
    Ok(())
}

pub(super) async fn renames_what_is_stopped(context: &Context) -> Verdict {
    let created = context.create("old", context.spec()).await?;
    context.create("other", context.spec()).await?;
    refused(
        "a name that is taken",
        context.host.rename("old", "other").await,
        ErrorKind::Conflict,
        &["other"],
    )?;
    refused(
        "a bad name",
        context.host.rename("old", "../old").await,
        ErrorKind::BadInput,
        &[],
    )?;
    context.start("old").await?;
    refused(
        "renaming what runs",
        context.host.rename("old", "new").await,
        ErrorKind::Conflict,
        &["old"],
    )?;
    context.host.kill("old").await?;
    context.host.rename("old", "new").await?;
    refused(
        "the name before",
        context.host.info("old").await,
        ErrorKind::NotFound,
        &["old"],
    )?;
    let info = context.start("new").await?;
    require!(info.id == created.id, "a rename changed the identifier");
    context.host.kill("new").await?;
    Ok(())
}

pub(super) async fn a_spec_changed_while_it_runs_is_applied_at_the_next_start(
    context: &Context,
) -> Verdict {
    let mut spec = context.spec();
    spec.cpus = 1;
    context.create("grows", spec).await?;
    context.start_ready("grows").await?;
    let edit = [("cpus".to_owned(), Some("2".to_owned()))];
    let dry = context.host.set("grows", &edit, true).await?;
    require!(dry.changed == ["cpus"], "the dry run tells {dry:?}");
    let info = context.host.info("grows").await?;
    require!(
        info.restart_required.is_empty(),
        "the dry run had an effect"
    );
    let change = context.host.set("grows", &edit, false).await?;
    require!(
        change.restart_required == ["cpus"],
        "the change tells {change:?}"
    );
    let info = context.host.info("grows").await?;
    require!(
        info.cpus == 1 && info.restart_required == ["cpus"],
        "it tells {} CPUs, {:?}",
        info.cpus,
        info.restart_required
    );
    context.host.restart("grows", context.gently()).await?;
    let info = context.wait_ready("grows").await?;
    require!(
        info.cpus == 2 && info.restart_required.is_empty(),
        "it tells {} CPUs, {:?}",
        info.cpus,
        info.restart_required
    );
    context.host.kill("grows").await?;
    Ok(())
}

pub(super) async fn a_spec_edited_by_hand_is_told(context: &Context) -> Verdict {
    let name = "edited";
    let mut spec = context.spec();
    spec.cpus = 1;
    context.create(name, spec).await?;
    let before = context.start(name).await?;
    require!(
        before.restart_required.is_empty() && before.spec_problem.is_none(),
        "before any edit it tells {:?}, {:?}",
        before.restart_required,
        before.spec_problem
    );
    let file = std::path::Path::new(&before.directory).join("vm.yaml");
    let text = std::fs::read_to_string(&file)?;
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("cpus:"))
        .collect();
    std::fs::write(&file, format!("{}\ncpus: 2\n", lines.join("\n")))?;
    let info = context.host.info(name).await?;
    require!(
        info.restart_required == ["cpus"] && info.cpus == 1,
        "after an edit by hand it tells {} CPUs, {:?}",
        info.cpus,
        info.restart_required
    );
    // What can't be read is told, and neither the VM nor whoever looks at it fails by it.
    std::fs::write(&file, "cpus: [\n")?;
    let info = context.host.info(name).await?;
    require!(
        info.vmm_pid == before.vmm_pid
            && matches!(info.state, VmState::Running | VmState::Ready)
            && info
                .spec_problem
                .as_ref()
                .is_some_and(|problem| problem.contains("vm.yaml")),
        "with a spoilt spec it is {} and tells {:?}",
        info.state,
        info.spec_problem
    );
    std::fs::write(&file, &text)?;
    let info = context.host.info(name).await?;
    require!(
        info.restart_required.is_empty() && info.spec_problem.is_none(),
        "with its first spec again it tells {:?}, {:?}",
        info.restart_required,
        info.spec_problem
    );
    context.host.kill(name).await?;
    Ok(())
}

pub(super) async fn a_name_is_taken_once(context: &Context) -> Verdict {
    let first = context.create("mine", context.spec()).await?;
    let second = context.host.create("mine", context.spec(), &Silent).await;
    refused(
        "a second VM of that name",
        second,
        ErrorKind::Conflict,
        &["mine"],
    )?;
    refused(
        "its plan",
        context.host.plan_create("mine", &context.spec()).await,
        ErrorKind::Conflict,
        &["mine"],
    )?;
    let info = context.host.info("mine").await?;
    require!(
        info.id == first.id,
        "the second create changed the first VM"
    );
    Ok(())
}

pub(super) async fn bad_input_is_refused_and_leaves_nothing(context: &Context) -> Verdict {
    for name in ["", "a/b", "..", ".hidden", "a b", "ä", "-dash"] {
        let created = context.host.create(name, context.spec(), &Silent).await;
        refused(
            &format!("the name {name:?}"),
            created,
            ErrorKind::BadInput,
            &[],
        )?;
        refused(
            &format!("info of {name:?}"),
            context.host.info(name).await,
            ErrorKind::BadInput,
            &[],
        )?;
    }
    let mut spec = context.spec();
    spec.memory = Bytes::gib(1 << 20);
    refused(
        "a PiB of memory",
        context.host.create("vast", spec, &Silent).await,
        ErrorKind::BadInput,
        &["memory"],
    )?;
    let mut spec = context.spec();
    spec.boot.kernel = Some("/no/such/kernel".into());
    refused(
        "a kernel that is not there",
        context.host.create("headless", spec, &Silent).await,
        ErrorKind::BadInput,
        &["/no/such/kernel"],
    )?;
    let mut spec = context.spec();
    spec.image = Some("debain:12".to_owned());
    refused(
        "an unknown image",
        context.host.create("typo", spec, &Silent).await,
        ErrorKind::NotFound,
        &["debain:12"],
    )?;
    require!(
        context.host.list().await?.is_empty(),
        "something is left of what was refused"
    );
    Ok(())
}

pub(super) async fn a_cancelled_create_leaves_nothing(context: &Context) -> Verdict {
    let files = || {
        std::fs::read_dir(context.host.home().join("vms")).map(|entries| entries.flatten().count())
    };
    for microseconds in [0, 50, 200, 500, 1000, 2000, 4000, 8000, 16000] {
        let create = context.host.create("never", context.spec(), &Silent);
        match tokio::time::timeout(Duration::from_micros(microseconds), create).await {
            Ok(created) => {
                created?;
                context.host.remove("never", false).await?;
            }
            Err(_) => {
                let left = files()?;
                require!(
                    left == 0,
                    "{left} entries are left of a create that was cancelled after {microseconds} us"
                );
                require!(
                    context.host.list().await?.is_empty(),
                    "a cancelled create is listed"
                );
            }
        }
    }
    context.create("never", context.spec()).await.map(drop)
}

pub(super) async fn two_creates_at_once_make_one_vm(context: &Context) -> Verdict {
    let create = || context.host.create("single", context.spec(), &Silent);
    let (one, other) = tokio::join!(create(), create());
    let info = match (one, other) {
        (Ok(info), Err(refusal)) | (Err(refusal), Ok(info)) => {
            refused::<()>(
                "the second create",
                Err(refusal),
                ErrorKind::Conflict,
                &["single"],
            )?;
            info
        }
        (Ok(_), Ok(_)) => return Err(super::Failure::new("both creates succeeded")),
        (Err(one), Err(_)) => return Err(one.into()),
    };
    let listed = context.host.list().await?;
    require!(
        listed.len() == 1 && listed[0].id == info.id,
        "the list tells {listed:?}"
    );
    Ok(())
}

pub(super) async fn a_port_in_use_is_told_before_anything_starts(context: &Context) -> Verdict {
    let held = TcpListener::bind("127.0.0.1:0")?;
    let address = held.local_addr()?;
    let mut spec = context.spec();
    spec.networks = vec![NetworkSpec {
        kind: NetworkKind::User,
        name: None,
        mac: None,
        forwards: vec![ForwardSpec {
            protocol: Protocol::Tcp,
            host_address: address.ip(),
            host_port: address.port(),
            guest_port: 80,
        }],
    }];
    let port = address.port().to_string();
    refused(
        "a create with a port in use",
        context.host.create("taken", spec.clone(), &Silent).await,
        ErrorKind::Conflict,
        &[&port],
    )?;
    drop(held);
    context.create("taken", spec).await?;
    let held = TcpListener::bind(address)?;
    refused(
        "a start with a port in use",
        context.host.start("taken").await,
        ErrorKind::Conflict,
        &[&port],
    )?;
    let info = context.host.info("taken").await?;
    require!(
        info.vmm_pid.is_none() && !matches!(info.state, VmState::Running | VmState::Ready),
        "it is {}",
        info.state
    );
    drop(held);
    context.start("taken").await?;
    context.host.kill("taken").await?;
    Ok(())
}
