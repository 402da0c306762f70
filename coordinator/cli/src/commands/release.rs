//! `keelson release`: sets of upstream parts that can be chosen.

use std::fmt::Write;

use keelson_api::ExitCode;
use keelson_api::types::ReleaseView;

use super::{Work, sort};
use crate::args::ReleaseCommand;
use crate::client::{Call, segment};
use crate::failure::Failure;
use crate::table::Table;

/// `keelson release list|show`.
pub(super) async fn run(work: &mut Work<'_>, command: ReleaseCommand) -> Result<ExitCode, Failure> {
    let mut client = work.client()?;
    match command {
        ReleaseCommand::List(args) => {
            let mut list = client.all::<ReleaseView>(&Call::get("releases")).await?;
            sort(&mut list.items, &args)?;
            let names: Vec<String> = list.items.iter().map(|item| format!("release/{}", item.name)).collect();
            work.output().list(&list, &names, "no releases", |wide| release_table(&list.items, wide));
        }
        ReleaseCommand::Show { name } => {
            let release: ReleaseView =
                client.document(&Call::get(format!("releases/{}", segment(&name)))).await?;
            work.output().document(&release, &[format!("release/{name}")], |_| release_text(&release));
        }
    }
    Ok(ExitCode::Done)
}

fn release_table(releases: &[ReleaseView], wide: bool) -> Table {
    const HEAD: [&str; 5] = ["NAME", "DEFAULT", "USABLE", "UPGRADE FROM", "IMAGE"];
    let mut table = Table::new(&HEAD[..if wide { 5 } else { 4 }]);
    for release in releases {
        let mut cells = vec![
            release.name.clone(),
            yes(release.default),
            yes(release.image.is_some()),
            release.upgrade_from.join(","),
        ];
        if wide {
            cells.push(release.image.clone().unwrap_or_else(|| "none".to_owned()));
        }
        table.row(cells);
    }
    table
}

fn yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn release_text(release: &ReleaseView) -> String {
    let default = if release.default { "  (default)" } else { "" };
    let mut text = format!("release {}{default}\n", release.name);
    for (part, version) in &release.components {
        let _ = writeln!(text, "  {part:<14} {version}");
    }
    let image = release.image.as_deref().unwrap_or("none: it cannot be used here yet");
    let _ = writeln!(text, "node image     {image}");
    if !release.upgrade_from.is_empty() {
        let _ = writeln!(text, "upgrade from   {}", release.upgrade_from.join(", "));
    }
    text
}
