//! Makes an image by hand: `image HOME REFERENCE ARCH [AGENT]`, printing its steps and its index entry.

use std::path::PathBuf;
use std::sync::Arc;

use innkeeper_image::{BuildInputs, Event, Store};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [home, reference, arch, agent @ ..] = arguments.as_slice() else {
        return Err("usage: image HOME REFERENCE ARCH [AGENT]".into());
    };
    let store = Store::open(home)?;
    let inputs = BuildInputs {
        agent: agent.first().map(PathBuf::from),
        catalogues: Vec::new(),
        registry_configurations: Vec::new(),
    };
    let started = std::time::Instant::now();
    let progress = Arc::new(move |event: Event| {
        eprintln!(
            "{:6.2} {:?} {}/{:?} {}",
            started.elapsed().as_secs_f64(),
            event.step,
            event.done_bytes,
            event.total_bytes,
            event.message
        );
    });
    let image = store
        .ensure(&reference.parse()?, arch.parse()?, &inputs, progress)
        .await?;
    println!("{}", serde_json::to_string_pretty(&image)?);
    Ok(())
}
