//! `cargo xtask image`: building, looking at and checking node images.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use keelson_images::{
    BuildRequest, BuiltImage, CacheDir, DEMO_IMAGE, Digest, ImageManifest, ImageStore, PROBE_IMAGE,
    PreloadImage, PreloadSource, Progress, ProgressEvent, Release, Reuse, SourceMode, StoredImage,
    build_image,
};
use serde_json::json;

use crate::programs::{compile, workspace_root};

/// The programs of this workspace that are part of an image.
const AGENT: &str = "keelson-agent";
const DEMO: &str = "keelson-demo";
const PAUSE: &str = "keelson-pause";
const PROBE: &str = "keelson-probe";
/// The port that the programs in pods listen on.
const POD_PORT: u16 = 8080;
/// Steps quicker than this are not worth a line of their own.
const STEP_SHOWN_MIN: Duration = Duration::from_millis(50);

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build the image, or find it in the cache when nothing that goes into it has changed.
    Build(BuildArgs),
    /// List the images in the cache.
    List(OutputArgs),
    /// Show an image: layers, components, packages.
    Show {
        /// Its digest, or the beginning of it; without one, the image used last.
        digest: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Read all of an image and compare it with its digests.
    Verify {
        /// Its digest, or the beginning of it; without one, the image used last.
        digest: Option<String>,
        /// Also build it again from nothing and compare: minutes.
        #[arg(long)]
        rebuild: bool,
        /// The agent that the image was built with, when it is not the one of this workspace.
        #[arg(long, value_name = "PROGRAM", requires = "rebuild")]
        agent: Option<PathBuf>,
    },
    /// Pin the digests of the official files of a release, as their publishers say them now.
    Pin {
        /// The release.
        #[arg(long, default_value = Release::newest().name.as_str())]
        release: String,
    },
}

