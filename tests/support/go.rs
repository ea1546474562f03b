//! Programs in Go that tests build from `interop/` and run.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds `interop/PACKAGE` as `target/peers/go/NAME`, and says where that is; `None` without Go. Go's own cache makes it
/// quick when nothing changed.
///
/// # Panics
/// When it does not build.
pub fn build(name: &str, package: &str, options: &[&str]) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = root.join("target/peers/go");
    fs::create_dir_all(&directory).unwrap();
    // Test binaries may run side by side, and a program that runs cannot be written.
    let lock = File::create(directory.join(".lock")).unwrap();
    lock.lock().unwrap();
    let (program, fresh) = (directory.join(name), directory.join(format!(".{name}.new")));
    let built = Command::new("go")
        .args(["build", "-trimpath", "-buildvcs=false", "-o"])
        .arg(&fresh)
        .args(options)
        .arg(format!("./{package}"))
        .current_dir(root.join("interop"))
        .output();
    let built = match built {
        Ok(built) => built,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => panic!("go: {error}"),
    };
    assert!(built.status.success(), "{name} does not build: {}", String::from_utf8_lossy(&built.stderr));
    fs::rename(fresh, &program).unwrap();
    Some(program)
}
