//! Links the guests as the other tiny guests.

fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=../guests/guest.ld");
    println!("cargo::rustc-link-arg-bins=-T{dir}/../guests/guest.ld");
    println!("cargo::rustc-link-arg-bins=--no-pie");
    println!("cargo::rustc-link-arg-bins=-zmax-page-size=4096");
    println!("cargo::rustc-link-arg-bins=--build-id=none");
}
