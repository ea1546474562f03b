//! What the interop tests share: real programs as peers, and this crate's own nodes beside them.
//!
//! Every peer has an address of the loopback network to itself ([`loopback`]), so that it can use its usual ports and
//! tests never meet each other. Each result goes into the table of `docs/interop.md` ([`matrix`]).

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "every test uses its own part of this")]

pub mod alertmanager;
pub mod core_node;
pub mod go_peer;
pub mod loopback;
pub mod matrix;
pub mod process;
pub mod serf;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::skip_or_fail;

/// Runs each test with each version: `for_each_version! { [module: version, …] { test … } }`. A test is a function above the
/// modules that takes the version.
#[allow(unused_macros, reason = "every test uses its own part of this")]
macro_rules! for_each_version {
    ([$($module:ident: $version:expr),*] $tests:tt) => {
        $(for_each_version! { @ $module, $version, $tests })*
    };
    (@ $module:ident, $version:expr, { $($test:ident)* }) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($version).await;
            })*
        }
    };
}
#[allow(unused_imports, reason = "every test uses its own part of this")]
pub(crate) use for_each_version;

/// Longer than anything takes that does come, also on a machine with other work.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until the condition holds, and returns how long that took. Fails the test when it does not, and
/// shows what was there in the end.
///
/// Slower than `support::wait_until`: what is asked here often costs a process.
pub async fn until<T: Debug>(what: &str, seen: impl AsyncFn() -> T, mut holds: impl FnMut(&T) -> bool) -> Duration {
    let begin = Instant::now();
    loop {
        let now = seen().await;
        if holds(&now) {
            return begin.elapsed();
        }
        assert!(begin.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain until {what}; there is: {now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A program that `scripts/fetch-peers` fetched, by its name there: what its variable says, or what lies below
/// `target/peers`. `None`, with a message, where it is not there.
///
/// # Panics
/// When it is not there and everything is required.
pub fn fetched(name: &str, program: &str) -> Option<PathBuf> {
    let variable = format!("ANNULUS_{}", name.to_uppercase().replace(['-', '.'], "_"));
    let path = match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => peers().join(name).join("usr/bin").join(program),
    };
    if path.is_file() {
        return Some(path);
    }
    skip_or_fail(&format!("there is no {name} here; scripts/fetch-peers gets one"));
    None
}

/// The version of the package that a fetched program is from, without Debian's part of it: `0.10.1`.
pub fn package_version(name: &str) -> String {
    let text = std::fs::read_to_string(peers().join(name).join("package-version")).unwrap_or_default();
    let version = text.trim().split(['-', '+', '~']).next().unwrap_or_default().to_owned();
    if version.is_empty() { "unknown".to_owned() } else { version }
}

/// Where programs to test against are.
pub fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers")
}
