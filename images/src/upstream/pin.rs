//! Pinning: writing the digests that upstream publishes into `download.json`, once, for a person to look at.

use std::path::{Path, PathBuf};

use super::UpstreamError;
use super::download::Downloader;
use super::recipe::Recipe;
use crate::files;
use crate::progress::{Progress, ProgressEvent};
use crate::release::Release;

/// Fetches the published digests of all official files of a release and writes them into `download.json` of each
/// recipe below `recipes`. Digests that are already pinned stay. Returns the files that changed.
///
/// The trust is that of the HTTPS connection to the publisher at this moment; review and commit the change.
///
/// # Errors
/// A recipe cannot be read or written, or a digest cannot be fetched.
pub fn pin_release(
    recipes: &Path,
    release: &Release,
    progress: &mut dyn Progress,
) -> Result<Vec<PathBuf>, UpstreamError> {
    let mut changed = Vec::new();
    for (project, version) in &release.components {
        let mut recipe = Recipe::read(recipes, project, version).map_err(|source| UpstreamError::Recipe {
            project: project.clone(),
            version: version.clone(),
            source,
        })?;
        let downloader = Downloader::with_system_roots().map_err(|source| recipe.download_failed(source))?;
        if pin_recipe(&downloader, &mut recipe, progress)? {
            changed.push(write(&recipe)?);
        }
    }
    Ok(changed)
}

fn pin_recipe(
    downloader: &Downloader,
    recipe: &mut Recipe,
    progress: &mut dyn Progress,
) -> Result<bool, UpstreamError> {
    let mut changed = false;
    for index in 0..recipe.download.files.len() {
        let file = &recipe.download.files[index];
        if file.sha256.is_some() {
            continue;
        }
        let url = recipe.expand(&file.url);
        let sums_url = recipe.expand(&file.sums_url);
        let digest =
            downloader.published_digest(&url, &sums_url).map_err(|source| recipe.download_failed(source))?;
        progress.event(ProgressEvent::Note { text: format!("{digest}  {url}") });
        recipe.download.files[index].sha256 = Some(digest);
        changed = true;
    }
    Ok(changed)
}

fn write(recipe: &Recipe) -> Result<PathBuf, UpstreamError> {
    let path = recipe.dir.join("download.json");
    let mut text = serde_json::to_vec_pretty(&recipe.download).expect("a download file has only string keys");
    text.push(b'\n');
    files::write_durably(&path, &text)?;
    Ok(path)
}
