//! One list of trials that every driver must pass, whatever hypervisor is behind it.
//!
//! A trial says what it needs: capabilities of the driver, and parts that the guest at hand has. What a driver says it lacks is tried as
//! well: it must be refused before anything starts. Each trial gets an installation of its own; a test harness runs it, looks at what it
//! left ([`super::traces`]) and writes down what came of it ([`super::matrix`]).
//!
//! Nothing here sleeps for luck: every wait is for a condition and has a deadline.

mod absence;
mod bounds;
mod changes;
mod consoles;
mod context;
mod devices;
mod firmware;
mod guests;
mod inside;
mod keepers;
mod lifecycle;
mod lifetime;
mod many;
mod pausing;
mod saved;
mod saving;
mod saving_failures;
mod saving_races;
mod seen;
mod shares;
mod snapshots;
mod vsock;

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use innkeeper_api::{Capability, DriverReport};

use crate::driver::lacks;

pub use context::{Context, Open, Setup};
pub use guests::{Act, FakeGuest, Guest, Part, PvhGuest, TinyGuest, Word};

/// What a trial needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The driver can do this.
    Can(Capability),
    /// The driver can't do this.
    Lacks(Capability),
    /// The guest at hand has this.
    Has(Part),
    /// The guest at hand can be told this by its kernel's command line.
    Says(Word),
    /// The guest at hand can be made to do this.
    Does(Act),
}

/// Why a trial was not passed.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// Makes a failure of one sentence.
    pub fn new(message: impl Into<String>) -> Self {
        Failure(message.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<crate::Error> for Failure {
    fn from(error: crate::Error) -> Self {
        Failure(format!("{:?}: {}", error.kind(), error.chain().join(": ")))
    }
}

impl From<crate::guest::GuestError> for Failure {
    fn from(error: crate::guest::GuestError) -> Self {
        Failure::from(crate::Error::from(error))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure(error.to_string())
    }
}

/// What comes of a trial.
pub type Verdict<T = ()> = Result<T, Failure>;

type Run = for<'a> fn(&'a Context) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;

/// One thing that every driver must do right.
pub struct Trial {
    /// Its name, stable.
    pub name: &'static str,
    /// What it needs.
    pub needs: &'static [Need],
    run: Run,
}

impl Trial {
    /// Runs it.
    pub async fn run(&self, context: &Context) -> Verdict {
        (self.run)(context).await
    }

    /// Tells why it can't be run with this driver and guest; none if it can.
    pub fn lacking(&self, report: &DriverReport, guest: &dyn Guest) -> Option<String> {
        self.needs.iter().find_map(|need| match need {
            Need::Can(capability) => lacks(report, *capability)
                .map(|why| format!("the driver can't do {}: {why}", capability.as_str())),
            Need::Lacks(capability) => lacks(report, *capability)
                .is_none()
                .then(|| format!("the driver can do {}", capability.as_str())),
            Need::Has(part) => guest.has(*part).err(),
            Need::Says(word) => guest
                .words(*word)
                .is_none()
                .then(|| format!("this guest can't be told to be {word:?}")),
            Need::Does(act) => guest.can(*act).err(),
        })
    }
}

/// Fails the trial unless a condition holds.
macro_rules! require {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::testing::conformance::Failure::new(format!($($message)+)));
        }
    };
}
use require;

macro_rules! trials {
    ($($module:ident :: $name:ident [$($need:expr),* $(,)?],)+) => {
        &[$(Trial {
            name: stringify!($name),
            needs: &[$($need),*],
            run: |context| Box::pin($module::$name(context)),
        },)+]
    };
}

use Act::{Exit, Hang, LetGo, Mute, Panic, PowerOff, Reboot};
use Capability as C;
use Need::{Can, Does, Has, Lacks, Says};
use Part::{Agent, Console, Echo, Memory, Mounts, Network, Processes, Processor, System};
use Word::{
    ButtonOnly, Deaf, FailingLaunch, FailingRestore, FailingResume, FailingSave, Grips, LockedTray,
    NoButton, SlowLaunch, SlowRestore, SlowSave,
};

