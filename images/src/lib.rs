//! Node images: one root file system for all roles and all providers, made from pinned parts, the same every time.
//!
//! Place in the flow: `cargo xtask image build` (and `up`) calls [`build_image`]; the coordinator reads
//! [`ImageManifest`]s through [`ImageStore`]; a provider turns the layers of a manifest into the root file system of a
//! machine (overlay lower directories for the local one, a merged disk for virtual machines). [`Release`] says which
//! upstream versions belong together and which upgrades are allowed.
//!
//! An image is an ordered list of layers, lowest first: `base` (Debian, systemd), `release` (the upstream parts of one
//! release), `preload` (container images, when there are any), `agent`. Every layer is a directory tree named by the
//! digest of its content; the image is named by the digest of its manifest. The root may be mounted read-only: state
//! is in `/var`, which is empty on a new machine, and `/run`.
//!
//! This crate deliberately does not know about machines, clusters, providers or the network protocol, and it does not
//! mount, boot or run what it makes.

mod build;
mod cache;
mod command;
mod containers;
mod digest;
mod files;
mod layers;
mod manifest;
mod oci;
mod progress;
mod release;
mod sbom;
mod store;
mod tree;
mod upstream;

pub use build::{BuildError, BuildRequest, BuiltImage, build_image};
pub use cache::{CACHE_DIR_VARIABLE, CacheDir, CacheError};
pub use command::CommandError;
pub use containers::{BuiltContainers, ContainerError, build_containers};
pub use digest::{Digest, InvalidDigest};
pub use files::FileError;
pub use layers::base::BaseError;
pub use layers::preload::{PreloadImage, PreloadSource};
pub use layers::{Reuse, SOURCE_DATE_EPOCH};
pub use manifest::{
    Architecture, BaseInfo, ComponentInfo, ContainerImage, DebianPackage, ImageManifest, LayerName, LayerRef,
    MANIFEST_SCHEMA, Origin, ReleaseContent, ReleaseInfo,
};
pub use oci::OciImage;
pub use progress::{Progress, ProgressEvent, Recorded, Silent};
pub use release::{
    COREDNS_IMAGE, DEMO_IMAGE, InvalidReleaseName, PAUSE_IMAGE, PROBE_IMAGE, Release, ReleaseName,
    UnknownRelease,
};
pub use sbom::LockError;
pub use store::{ImageStore, StoreError, StoredImage};
pub use upstream::archive::ArchiveError;
pub use upstream::buildinfo::GoModule;
pub use upstream::download::{DownloadError, TransferError};
pub use upstream::pin::pin_release;
pub use upstream::recipe::RecipeError;
pub use upstream::{InvalidSourceMode, SourceMode, Upstream, UpstreamCache, UpstreamError, UpstreamOrigin};
