//! `inn net`: the network interfaces of a VM, now if it runs, and in its spec.

use std::time::Duration;

use innkeeper::Host;
use innkeeper::api::LinkShape;
use innkeeper::spec::{ForwardSpec, MacAddr, NetworkKind, NetworkSpec, VmName};

use super::disk_of_vm::tell;
use super::{DetachFlags, DryRun, duration};
use crate::failure::{Failure, Result};
use crate::output::Output;

/// Network interfaces of VMs
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Net {
    /// Add a network interface to a VM; at once if it runs
    #[command(after_help = "Examples:
  inn net attach web
  inn net attach web -p 8443:443
  inn net attach web --network lan")]
    Attach {
        /// VM
        vm: String,
        /// Network of our own that it is put on; by default the hypervisor's user network
        #[arg(long, conflicts_with = "forwards")]
        network: Option<VmName>,
        /// Port of this computer that leads into the guest (repeatable)
        #[arg(short = 'p', long = "publish", value_name = "HOST_PORT:GUEST_PORT")]
        forwards: Vec<ForwardSpec>,
        /// MAC address; made once and kept if none is given
        #[arg(long)]
        mac: Option<MacAddr>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Remove the last network interface of a VM; at once if it runs, when its guest lets go
    #[command(after_help = "Examples:
  inn net detach web")]
    Detach {
        /// VM
        vm: String,
        #[command(flatten)]
        how: DetachFlags,
    },
    /// Make the link of a VM on a network of our own bad, while it runs; the settings given replace those before
    #[command(after_help = "Examples:
  inn net shape web --delay 80ms --jitter 5ms --loss 1%
  inn net shape web:1 --bandwidth 10Mbit
  inn net shape web --partition
  inn net shape web --clear")]
    Shape(Shape),
}

/// How bad a link is made, in both directions.
#[derive(Debug, clap::Args)]
pub(crate) struct Shape {
    /// VM, and the number of its interface from 0 if it is not its only one of a network of our own
    #[arg(value_name = "VM[:NIC]")]
    target: String,
    /// How long a frame takes
    #[arg(long, value_name = "TIME", value_parser = duration)]
    delay: Option<Duration>,
    /// How far that varies, to both sides
    #[arg(long, value_name = "TIME", value_parser = duration)]
    jitter: Option<Duration>,
    /// Frames that get lost
    #[arg(long, value_name = "PERCENT")]
    loss: Option<String>,
    /// Frames that arrive twice
    #[arg(long, value_name = "PERCENT")]
    duplicate: Option<String>,
    /// Frames that pass those before them
    #[arg(long, value_name = "PERCENT")]
    reorder: Option<String>,
    /// Frames with a bit turned
    #[arg(long, value_name = "PERCENT")]
    corrupt: Option<String>,
    /// Bits in a second: a number with bit, kbit, Mbit or Gbit
    #[arg(long, value_name = "RATE", value_parser = rate)]
    bandwidth: Option<u64>,
    /// Let nothing pass
    #[arg(long)]
    partition: bool,
    /// Seed of chance: the same seed and frames give the same losses
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Make it a good link again
    #[arg(long, conflicts_with_all = ["delay", "jitter", "loss", "duplicate", "reorder", "corrupt", "bandwidth", "partition"])]
    clear: bool,
}

/// Reads a rate.
fn rate(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{text:?} is no rate: write a whole number with bit, kbit, Mbit or Gbit, such as 10Mbit"
        )
    };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match &text[digits.len()..] {
        "bit" => 1,
        "kbit" => 1_000,
        "Mbit" => 1_000_000,
        "Gbit" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).ok_or_else(wrong)
}

impl Shape {
    async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let link = self.link();
        if !self.clear && link == LinkShape::default() {
            return Err(Failure::usage(
                "say how the link is to be, such as --delay 80ms, or --clear",
            ));
        }
        let (vm, interface) = match self.target.split_once(':') {
            None => (
                self.target.as_str(),
                switched_interface(host, &self.target).await?,
            ),
            Some((vm, number)) => {
                let number = number.parse().map_err(|_| {
                    Failure::usage(format!("{number:?} is no number of an interface"))
                })?;
                (vm, number)
            }
        };
        host.shape(vm, interface, &link, self.seed).await?;
        let how = if self.clear { "good again" } else { "shaped" };
        output.note(&format!(
            "the link of {vm}, interface {interface}, is {how}"
        ));
        Ok(0)
    }

    fn link(&self) -> LinkShape {
        let micros = |time: Option<Duration>| {
            let micros = time.unwrap_or_default().as_micros();
            u64::try_from(micros).unwrap_or(u64::MAX)
        };
        LinkShape {
            bits_per_second: self.bandwidth,
            delay_us: micros(self.delay),
            jitter_us: micros(self.jitter),
            loss: self.loss.clone(),
            duplicate: self.duplicate.clone(),
            reorder: self.reorder.clone(),
            corrupt: self.corrupt.clone(),
            partition: self.partition,
        }
    }
}

/// Returns the first interface of a VM that is on a network of our own, or its first one: the library says what is wrong with that.
async fn switched_interface(host: &Host, vm: &str) -> Result<u32> {
    let networks = host.info(vm).await?.networks;
    let index = networks.iter().position(|nic| nic.network != "user");
    Ok(u32::try_from(index.unwrap_or(0)).unwrap_or(0))
}

impl Net {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        match self {
            Net::Attach {
                vm,
                network,
                forwards,
                mac,
                dry_run,
            } => {
                let network = NetworkSpec {
                    kind: match network {
                        Some(_) => NetworkKind::Network,
                        None => NetworkKind::User,
                    },
                    name: network,
                    mac,
                    forwards,
                };
                let change = host.attach_network(&vm, &network, dry_run.dry_run).await?;
                let what = "a network interface";
                tell(&vm, &change, dry_run.dry_run, "attached", what, output)?;
            }
            Net::Detach { vm, how } => {
                let options = how.options();
                let change = host.detach_network(&vm, options).await?;
                let what = "the last network interface";
                tell(&vm, &change, options.dry_run, "detached", what, output)?;
            }
            Net::Shape(shape) => return shape.run(host, output).await,
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        assert_eq!(rate("10Mbit"), Ok(10_000_000));
        assert_eq!(rate("1Gbit"), Ok(1_000_000_000));
        for wrong in [
            "10",
            "Mbit",
            "10mb",
            "-1bit",
            "1.5Mbit",
            "99999999999Gbit",
            "1 bit",
        ] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
