//! Times verifying and unpacking of layers into a root disk, beside one thread that hashes, inflates and hashes: `layers ROUNDS DISK LAYER.tar.gz…`.
//!
//! For measuring by hand, interleaved; prints milliseconds. A layer file's own digests are computed first and are what is expected.

use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

use sha2::{Digest, Sha256};

/// Hashes, inflates and hashes, one after the other in one loop; gives both digests in hexadecimal.
fn one_thread(path: &PathBuf) -> std::io::Result<(String, String)> {
    struct Hashed<R>(R, Sha256);
    impl<R: Read> Read for Hashed<R> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.0.read(buffer)?;
            self.1.update(&buffer[..count]);
            Ok(count)
        }
    }
    let hex = |hasher: Sha256| {
        hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let mut packed = Hashed(std::fs::File::open(path)?, Sha256::new());
    let mut plain = Sha256::new();
    let reader = std::io::BufReader::with_capacity(256 << 10, &mut packed);
    let mut decoder = flate2::bufread::MultiGzDecoder::new(reader);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match decoder.read(&mut buffer)? {
            0 => break,
            count => plain.update(&buffer[..count]),
        }
    }
    drop(decoder);
    Ok((hex(packed.1), hex(plain)))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rounds, disk, layers @ ..] = arguments.as_slice() else {
        return Err("usage: layers ROUNDS DISK LAYER.tar.gz...".into());
    };
    let (disk, layers) = (PathBuf::from(disk), layers.iter().map(PathBuf::from));
    let layers: Vec<PathBuf> = layers.collect();
    let digests = layers
        .iter()
        .map(one_thread)
        .collect::<Result<Vec<_>, _>>()?;
    for _ in 0..rounds.parse()? {
        let started = Instant::now();
        for layer in &layers {
            one_thread(layer)?;
        }
        let limit = started.elapsed();
        let started = Instant::now();
        innkeeper_image::parse::make_disk(&layers, &digests, &disk)?;
        let ours = started.elapsed();
        std::fs::remove_file(&disk)?;
        println!(
            "one thread {} ms, disk {} ms, ratio {:.2}",
            limit.as_millis(),
            ours.as_millis(),
            ours.as_secs_f64() / limit.as_secs_f64()
        );
    }
    Ok(())
}
