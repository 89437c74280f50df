//! Compiles the BPF programs with clang, so that they can be embedded.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const SOURCES: [&str; 2] = ["steering", "node_ports"];
const PACKAGES: &str = "on Debian: apt-get install clang libbpf-dev linux-libc-dev";

fn main() {
    println!("cargo::rerun-if-env-changed=BPF_CLANG");
    println!("cargo::rerun-if-changed=bpf/frontend.h");
    for name in SOURCES {
        compile(name);
    }
}

fn compile(name: &str) {
    let source = format!("bpf/{name}.bpf.c");
    println!("cargo::rerun-if-changed={source}");
    let clang = std::env::var("BPF_CLANG").unwrap_or_else(|_| "clang".into());
    let object = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join(format!("{name}.bpf.o"));
    let mut command = Command::new(&clang);
    command.args(["-O2", "-g", "-target", "bpf", "-Wall", "-Werror", "-c", &source, "-o"]).arg(&object);
    // <asm/types.h> lives under the host's triplet, which clang leaves out for the bpf target.
    for triplet in ["x86_64-linux-gnu", "aarch64-linux-gnu"] {
        let dir = Path::new("/usr/include").join(triplet);
        if dir.is_dir() {
            command.arg("-I").arg(dir);
        }
    }
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => fail(&format!(
            "{clang} could not compile pmd/{source}:\n{}\nIf headers are missing, {PACKAGES}",
            String::from_utf8_lossy(&output.stderr)
        )),
        Err(error) => fail(&format!(
            "the BPF programs are compiled with clang, but `{clang}` does not run: {error}\n{PACKAGES}"
        )),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    exit(1)
}
