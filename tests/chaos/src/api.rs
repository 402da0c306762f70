//! Connections to the cluster's API as its users have them, through the outside endpoint.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use tokio::runtime::Runtime;

/// How long a request may take.
pub(crate) const REQUEST_MAX: Duration = Duration::from_secs(2);

/// A way to the API whose connection is a new one after each error, so that none that leads nowhere is used again.
#[derive(Clone)]
pub(crate) struct Connection {
    config: Config,
    client: Option<Client>,
    namespace: String,
}

impl Connection {
    /// Nothing is sent yet.
    pub(crate) async fn new(kubeconfig: &str, namespace: &str) -> Result<Self> {
        let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.connect_timeout = Some(REQUEST_MAX);
        // A request counts as failed when it fails the first time.
        config.default_retry = false;
        Ok(Self { config, client: None, namespace: namespace.to_owned() })
    }

    /// Objects of the run's own namespace.
    pub(crate) fn own<K>(&mut self) -> Result<Api<K>>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        <K as kube::Resource>::DynamicType: Default,
    {
        let namespace = self.namespace.clone();
        Ok(Api::namespaced(self.client()?, &namespace))
    }

    /// Objects of the cluster.
    pub(crate) fn all<K>(&mut self) -> Result<Api<K>>
    where
        K: kube::Resource,
        <K as kube::Resource>::DynamicType: Default,
    {
        Ok(Api::all(self.client()?))
    }

    /// Waits for the answer to a request, not too long. After an error the connection is given up.
    pub(crate) async fn ask<T>(&mut self, request: impl Future<Output = kube::Result<T>>) -> Result<T> {
        let answer = tokio::time::timeout(REQUEST_MAX, request).await;
        let answer = answer.context("no answer in time").and_then(|answer| Ok(answer?));
        if answer.is_err() {
            self.client = None;
        }
        answer
    }

    fn client(&mut self) -> Result<Client> {
        match &self.client {
            Some(client) => Ok(client.clone()),
            None => Ok(self.client.insert(Client::try_from(self.config.clone())?).clone()),
        }
    }
}

/// A runtime for one thread.
pub(crate) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
