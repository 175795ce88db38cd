//! gRPC reflection, so that grpcurl needs no `.proto` file: in the final and in the alpha form, because
//! clients in use still speak the latter.

use tonic_reflection::server::{
    Builder, Error,
    v1::{ServerReflection as V1, ServerReflectionServer as V1Server},
    v1alpha::{ServerReflection as V1Alpha, ServerReflectionServer as V1AlphaServer},
};

use crate::DESCRIPTORS;

/// What is asked about a daemon itself is short: a name at most.
pub const MAX_QUESTION: usize = 4 << 10;

/// Both forms. Every message of the package can be looked up; only `services` and the health check are listed.
///
/// Fails only if the compiled schema is broken.
pub fn servers(services: &[&'static str]) -> Result<(V1Server<impl V1>, V1AlphaServer<impl V1Alpha>), Error> {
    let builder = || {
        let builder = Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        let listed = services.iter().copied().chain(["grpc.health.v1.Health"]);
        listed.fold(builder, |builder, service| builder.with_service_name(service))
    };
    let (v1, v1alpha) = (builder().build_v1()?, builder().build_v1alpha()?);
    Ok((v1.max_decoding_message_size(MAX_QUESTION), v1alpha.max_decoding_message_size(MAX_QUESTION)))
}
