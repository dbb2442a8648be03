//! Makes by hand what a VM needs beside its image: `vm_disks DIRECTORY BASE BASE_BYTES SIZE_BYTES [AGENT]` writes a key pair,
//! a seed and a thin top disk, and prints how long each took.

use std::path::{Path, PathBuf};
use std::time::Instant;

use innkeeper_image::disk::{Base, create_top};
use innkeeper_image::{AGENT_PATH, DiskFormat, Seed, SeedAgent, SeedInterface, ssh};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, base, base_bytes, size, agent @ ..] = arguments.as_slice() else {
        return Err("usage: vm_disks DIRECTORY BASE BASE_BYTES SIZE_BYTES [AGENT]".into());
    };
    let directory = Path::new(directory);
    let key = ssh::generate_ed25519(&directory.join("id_ed25519"), "inn")?;
    let unit = format!(
        "[Unit]\nDescription=Innkeeper agent\n[Service]\nExecStart={AGENT_PATH}\n[Install]\nWantedBy=multi-user.target\n"
    );
    let seed = Seed {
        instance_id: "example-1".into(),
        hostname: "example".into(),
        user: Some("inn".into()),
        ssh_authorized_keys: vec![key],
        runcmd: vec![vec!["touch".into(), "/run/ours of 'inn'; $(id)".into()]],
        network: vec![SeedInterface { mac: "52:54:00:12:34:56".into(), dhcp4: true, ..SeedInterface::default() }],
        timezone: Some("Europe/Berlin".into()),
        user_data: Some("#cloud-config\nruncmd:\n- [touch, /run/theirs]\nwrite_files:\n- {path: /etc/own, permissions: \"0640\", content: own}\n".into()),
        agent: agent.first().map(|path| SeedAgent { binary: PathBuf::from(path), unit }),
        ..Seed::default()
    };
    let started = Instant::now();
    seed.write(&directory.join("seed.img"))?;
    println!("seed {:?}", started.elapsed());
    let started = Instant::now();
    let base = Base {
        path: PathBuf::from(base),
        format: DiskFormat::Raw,
        virtual_bytes: base_bytes.parse()?,
    };
    let top = create_top(&base, size.parse()?, directory, "root")?;
    println!("top {:?} {}", started.elapsed(), top.path.display());
    Ok(())
}