/// Settings of a build.
#[derive(Clone, Debug, Args)]
pub(crate) struct BuildArgs {
    /// The release that is baked in.
    #[arg(long, default_value = Release::newest().name.as_str())]
    pub(crate) release: String,
    /// How upstream parts are got: auto builds where Go 1.26 is installed, else downloads.
    #[arg(long, default_value = "auto")]
    pub(crate) source: SourceMode,
    /// Install Debian's packages anew, to take in security updates.
    #[arg(long)]
    pub(crate) refresh_base: bool,
    /// An agent that is already built, in place of the one of this workspace.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) agent: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

impl BuildArgs {
    /// The newest release with the agent of this workspace.
    pub(crate) fn newest(source: SourceMode) -> Self {
        Self {
            release: Release::newest().name.to_string(),
            source,
            refresh_base: false,
            agent: None,
            output: OutputArgs { output: Output::Table },
        }
    }
}

/// The form of the result.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputArgs {
    /// Form of the result on standard output. Progress goes to standard error.
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

/// Forms of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Runs `cargo xtask image`.
pub(crate) fn run(command: ImageCommand) -> Result<()> {
    let cache = CacheDir::from_environment()?;
    match command {
        ImageCommand::Build(args) => {
            let output = args.output.output;
            let image = build(&cache, &args, &mut Lines)?;
            show(&image.digest, &image.manifest, output, Some(&image.tools))
        }
        ImageCommand::List(args) => list(&cache, args.output),
        ImageCommand::Show { digest, output } => {
            let image = find(&ImageStore::open(&cache), digest.as_deref())?;
            show(&image.digest, &image.manifest, output.output, None)
        }
        ImageCommand::Verify { digest, rebuild, agent } => {
            let image = verify(&cache, digest.as_deref())?;
            if rebuild { compare_with_rebuild(&cache, &image, agent) } else { Ok(()) }
        }
        ImageCommand::Pin { release } => pin(&release),
    }
}

/// Builds the programs of this workspace and the image of `args`.
pub(crate) fn build(cache: &CacheDir, args: &BuildArgs, progress: &mut dyn Progress) -> Result<BuiltImage> {
    let request = request(args, progress)?;
    build_image(cache, &request, progress).context("the image cannot be built")
}

fn request(args: &BuildArgs, progress: &mut dyn Progress) -> Result<BuildRequest> {
    let root = workspace_root()?;
    let release = Release::find(&args.release)?;
    // The agent is compiled apart, so that its needs do not change the other programs and the layers they are in.
    let mut programs = compile(&root, &[DEMO, PAUSE, PROBE], progress)?;
    if args.agent.is_none() {
        programs.extend(compile(&root, &[AGENT], progress)?);
    }
    let mut program = |name: &str| {
        programs.remove(name).with_context(|| format!("cargo built no program {name}; is the crate there?"))
    };
    let mut preload = Vec::new();
    for (name, file, package) in [(DEMO_IMAGE, "demo", DEMO), (PROBE_IMAGE, "probe", PROBE)] {
        let binary = program(package)?;
        let source = PreloadSource::Program { binary, package: package.to_owned(), ports: vec![POD_PORT] };
        preload.push(PreloadImage { name: name.to_owned(), file: file.to_owned(), source });
    }
    Ok(BuildRequest {
        recipes: root.join("images"),
        release,
        source: args.source,
        agent: match &args.agent {
            Some(agent) => agent.clone(),
            None => program(AGENT)?,
        },
        pause: program(PAUSE)?,
        preload,
        cargo_lock: root.join("Cargo.lock"),
        base: if args.refresh_base { Reuse::Never } else { Reuse::Cached },
    })
}

fn find(store: &ImageStore, digest: Option<&str>) -> Result<StoredImage> {
    let Some(start) = digest else {
        let newest = store.list()?.into_iter().next();
        return newest.context("there is no image in the cache; `cargo xtask image build` makes one");
    };
    if let Ok(digest) = start.parse::<Digest>() {
        return Ok(store.get(&digest)?);
    }
    let mut matching: Vec<_> = store.list()?;
    matching.retain(|image| image.digest.to_string().starts_with(start));
    match matching.len() {
        0 => bail!("no image in the cache begins with {start:?}; `cargo xtask image list` names them"),
        1 => Ok(matching.remove(0)),
        several => bail!("{several} images begin with {start:?}; give more digits"),
    }
}

fn verify(cache: &CacheDir, digest: Option<&str>) -> Result<StoredImage> {
    let store = ImageStore::open(cache);
    let image = find(&store, digest)?;
    store.verify(&image.digest)?;
    say(&format!("image {}: every layer has its digest", image.digest));
    Ok(image)
}

/// Builds in an empty cache below the first one, so that nothing but the Go and Cargo caches is shared.
fn compare_with_rebuild(cache: &CacheDir, image: &StoredImage, agent: Option<PathBuf>) -> Result<()> {
    let scratch_root = cache.root().join("verify");
    let _ = std::fs::remove_dir_all(&scratch_root);
    let scratch = CacheDir::at(&scratch_root)?;
    let args = BuildArgs {
        release: image.manifest.release.name.to_string(),
        source: SourceMode::Auto,
        refresh_base: false,
        agent,
        output: OutputArgs { output: Output::Table },
    };
    let result = build(&scratch, &args, &mut Lines);
    std::fs::remove_dir_all(&scratch_root).context("the directory of the second build cannot be removed")?;
    let again = result?;
    let mut same = true;
    for layer in &image.manifest.layers {
        let other = again.manifest.layer(layer.name).map(|layer| layer.digest);
        let verdict = if other == Some(layer.digest) { "the same" } else { "DIFFERENT" };
        same &= other == Some(layer.digest);
        say(&format!("{:<8} {} built again: {verdict}", layer.name, layer.digest));
    }
    ensure!(
        same && again.digest == image.digest,
        "the second build is another image ({}). When Debian has published updates or the sources changed since the \
         first build, build first (`--refresh-base`) and verify then; else the build is not reproducible, which is a bug",
        again.digest
    );
    say("built twice, the same digest");
    Ok(())
}

fn pin(release: &str) -> Result<()> {
    let recipes = workspace_root()?.join("images").join("upstream");
    let changed = keelson_images::pin_release(&recipes, Release::find(release)?, &mut Lines)
        .context("the digests cannot be pinned")?;
    for path in &changed {
        say(&format!("pinned {}", path.display()));
    }
    say(if changed.is_empty() {
        "everything is pinned already"
    } else {
        "look at the changes, then commit them"
    });
    Ok(())
}

fn list(cache: &CacheDir, output: Output) -> Result<()> {
    let images = ImageStore::open(cache).list()?;
    if output == Output::Json {
        let rows: Vec<_> =
            images.iter().map(|image| json!({"digest": image.digest, "manifest": image.manifest})).collect();
        say(&serde_json::to_string(&rows)?);
        return Ok(());
    }
    if images.is_empty() {
        say("no images; `cargo xtask image build` makes one");
    }
    for image in images {
        let (release, size) = (&image.manifest.release.name, megabytes(image.manifest.size_bytes()));
        say(&format!("{}  release {release}  {size} MB", image.digest));
    }
    Ok(())
}

fn show(
    digest: &Digest,
    manifest: &ImageManifest,
    output: Output,
    tools: Option<&BTreeMap<String, PathBuf>>,
) -> Result<()> {
    if output == Output::Json {
        let value = json!({"digest": digest, "manifest": manifest, "tools": tools});
        say(&serde_json::to_string(&value)?);
        return Ok(());
    }
    say(&format!("image    {digest}"));
    say(&format!("release  {} on Debian {}", manifest.release.name, manifest.base.suite));
    for layer in &manifest.layers {
        let (size, short) = (megabytes(layer.size_bytes), &layer.digest.to_string()[..16]);
        say(&format!("layer    {:<8} {short}  {size:>5} MB  {:>5} entries", layer.name, layer.entries));
    }
    for (name, component) in &manifest.release.components {
        say(&format!("part     {name:<12} {:<8} {:?}", component.version, component.origin));
    }
    let images = manifest.release.container_images.values().chain(&manifest.preload);
    for image in images {
        say(&format!("image    {}", image.name));
    }
    say(&format!("packages {}", manifest.base.packages.len()));
    Ok(())
}

fn megabytes(bytes: u64) -> u64 {
    bytes / 1_000_000
}

/// The result of a command.
#[expect(clippy::print_stdout, reason = "the result of a command goes to standard output")]
fn say(line: &str) {
    println!("{line}");
}

/// Progress as lines on standard error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lines;

impl Progress for Lines {
    #[expect(clippy::print_stderr, reason = "progress goes to standard error")]
    fn event(&mut self, event: ProgressEvent) {
        match event {
            ProgressEvent::Started { step, usual: Some(usual) } => {
                eprintln!("  {step} (about {} s when nothing is cached)", usual.as_secs());
            }
            ProgressEvent::Waiting { step } => eprintln!("  waiting for another build: {step}"),
            ProgressEvent::Note { text } => eprintln!("    {text}"),
            ProgressEvent::Finished { step, took } if took >= STEP_SHOWN_MIN => {
                eprintln!("  {step}: {:.1} s", took.as_secs_f64());
            }
            ProgressEvent::Started { .. } | ProgressEvent::Finished { .. } => {}
            ProgressEvent::Cached { step } => eprintln!("  {step}: in the cache"),
        }
    }
}
