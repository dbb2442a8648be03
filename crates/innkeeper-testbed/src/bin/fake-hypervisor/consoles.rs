//! Consoles that can be typed at: what is typed comes back, as from a guest whose terminal echoes. One client at a time; a new one
//! replaces the old.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use innkeeper::drivers::fake::Plan;

#[derive(Default)]
struct Console {
    client: Mutex<Option<UnixStream>>,
    /// Where what the guest writes is kept.
    log: Option<PathBuf>,
}

/// The consoles of a guest; the first one is the serial port.
pub(crate) struct Consoles(Vec<Arc<Console>>);

impl Consoles {
    /// Listens on the socket of each console.
    pub(crate) fn new(plan: &Plan) -> io::Result<Consoles> {
        let mut consoles = Vec::new();
        for (index, console) in plan.consoles.iter().enumerate() {
            let _ = std::fs::remove_file(&console.socket);
            let listener = UnixListener::bind(&console.socket)?;
            let log = match index {
                0 => Some(plan.serial_log.clone()),
                _ => console.log.clone(),
            };
            let console = Arc::new(Console {
                client: Mutex::new(None),
                log,
            });
            consoles.push(console.clone());
            std::thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    console.welcome(stream);
                }
            });
        }
        Ok(Consoles(consoles))
    }

    /// Shows something to whoever is at a console.
    pub(crate) fn show(&self, index: usize, bytes: &[u8]) {
        if let Some(console) = self.0.get(index) {
            console.show(bytes);
        }
    }
}

impl Console {
    fn show(&self, bytes: &[u8]) {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = client.as_mut()
            && stream.write_all(bytes).is_err()
        {
            *client = None;
        }
    }

    fn welcome(self: &Arc<Self>, stream: UnixStream) {
        let Ok(mut reader) = stream.try_clone() else {
            return;
        };
        let before = self
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(stream);
        if let Some(before) = before {
            // Fails only if its peer has closed it.
            let _ = before.shutdown(std::net::Shutdown::Both);
        }
        let console = self.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                console.show(&buffer[..count]);
                if let Some(log) = &console.log {
                    let kept = OpenOptions::new()
                        .append(true)
                        .create(true)
                        .open(log)
                        .and_then(|mut log| log.write_all(&buffer[..count]));
                    if let Err(error) = kept {
                        eprintln!("fake: can't write {}: {error}", log.display());
                    }
                }
            }
        });
    }
}
