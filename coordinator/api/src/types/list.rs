//! Lists and their pages.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::api_version;

/// Most items of one page. A page of the largest documents stays below a few megabytes.
pub const PAGE_SIZE_MAX: usize = 500;

/// Items of a page when the client does not say.
pub const PAGE_SIZE_DEFAULT: usize = 100;

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListView<T> {
    /// Always `keelson/v1`.
    pub api_version: String,
    /// The items' kind with `List` behind it.
    pub kind: String,
    /// The items.
    pub items: Vec<T>,
    /// Give it as `page_token` to read on; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
    /// Number of items of the whole list when the page was made.
    pub total: usize,
}

impl<T> ListView<T> {
    /// A list of `kind` (without `List`).
    #[must_use]
    pub fn new(kind: &str, page: Page<T>, next_page_token: Option<String>) -> Self {
        let kind = format!("{kind}List");
        Self { api_version: api_version(), kind, items: page.items, next_page_token, total: page.total }
    }
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// [`Page::next`] of the page before; `None` for the first page.
    pub after: Option<String>,
    /// Most items, 1 to [`PAGE_SIZE_MAX`].
    pub limit: usize,
}

impl PageRequest {
    /// The first page, as large as it may be.
    #[must_use]
    pub fn first() -> Self {
        Self { after: None, limit: PAGE_SIZE_MAX }
    }
}

/// The answer to a [`PageRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page begins: the key of the last item, when there are more.
    pub next: Option<String>,
    /// Number of items of the whole list.
    pub total: usize,
}

impl<T> Page<T> {
    /// Cuts a page out of `all`, which must be sorted by `key` upwards; only its items go through `view`.
    pub fn upwards<'a, S: 'a>(
        all: impl IntoIterator<Item = &'a S>,
        request: &PageRequest,
        key: impl Fn(&S) -> String,
        view: impl Fn(&S) -> T,
    ) -> Self {
        Self::cut(all, request, key, view, |key, after| key > after)
    }

    /// As [`Page::upwards`] for a list that is sorted downwards (newest first).
    pub fn downwards<'a, S: 'a>(
        all: impl IntoIterator<Item = &'a S>,
        request: &PageRequest,
        key: impl Fn(&S) -> String,
        view: impl Fn(&S) -> T,
    ) -> Self {
        Self::cut(all, request, key, view, |key, after| key < after)
    }

    fn cut<'a, S: 'a>(
        all: impl IntoIterator<Item = &'a S>,
        request: &PageRequest,
        key: impl Fn(&S) -> String,
        view: impl Fn(&S) -> T,
        follows: fn(&str, &str) -> bool,
    ) -> Self {
        let mut page = Self { items: Vec::new(), next: None, total: 0 };
        let mut last = None;
        for item in all {
            page.total += 1;
            let key = key(item);
            if request.after.as_deref().is_some_and(|after| !follows(&key, after)) {
                continue;
            }
            if page.items.len() < request.limit {
                page.items.push(view(item));
                last = Some(key);
            } else if page.next.is_none() {
                page.next.clone_from(&last);
            }
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(after: Option<&str>, limit: usize, items: &[&str], next: Option<&str>) {
        let all = ["a", "b", "c", "d"];
        let request = PageRequest { after: after.map(str::to_owned), limit };
        let page = Page::upwards(&all, &request, |item| (*item).to_owned(), |item| (*item).to_owned());
        assert_eq!(
            (page.items, page.next.as_deref(), page.total),
            (items.iter().map(|item| (*item).to_owned()).collect(), next, 4)
        );
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_overlap() {
        check(None, 2, &["a", "b"], Some("b"));
        check(Some("b"), 2, &["c", "d"], None);
        check(Some("d"), 2, &[], None);
        check(None, 4, &["a", "b", "c", "d"], None);
        // The item that the token names was removed meanwhile.
        check(Some("bb"), 1, &["c"], Some("c"));
    }
}
