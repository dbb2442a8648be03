//! The commands of the helper of installations under test.

use std::io::{Read, Write};
use std::process::ExitCode;

use innkeeper::drivers::vz::VzHost;
use innkeeper::progress::{Progress, Update};
use innkeeper::spec::{BootSpec, VmSpec};
use innkeeper::testing::matrix::Matrix;
use innkeeper_testbed::host_from_environment;

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["listen", port] => return listen(port),
        ["matrix", directory] => return matrix(directory, |matrix| matrix.page()),
        ["summary", directory] => return matrix(directory, |matrix| matrix.summary()),
        _ => {}
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("testbed: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&words)) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            eprintln!("testbed: {message}");
            ExitCode::from(code)
        }
    }
}

async fn run(words: &[&str]) -> Result<(), (u8, String)> {
    let host = host_from_environment().map_err(|message| (2, message))?;
    let failed = |error: innkeeper::Error| (error.exit_code(), error.chain().join(": "));
    match words {
        ["keeper", name] => innkeeper::keeper::run(&host, name).await.map_err(failed),
        ["netd", name] => innkeeper::network::run(&host, name).await.map_err(failed),
        ["create", name, image, kernel, rest @ ..] => {
            let progress = Deadly {
                step: rest.first().map(|step| (*step).to_owned()),
            };
            let spec = VmSpec {
                image: (*image != "none").then(|| (*image).to_owned()),
                boot: BootSpec {
                    firmware: None,
                    kernel: Some(kernel.into()),
                    initrd: None,
                    cmdline: None,
                    secure_boot: false,
                },
                ready: Some(innkeeper::spec::ReadyWhen::None),
                ..VmSpec::default()
            };
            host.create(name, spec, &progress)
                .await
                .map(drop)
                .map_err(failed)
        }
        ["start", name] => host.start(name).await.map(drop).map_err(failed),
        ["remove", name] => host.remove(name, true).await.map_err(failed),
        ["import", path, name] => host
            .import_image(
                path.as_ref(),
                name,
                innkeeper::spec::DiskFormat::Raw,
                None,
                &innkeeper::progress::Silent,
            )
            .await
            .map(drop)
            .map_err(failed),
        _ => Err((
            2,
            "usage: testbed keeper|netd|create|start|remove|import|listen ...".to_owned(),
        )),
    }
}

/// Prints what the records in a directory say of the drivers.
fn matrix(directory: &str, form: fn(&Matrix<'_>) -> String) -> ExitCode {
    let unrun = [VzHost::newest().report("vz")];
    let printed = innkeeper::testing::matrix::read(directory.as_ref())
        .map(|records| form(&Matrix::new(&records, &unrun)))
        .and_then(|page| std::io::stdout().write_all(page.as_bytes()));
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testbed: can't make the page of {directory}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Kills this process, as by `kill -9`, when a step of the work begins; or stops it, for a step named `stop:STEP`.
struct Deadly {
    step: Option<String>,
}

impl Progress for Deadly {
    fn report(&self, update: Update<'_>) {
        use rustix::process::{Signal, getpid, kill_process};
        let signal = match self.step.as_deref() {
            Some(step) if step == update.step => Signal::KILL,
            Some(step) if step.strip_prefix("stop:") == Some(update.step) => Signal::STOP,
            _ => return,
        };
        // A process may always signal itself.
        let _ = kill_process(getpid(), signal);
    }
}

/// Answers every connection to a port, until standard input ends: whoever started it is gone then.
fn listen(port: &str) -> ExitCode {
    let listener = match port
        .parse()
        .map(|port: u16| std::net::TcpListener::bind(("127.0.0.1", port)))
    {
        Ok(Ok(listener)) => listener,
        _ => {
            eprintln!("testbed: can't listen on port {port}");
            return ExitCode::FAILURE;
        }
    };
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = [0; 1024];
            // The answer is the same whatever was asked; a client that vanished needs none.
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfake\n");
        }
    });
    let mut rest = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut rest);
    ExitCode::SUCCESS
}