/// Every trial.
pub const TRIALS: &[Trial] = trials![
    lifecycle::starts_stops_and_starts_again [Can(C::BootDirect), Can(C::AgentChannel), Has(Agent)],
    lifecycle::a_second_start_is_already_so [],
    lifecycle::of_two_starts_at_once_one_wins [],
    lifecycle::a_stopped_vm_is_stopped_and_killed_already [],
    lifecycle::two_kills_at_once_both_succeed [],
    lifecycle::stops_by_the_agent_and_says_so [Has(Agent)],
    lifecycle::stops_by_the_power_button_and_says_so [Can(C::PowerButton), Says(ButtonOnly)],
    lifecycle::a_stop_waits_for_an_agent_that_is_still_coming [Says(NoButton), Has(Agent)],
    lifecycle::a_stop_that_times_out_leaves_it_running [Says(Deaf)],
    lifecycle::a_forced_stop_kills_after_its_timeout [Says(Deaf)],
    lifecycle::a_kill_ends_a_launch [Says(SlowLaunch)],
    lifecycle::a_failed_launch_is_told_and_can_be_mended [Says(FailingLaunch)],
    lifecycle::a_stop_that_races_a_start_leaves_order [],
    lifecycle::restarts [Has(Agent)],
    lifecycle::a_restart_starts_what_is_stopped [],
    lifecycle::a_restart_that_cannot_start_is_told [Says(FailingLaunch), Has(Agent)],
    lifecycle::a_reboot_of_the_guest_keeps_it_running [Can(C::RebootTold), Does(Reboot), Has(Agent)],
    lifecycle::a_guest_that_powers_off_is_stopped [Can(C::ShutdownTold), Does(PowerOff)],
    lifecycle::a_panic_is_told_and_nothing_is_killed [Does(Panic)],
    lifecycle::a_hypervisor_that_ends_is_failed_with_its_last_words [Does(Exit)],
    lifecycle::a_killed_hypervisor_is_failed_with_the_signal [],
    lifecycle::every_change_of_state_is_told_in_order [Has(Agent)],
    lifecycle::ready_none_is_ready_at_once [],
    lifecycle::ready_by_a_serial_marker [Can(C::SerialLog), Has(Console)],
    lifecycle::futures_dropped_midway_leave_order [],
    many::twenty_rounds_leave_nothing [Has(Agent)],
    many::ten_at_once_start_and_stop [Has(Agent)],
    keepers::a_killed_keeper_is_replaced_and_nothing_stops [Can(C::Adoption)],
    keepers::a_terminated_keeper_leaves_its_vm_running [Can(C::Adoption)],
    keepers::a_terminated_keeper_stops_a_vm_that_lacks_adoption [Lacks(C::Adoption)],
    keepers::a_command_outlives_the_keeper [Can(C::Adoption), Has(Agent)],
    keepers::stops_after_the_keeper_was_killed [Can(C::Adoption), Has(Agent)],
    keepers::a_hypervisor_killed_without_a_keeper_is_failed [Can(C::Adoption)],
    keepers::starts_at_once_after_all_was_killed [],
    keepers::a_power_off_without_a_keeper_is_stopped [Can(C::Adoption), Can(C::ShutdownTold), Does(PowerOff)],
    keepers::a_restart_of_the_computer_is_stopped [],
    keepers::a_silent_agent_is_told_and_nothing_is_killed [Does(Mute), Has(Agent)],
    keepers::a_hypervisor_that_hangs_is_told_stale_and_can_be_killed [Can(C::Adoption), Does(Hang)],
    keepers::a_vm_is_removed_after_its_keeper_was_killed [Can(C::Adoption)],
    changes::a_running_vm_is_removed_by_force_only [],
    changes::a_protected_vm_is_not_removed [],
    changes::renames_what_is_stopped [],
    changes::a_spec_changed_while_it_runs_is_applied_at_the_next_start [Has(Agent)],
    changes::a_spec_edited_by_hand_is_told [],
    changes::a_name_is_taken_once [],
    changes::bad_input_is_refused_and_leaves_nothing [],
    changes::a_cancelled_create_leaves_nothing [],
    changes::two_creates_at_once_make_one_vm [],
    changes::a_port_in_use_is_told_before_anything_starts [Can(C::PortForward), Has(Network)],
    lifetime::a_vm_ends_after_its_time_to_live [Has(System)],
    lifetime::a_paused_vm_ends_after_its_time_to_live [Can(C::Pause)],
    lifetime::a_time_to_live_that_was_added_holds_at_once [Has(System)],
    lifetime::an_adopted_vm_ends_after_its_time_to_live [Has(System), Can(C::Adoption)],
    lifetime::a_vm_whose_time_passed_without_a_keeper_ends_when_one_comes [Has(System), Can(C::Adoption)],
    absence::what_a_driver_lacks_is_refused_by_its_field [],
    absence::what_a_driver_lacks_is_refused_at_start_after_an_edit [],
    consoles::consoles_say_back_what_is_typed [Can(C::Consoles), Has(Echo), Has(Agent)],
    consoles::a_second_client_of_a_console_replaces_the_first [Can(C::Consoles), Can(C::Adoption), Has(Echo), Has(Agent)],
    consoles::a_console_that_is_not_there_is_refused [Can(C::Consoles)],
    inside::commands_give_their_codes [Can(C::AgentChannel), Has(Agent)],
    inside::ten_megabytes_pass_through_a_command_whole [Has(Agent)],
    inside::a_copy_does_not_starve_a_command [Has(Agent)],
    inside::copies_keep_modes_times_and_links [Has(Agent)],
    inside::addresses_are_known [Can(C::NetworkUser), Can(C::NetworkAddresses), Has(Agent), Has(Network)],
    inside::a_guest_asks_its_network_for_addresses [Can(C::NetworkUser), Has(Agent), Has(Network), Has(Processes)],
    inside::the_console_is_in_the_serial_log [Can(C::SerialLog), Has(Console), Has(Agent)],
    inside::forwards_reach_the_guest [Can(C::PortForward), Has(Network), Has(Agent)],
    inside::figures_are_sane [Can(C::BlockStatistics), Has(Agent)],
    inside::a_data_disk_is_mounted_and_kept [Can(C::Disks), Has(Mounts), Has(Agent)],
    vsock::vsock_reaches_programs_of_the_guest [Can(C::Vsock), Has(Agent)],
    vsock::the_guest_reaches_programs_of_the_host_by_vsock [Can(C::Vsock), Has(Agent)],
    pausing::pauses_and_resumes [Can(C::Pause)],
    pausing::a_second_pause_or_resume_is_already_so [Can(C::Pause)],
    pausing::what_a_paused_vm_cannot_do_is_refused [Can(C::Pause)],
    pausing::a_paused_guest_stands_still_and_goes_on [Can(C::Pause), Has(Processes), Has(Agent)],
    pausing::a_command_in_a_paused_guest_is_refused_at_once [Can(C::Pause), Has(Agent)],
    pausing::a_paused_vm_is_adopted_paused [Can(C::Pause), Can(C::Adoption)],
    pausing::the_clock_is_right_after_a_pause [Can(C::Pause), Has(Processes), Has(Agent)],
    pausing::what_a_driver_lacks_of_a_running_vm_is_refused [],
    saving::comes_back_with_its_memory [Has(Memory), Can(C::Suspend)],
    saving::a_command_right_after_a_start_from_a_suspend [Can(C::Suspend), Has(Agent)],
    saving::suspends_twice_in_a_row [Has(Memory), Can(C::Suspend)],
    saving::a_paused_vm_is_suspended [Has(Memory), Can(C::Suspend), Can(C::Pause)],
    saving::a_running_command_goes_on_after_a_suspend [Can(C::Suspend), Has(Processes), Has(Agent)],
    saving::a_connection_in_the_guest_goes_on_after_a_suspend [Can(C::Suspend), Has(Processes), Has(Agent)],
    saving::disk_and_memory_are_of_one_moment [Can(C::Suspend), Can(C::Disks), Has(Mounts), Has(Processes), Has(Agent)],
    saving::the_clock_is_right_after_a_suspend [Can(C::Suspend), Has(Processes), Has(Agent)],
    saved::a_suspended_vm_refuses_what_would_lose_it [Has(Memory), Can(C::Suspend)],
    saved::what_was_saved_is_discarded_on_request_only [Has(Memory), Can(C::Suspend)],
    saved::a_spec_changed_while_suspended_waits_for_a_new_boot [Has(Memory), Can(C::Suspend)],
    saved::a_disk_written_while_suspended_refuses_to_go_on [Has(Memory), Can(C::Suspend), Can(C::Disks)],
    saved::what_a_newer_hypervisor_saved_is_refused [Has(Memory), Can(C::Suspend)],
    saved::a_suspended_vm_outlives_a_restart_of_the_computer [Has(Memory), Can(C::Suspend)],
    saving_failures::a_failed_restore_can_be_tried_again [Has(Memory), Can(C::Suspend), Says(FailingRestore)],
    saving_failures::a_refused_resume_after_a_restore_loses_nothing [Has(Memory), Can(C::Suspend), Says(FailingResume)],
    saving_failures::a_kill_ends_a_restore_and_it_stays_suspended [Has(Memory), Can(C::Suspend), Says(SlowRestore)],
    saving_failures::a_failed_suspend_lets_it_run_on [Has(Memory), Can(C::Suspend), Can(C::Pause), Says(FailingSave)],
    saving_failures::a_kill_ends_a_suspend [Has(Memory), Can(C::Suspend), Says(SlowSave)],
    saving_failures::a_resume_breaks_a_suspend_off [Has(Memory), Can(C::Suspend), Says(SlowSave)],
    saving_failures::a_hypervisor_killed_while_it_saves_is_failed [Has(Memory), Can(C::Suspend), Says(SlowSave)],
    saving_failures::a_keeper_killed_while_it_saves_leaves_it_paused [Has(Memory), Can(C::Suspend), Can(C::Adoption), Says(SlowSave)],
    saving_races::a_resume_that_races_a_suspend_leaves_order [Has(Memory), Can(C::Suspend)],
    saving_races::suspends_and_starts_dropped_midway_leave_order [Has(Memory), Can(C::Suspend)],
    saving_races::of_two_suspends_at_once_both_tell_the_truth [Has(Memory), Can(C::Suspend)],
    saving_races::a_suspend_and_a_start_tell_every_change [Has(Memory), Can(C::Suspend)],
    snapshots::a_snapshot_is_gone_back_to_and_what_was_is_a_branch [Can(C::Disks), Has(Mounts), Has(Agent)],
    snapshots::a_snapshot_holds_the_memory_of_a_suspended_vm [Has(Memory), Has(Processes), Can(C::Suspend)],
    snapshots::a_running_vm_is_not_changed_behind_its_back [],
    snapshots::a_clone_is_another_vm_and_keeps_its_origin [Can(C::Disks), Has(Mounts), Has(Agent)],
    devices::a_disk_is_attached_and_detached_twice [Has(System), Can(C::DiskHotplug)],
    devices::an_attached_disk_outlives_the_keeper [Has(System), Can(C::DiskHotplug), Can(C::Adoption)],
    devices::a_disk_that_the_guest_holds_goes_when_it_lets_go [Can(C::DiskHotplug), Says(Grips), Does(LetGo)],
    devices::a_guest_that_does_not_let_go_is_told_in_time [Can(C::DiskHotplug), Says(Grips), Does(LetGo)],
    devices::a_medium_is_inserted_changed_and_ejected [Can(C::Drive)],
    devices::a_locked_tray_is_told_and_the_spec_is_as_before [Can(C::Drive), Says(LockedTray)],
    devices::an_interface_is_attached_and_detached [Can(C::NetworkHotplug)],
    devices::cpus_are_given_while_it_runs [Can(C::CpuHotplug)],
    devices::memory_is_given_while_it_runs [Can(C::MemoryHotplug)],
    devices::a_balloon_takes_a_new_target [Can(C::Balloon)],
    devices::what_was_given_comes_back_after_a_suspend [Has(Memory), Can(C::CpuHotplug), Can(C::Suspend)],
    devices::a_change_of_what_stands_still_is_refused [Can(C::Pause)],
    seen::cpus_that_were_given_are_used_and_come_back [Can(C::CpuHotplug), Can(C::Suspend), Has(Processes), Has(Agent)],
    seen::memory_that_was_given_is_used_and_comes_back [Can(C::MemoryHotplug), Can(C::Suspend), Has(Processes), Has(Agent)],
    seen::what_lies_in_a_drive_is_what_the_guest_reads [Can(C::Drive), Has(Processes), Has(Agent)],
    seen::a_tpm_keeps_its_registers_over_a_suspend [Can(C::Tpm), Can(C::Suspend), Has(Processes), Has(Agent)],
    seen::a_tpm_asked_for_later_is_there_or_refused [Can(C::Tpm), Has(Processes), Has(Agent)],
    seen::the_cache_of_a_disk_is_as_chosen [Can(C::DiskCache), Can(C::Disks), Has(Processes), Has(Agent)],
    seen::random_numbers_come_from_the_host [Can(C::Entropy), Has(Processes), Has(Agent)],
    seen::a_machine_is_what_it_was_pinned_to [Can(C::PinnedMachine), Can(C::BootBios), Has(Processes), Has(Agent)],
    seen::a_starved_watchdog_powers_off [Can(C::Watchdog), Can(C::BootBios), Has(Processor)],
    firmware::bios_boots_a_disk [Can(C::BootBios), Can(C::Disks), Can(C::SerialLog), Has(Processor)],
    firmware::bios_boots_an_nvme_disk [Can(C::BootBios), Can(C::DiskNvme), Has(Processor)],
    firmware::bios_boots_a_usb_disk [Can(C::BootBios), Can(C::DiskUsb), Has(Processor)],
    firmware::vms_of_one_image_write_beside_it [Can(C::BootBios), Can(C::DiskQcow2), Has(Processor)],
    firmware::uefi_boots_a_disk [Can(C::BootUefi), Can(C::Disks), Has(Processor)],
    firmware::secure_boot_refuses_an_unsigned_program [Can(C::SecureBoot), Can(C::BootUefi), Has(Processor)],
    bounds::a_limited_disk_is_held_to_its_requests [Can(C::DiskLimits), Has(Processes), Has(Agent)],
    bounds::only_what_is_not_for_an_agent_reaches_out [Can(C::NetworkUser), Can(C::NetworkClosed), Can(C::PortForward), Has(Network), Has(Processes), Has(Agent)],
    bounds::its_hypervisor_has_little_to_give [Can(C::Sandbox)],
    shares::folders_are_read_and_written_and_outlive_a_restart [Can(C::ShareVirtiofs), Can(C::Adoption), Has(Mounts), Has(Agent)],
    shares::a_dead_virtiofsd_is_told_and_the_vm_lives [Can(C::ShareVirtiofs), Has(Mounts), Has(Agent)],
    shares::folders_leave_for_a_suspend_and_come_back [Can(C::ShareVirtiofs), Can(C::Suspend), Can(C::Adoption), Has(Mounts), Has(Agent)],
    shares::a_suspend_names_what_uses_a_folder [Can(C::ShareVirtiofs), Can(C::Suspend), Has(Mounts), Has(Agent)],
    shares::a_paused_vm_with_folders_is_not_suspended [Can(C::ShareVirtiofs), Can(C::Suspend), Can(C::Pause), Has(Mounts), Has(Agent)],
    shares::folders_come_back_whenever_the_keeper_dies [Can(C::ShareVirtiofs), Can(C::Suspend), Can(C::Adoption), Has(Mounts), Has(Agent)],
    shares::a_suspend_that_fails_gives_folders_back [Can(C::ShareVirtiofs), Can(C::Suspend), Has(Mounts), Has(Agent)],
    devices::an_obstacle_to_a_suspend_is_named_and_it_runs_on [Can(C::Suspend), Can(C::ShareVirtiofs), Says(ButtonOnly)],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = TRIALS.iter().map(|trial| trial.name).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before);
    }
}
