//! Routes of our own, over rtnetlink(7). They carry our protocol number, so that nobody else's is ever touched.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use keelson_protocol::config::RouteSpec;
use nix::errno::Errno;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::error::HostError;

/// Our number among the routing protocols (`rtm_protocol`, rtnetlink(7)): above those that the kernel and the usual
/// daemons have. `ip route show proto 75` lists our routes.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(75);

/// A connection for each call: it is cheap, and calls come twice a minute.
#[derive(Debug, Default)]
pub(crate) struct Routes;

impl Routes {
    /// All routes with our protocol number.
    pub(crate) async fn ours(&self) -> Result<BTreeSet<RouteSpec>, HostError> {
        let link = Link::open()?;
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut answer = Box::pin(link.handle.route().get(all).execute());
        let mut routes = BTreeSet::new();
        while let Some(message) = answer.try_next().await.map_err(failed("list routes"))? {
            routes.extend(our_route(&message));
        }
        Ok(routes)
    }

    /// Adds (or replaces) and removes; what is gone already is as wanted. One that the kernel refuses does not keep the others
    /// from being set: the first refusal is told after them.
    pub(crate) async fn change(&self, add: &[RouteSpec], remove: &[RouteSpec]) -> Result<(), HostError> {
        let link = Link::open()?;
        let mut refused = Ok(());
        for route in remove {
            let removed = match link.handle.route().del(message(route)).execute().await {
                Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -(Errno::ESRCH as i32) => {
                    Ok(())
                }
                other => other.map_err(failed(format!("remove the route to {}", route.destination))),
            };
            refused = refused.and(removed);
        }
        for route in add {
            let added = link.handle.route().add(message(route)).replace().execute().await;
            let what = format!("set the route to {} via {}", route.destination, route.via);
            refused = refused.and(added.map_err(failed(what)));
        }
        refused
    }
}

struct Link {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Link {
    fn open() -> Result<Self, HostError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| HostError::Meter { what: "a netlink socket", source })?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> HostError {
    let what = what.into();
    move |source| HostError::Routes { what, source: Box::new(source) }
}

fn message(route: &RouteSpec) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.destination.network(), route.destination.prefix_len())
        .gateway(route.via)
        .protocol(PROTOCOL)
        .build()
}

fn our_route(message: &RouteMessage) -> Option<RouteSpec> {
    if message.header.protocol != PROTOCOL {
        return None;
    }
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut via = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(*address),
            _ => {}
        }
    }
    let destination = Ipv4Net::new(destination, message.header.destination_prefix_length).ok()?;
    Some(RouteSpec { destination, via: via? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_survives_the_way_through_a_message() {
        let route =
            RouteSpec { destination: "10.200.3.0/24".parse().unwrap(), via: "10.0.0.3".parse().unwrap() };
        assert_eq!(our_route(&message(&route)), Some(route));
        let mut foreign = message(&route);
        foreign.header.protocol = RouteProtocol::Static;
        assert_eq!(our_route(&foreign), None);
    }

    /// A network of its own with one link, 10.9.0.0/24.
    async fn network() {
        let link = Link::open().unwrap();
        link.handle.link().add(rtnetlink::LinkVeth::new("here", "there").build()).execute().await.unwrap();
        for (index, address) in [(2, [10, 9, 0, 1]), (3, [10, 9, 0, 2])] {
            link.handle.address().add(index, address.into(), 24).execute().await.unwrap();
            let up = rtnetlink::LinkUnspec::new_with_index(index).up().build();
            link.handle.link().set(up).execute().await.unwrap();
        }
    }

    #[test]
    fn a_route_that_the_kernel_refuses_does_not_keep_the_others_from_being_set() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let apart = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                network().await;
                let to = |destination: &str, via: &str| RouteSpec {
                    destination: destination.parse().unwrap(),
                    via: via.parse().unwrap(),
                };
                let unreachable = to("10.1.0.0/24", "192.0.2.1");
                let wanted = [unreachable, to("10.2.0.0/24", "10.9.0.2"), to("10.3.0.0/24", "10.9.0.2")];
                let refused = Routes.change(&wanted, &[]).await.unwrap_err().chain();
                assert!(refused.starts_with("the kernel did not set the route to 10.1.0.0/24"), "{refused}");
                assert_eq!(Routes.ours().await.unwrap(), BTreeSet::from([wanted[1], wanted[2]]));
                Routes.change(&[], &wanted).await.unwrap();
                assert_eq!(Routes.ours().await.unwrap(), BTreeSet::new());
            });
        });
        apart.join().unwrap();
    }

    /// Reading needs no privilege and changes nothing.
    #[tokio::test]
    async fn the_kernel_answers() {
        assert!(Routes.ours().await.is_ok());
    }
}
