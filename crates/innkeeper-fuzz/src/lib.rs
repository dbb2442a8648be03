//! The fuzz targets' bodies: each takes any bytes, and panics only where the parser under it is wrong.
//!
//! ```text
//!  fuzz/fuzz_targets/NAME.rs (libFuzzer) ──► TARGETS[NAME] ◄── tests/seeds.rs (replays fuzz/seeds/NAME on stable Rust)
//! ```
//! Where more than "does not panic" holds, the body asserts it: what is read and written again reads the same, nothing is written
//! outside a directory, memory stays within what the parser promises.

mod agent;
mod image;
mod import;
mod net;
mod spec;

/// A target: any bytes in, a panic out if something is wrong.
pub type Target = fn(&[u8]);

/// All targets by their names, which are those of the files in `fuzz/fuzz_targets` and the directories in `fuzz/seeds`.
pub const TARGETS: &[(&str, Target)] = &[
    ("agent_frame", agent::frame),
    ("agent_message", agent::message),
    ("agent_mux", agent::mux),
    ("catalogue", image::catalogue),
    ("copy_entries", agent::copy_entries),
    ("copy_receive", agent::copy_receive),
    ("disk_content", import::disk_content),
    ("foreign_disk", import::foreign_disk),
    ("deb_archive", image::deb_archive),
    ("deb822", image::deb822),
    ("kernel", image::kernel),
    ("kernel_module", image::kernel_module),
    ("lima", import::lima),
    ("libvirt", import::libvirt),
    ("ovf", import::ovf),
    ("package", import::package),
    ("net_link", net::link),
    ("net_switch", net::switch),
    ("oci_documents", image::oci_documents),
    ("oci_layer", image::oci_layer),
    ("qcow2_header", image::qcow2_header),
    ("qmp_lines", spec::qmp_lines),
    ("reference", image::reference),
    ("spec_edit", spec::edit),
    ("spec_read", spec::read),
    ("utm", import::utm),
    ("user_data", image::user_data),
    ("vagrant", import::vagrant),
    ("vbox", import::vbox),
    ("vmdk", import::vmdk),
];

/// Runs the target of a name.
///
/// # Panics
/// When there is none of that name, or the target finds a fault.
pub fn run(name: &str, data: &[u8]) {
    let Some((_, target)) = TARGETS.iter().find(|(known, _)| *known == name) else {
        panic!("there is no target {name}");
    };
    target(data);
}

/// Returns the text that bytes are; targets of text have nothing to say to others.
fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}
