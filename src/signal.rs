//! SIGINT and SIGTERM. Either ends the program with exit code 130; a job that has something to save asks to be told first,
//! and then only the second one ends the program at once.

use crate::error::{Error, Kind, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_shutdown};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Exit code of a program that was interrupted.
const INTERRUPTED: i32 = 130;

struct Signals {
    /// Whether the next signal ends the program; every signal sets it.
    at_once: Arc<AtomicBool>,
    /// Whether there was one.
    stop: Arc<AtomicBool>,
    /// Why the system does not tell of signals.
    deaf: Option<String>,
}

/// Handlers are there from the first call on.
fn signals() -> &'static Signals {
    static SIGNALS: OnceLock<Signals> = OnceLock::new();
    SIGNALS.get_or_init(|| {
        let (at_once, stop) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let deaf = [SIGINT, SIGTERM].into_iter().find_map(|signal| {
            register_conditional_shutdown(signal, INTERRUPTED, at_once.clone())
                .and_then(|_| register(signal, at_once.clone()))
                .and_then(|_| register(signal, stop.clone()))
                .err()
        });
        Signals { at_once, stop, deaf: deaf.map(|e| e.to_string()) }
    })
}

/// Signals end the program with its own exit code from now on.
pub fn start() {
    signals();
}

/// From now on the first signal is only kept for [`stopped`].
///
/// # Errors
/// A job error where the system does not tell of signals.
pub fn listen() -> Result<()> {
    let signals = signals();
    match &signals.deaf {
        Some(why) => Err(Error::job(format!("cannot listen for signals: {why}"))),
        None => {
            signals.at_once.store(signals.stop.load(Ordering::SeqCst), Ordering::SeqCst);
            Ok(())
        }
    }
}

/// Whether the user asked to stop.
pub fn stopped() -> bool {
    signals().stop.load(Ordering::SeqCst)
}

/// Ends a part of a job that has nothing to save.
///
/// # Errors
/// [`Kind::Interrupted`] when the user asked to stop.
pub fn check() -> Result<()> {
    match stopped() {
        true => Err(Error::new(Kind::Interrupted, "stopped")),
        false => Ok(()),
    }
}
