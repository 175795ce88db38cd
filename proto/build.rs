//! Compiles the `.proto` files with protox, so that no `protoc` is needed, and keeps the encoded
//! descriptor set for gRPC reflection. Does nothing without the feature `net`.

#[cfg(feature = "net")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use prost::Message;

    println!("cargo:rerun-if-changed=drizzle");
    let files = ["access", "tracker", "peer", "control", "operator"].map(|name| format!("drizzle/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("drizzle.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

#[cfg(not(feature = "net"))]
fn main() {}
