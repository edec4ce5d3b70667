//! The one place that knows which devices exist, probes them without a panic, and picks one.

use crate::error::{Error, Result};
use burn::tensor::Device;

/// A device and its name for people and files.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The device.
    pub device: Device,
    /// `cpu` or `cuda:N`.
    pub name: String,
}

/// Finds the device that `--device` asks for: `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// A usage error for another word; a device error (exit 5) saying what is missing when there is no such GPU.
pub fn choose(wanted: &str) -> Result<Chosen> {
    let cpu = || Chosen { device: Device::flex(), name: "cpu".into() };
    match wanted {
        "cpu" => Ok(cpu()),
        "auto" if gpus() == 0 => Ok(cpu()),
        "auto" | "cuda" => cuda(0),
        other => match other.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(index)) => cuda(index),
            _ => Err(Error::usage(format!("unknown device `{other}`")).hint("devices: auto, cpu, cuda, cuda:N")),
        },
    }
}

/// Number of GPUs that can be used; 0 in a build without CUDA.
pub fn gpus() -> usize {
    #[cfg(feature = "cuda")]
    {
        // Asks for the driver's library before anything is started, so a machine without one answers 0.
        Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec().len()
    }
    #[cfg(not(feature = "cuda"))]
    {
        0
    }
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Chosen> {
    match gpus() {
        0 => Err(Error::device(
            "no CUDA device: the NVIDIA driver's library (libcuda) was not found, or it lists no GPU",
        )
        .hint("look at `nvidia-smi`, or use --device cpu")),
        n if index >= n => {
            Err(Error::device(format!("no device `cuda:{index}`: this machine has {n}"))
                .hint("devices are counted from 0"))
        }
        _ => Ok(Chosen { device: Device::cuda(index), name: format!("cuda:{index}") }),
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(index: usize) -> Result<Chosen> {
    Err(Error::device(format!("no device `cuda:{index}`: this segft was built without CUDA"))
        .hint("build it with `cargo build --release --features cuda` (see the README), or use --device cpu"))
}

/// Limits the threads of every computation; all processors without a limit.
///
/// # Errors
/// A usage error for 0 threads; a job error when the pool cannot be made.
pub fn limit_threads(threads: Option<usize>) -> Result<()> {
    match threads {
        None => Ok(()),
        Some(0) => Err(Error::usage("--threads must be at least 1")),
        Some(n) => rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .build_global()
            .map_err(|e| Error::job(format!("cannot start {n} threads: {e}"))),
    }
}

/// Peak resident memory of this process so far in MiB, where the system tells.
pub fn peak_rss_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
}

/// Memory in bytes that this process may still take, where the system tells: what the machine has free, or less where
/// the process's control group has a limit.
pub fn available_memory() -> Option<u64> {
    let free = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = free.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let free = line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024;
    let number =
        |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max").zip(number("memory.current"));
    Some(limit.map_or(free, |(limit, taken)| free.min(limit.saturating_sub(taken))))
}

/// Lets [`peak_rss_mib`] count anew, from what is in memory now. `None` where the system cannot: the peak is then that
/// of all that the process did.
pub fn forget_peak() -> Option<()> {
    std::fs::write("/proc/self/clear_refs", "5").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(choose("cpu").unwrap().name, "cpu");
        assert_eq!(choose("gpu").unwrap_err().kind.exit_code(), 2);
        if gpus() == 0 {
            assert_eq!(choose("auto").unwrap().name, "cpu");
            assert_eq!(choose("cuda:3").unwrap_err().kind.exit_code(), 5);
        }
    }
}
