//! What nothing uses and can be had again, found by three tables.

use std::collections::BTreeSet;

use super::command::print;
use crate::error::HostError;

/// Most things that are removed in one go: a command line has a limit too.
const REMOVED_MAX: usize = 200;
/// How digests begin.
const DIGEST: &str = "sha256:";

/// Programs that print what there is, what is used and where it came from, and one that removes.
pub(super) struct Tables {
    pub(super) list: Vec<String>,
    pub(super) used: Vec<String>,
    pub(super) source: Vec<String>,
    pub(super) source_says: String,
    pub(super) remove: Vec<String>,
}

pub(super) async fn sweep(tables: Tables, timeout_s: u16) -> Result<String, HostError> {
    let Tables { list, used, source, source_says, mut remove } = tables;
    let list = print(&list, timeout_s).await?.good(&list[0])?;
    let source = print(&source, timeout_s).await?.good(&source[0])?;
    // Last, so that what began to be used meanwhile is seen.
    let used = print(&used, timeout_s).await?.good(&used[0])?;
    let unused = unused(&list, &used, &source, &source_says);
    if unused.is_empty() {
        return Ok(String::new());
    }
    let count = unused.len();
    remove.extend(unused.into_iter().map(str::to_owned));
    print(&remove, timeout_s).await?.good(&remove[0])?;
    Ok(format!("removed {count} things that nothing uses"))
}

fn unused<'a>(list: &'a str, used: &str, source: &str, source_says: &str) -> Vec<&'a str> {
    let used: BTreeSet<&str> = used.split_whitespace().collect();
    let from = source.lines().filter(|line| line.contains(source_says));
    let had_again: BTreeSet<&str> = from.filter_map(|line| line.split_whitespace().next()).collect();
    let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    let in_use = |words: &[&str]| words.iter().any(|word| used.contains(word));
    let digests = |words: &[&'a str]| -> Vec<&'a str> {
        words.iter().copied().filter(|word| word.starts_with(DIGEST)).collect()
    };
    // One thing may have several names, of which the one in use is another.
    let kept: BTreeSet<&str> =
        lines.iter().filter(|words| in_use(words)).flat_map(|words| digests(words)).collect();
    lines
        .iter()
        .filter(|words| !in_use(words) && !digests(words).iter().any(|digest| kept.contains(digest)))
        .filter(|words| words.iter().any(|word| had_again.contains(word)))
        .filter_map(|words| words.first().copied())
        .take(REMOVED_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As ctr of containerd 2.3 prints it.
    const LIST: &str = "\
REF                             TYPE                                       DIGEST      SIZE     PLATFORMS   LABELS
docker.io/library/old:1         application/vnd.oci.image.index.v1+json    sha256:aa1  1.2 MiB  linux/amd64 io.cri-containerd.image=managed
docker.io/library/used:1        application/vnd.oci.image.index.v1+json    sha256:bb2  1.2 MiB  linux/amd64 io.cri-containerd.image=managed
docker.io/library/used@sha256:bb2 application/vnd.oci.image.index.v1+json  sha256:bb2  1.2 MiB  linux/amd64 io.cri-containerd.image=managed
registry.keelson.internal/coredns:1 application/vnd.oci.image.index.v1+json sha256:cc3 1.2 MiB  linux/amd64 io.cri-containerd.image=managed
sha256:dd4                      application/vnd.oci.image.index.v1+json    sha256:aa1  1.2 MiB  linux/amd64 io.cri-containerd.image=managed
";
    const USED: &str = "\
CONTAINER    IMAGE                                RUNTIME
0a1b         docker.io/library/used@sha256:bb2    io.containerd.runc.v2
";
    const SOURCE: &str = "\
DIGEST\tSIZE\tAGE\tLABELS
sha256:aa1\t1.2kB\t2 minutes\tcontainerd.io/distribution.source.docker.io=library/old
sha256:bb2\t1.2kB\t2 minutes\tcontainerd.io/distribution.source.docker.io=library/used
sha256:cc3\t1.2kB\t2 minutes\tcontainerd.io/gc.ref.content.config=sha256:ee5
";

    #[test]
    fn only_what_nothing_uses_and_was_pulled_goes() {
        let says = "containerd.io/distribution.source.";
        assert_eq!(unused(LIST, USED, SOURCE, says), ["docker.io/library/old:1", "sha256:dd4"]);
        assert_eq!(unused(LIST, USED, "", says), [] as [&str; 0], "where nothing is known nothing goes");
        assert_eq!(unused("", USED, SOURCE, says), [] as [&str; 0]);
        assert_eq!(unused(LIST, LIST, SOURCE, says), [] as [&str; 0]);
    }

    #[tokio::test]
    async fn a_table_that_cannot_be_had_removes_nothing() {
        let shell = |line: &str| ["/bin/sh", "-c", line].map(str::to_owned).to_vec();
        let tables = |used: &str| Tables {
            list: shell("echo thing sha256:1"),
            used: shell(used),
            source: shell("echo sha256:1 pulled"),
            source_says: "pulled".to_owned(),
            remove: shell("test \"$0\" = thing"),
        };
        let error = sweep(tables("exit 1"), 5).await.unwrap_err();
        assert!(error.chain().contains("exit status: 1"));
        assert_eq!(sweep(tables("true"), 5).await.unwrap(), "removed 1 things that nothing uses");
        assert_eq!(sweep(tables("echo thing"), 5).await.unwrap(), "");
    }
}
