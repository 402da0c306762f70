//! Long lists, page by page.

use keelson_model::kubernetes::KubeFailure;
use kube::Api;
use kube::api::ListParams;
use serde::de::DeserializeOwned;

use crate::failure;

/// Objects in one page: what kubectl asks for. A page of 500 nodes has about five megabytes.
const PAGE_OBJECTS_MAX: u32 = 500;
/// Most pages of one list: 50,000 objects, ten times the nodes of the largest cluster that Kubernetes is made for.
const PAGES_MAX: usize = 100;

/// All objects that match. They are read from etcd's newest state: an answer of a cache may be older than the one
/// before it, and a lease would seem to be renewed.
pub(crate) async fn all<K>(api: &Api<K>, params: ListParams) -> Result<Vec<K>, KubeFailure>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut params = params.limit(PAGE_OBJECTS_MAX);
    let mut objects = Vec::new();
    for _ in 0..PAGES_MAX {
        let page = api.list(&params).await.map_err(|error| failure::of(&error))?;
        objects.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(objects),
        }
    }
    let why = format!("a list has more than {PAGES_MAX} pages of {PAGE_OBJECTS_MAX} objects");
    Err(KubeFailure::Refused { why })
}
