//! Calls to a cluster's etcd as commands of etcd's own client, and what their output means.
//!
//! The client runs on a machine with a member, with the member's own certificate, so that nobody else needs a way to etcd.

use std::net::Ipv4Addr;

use keelson_model::etcd::{EtcdAnswer, EtcdCall, EtcdMember, MemberId};
use keelson_model::{Blueprint, Role};
use keelson_protocol::ReleaseName;
use serde::Deserialize;

use super::etcd::{SERVER, client_url, member_url};
use super::paths;

/// How long etcd may take for one command: a healthy one answers in milliseconds, one without a quorum never.
const COMMAND_TIMEOUT_S: u16 = 3;

/// The commands that carry out `call` on a machine of `blueprint` that has a member, to run one after the other.
#[must_use]
pub fn etcd_commands(blueprint: &Blueprint, release: &ReleaseName, call: &EtcdCall) -> Vec<Vec<String>> {
    let local = local();
    let all = || blueprint.with_role(Role::Etcd).map(client_url).collect::<Vec<_>>().join(",");
    let command = |endpoints: &str, words: &[&str]| command(release, endpoints, COMMAND_TIMEOUT_S, words);
    match call {
        EtcdCall::Look => {
            vec![command(&local, &["endpoint", "status"]), command(&local, &["member", "list"])]
        }
        EtcdCall::AddLearner { address } => {
            // The name is given by the member itself when it starts; etcdctl only wants one.
            let url = format!("--peer-urls={}", member_url(*address));
            vec![command(&local, &["member", "add", "learner", "--learner", &url])]
        }
        EtcdCall::Promote { member } => {
            vec![command(&local, &["member", "promote", &member.to_string()])]
        }
        // Only the leader takes this one; etcdctl finds it among all.
        EtcdCall::MoveLeader { to } => vec![command(&all(), &["move-leader", &to.to_string()])],
        EtcdCall::Remove { member } => {
            vec![command(&local, &["member", "remove", &member.to_string()])]
        }
    }
}

/// A command about this machine's own member, for the agent to run.
pub(super) fn local_command(release: &ReleaseName, timeout_s: u16, words: &[&str]) -> Vec<String> {
    command(release, &local(), timeout_s, words)
}

fn local() -> String {
    format!("https://127.0.0.1:{}", paths::ETCD_CLIENT_PORT)
}

fn command(release: &ReleaseName, endpoints: &str, timeout_s: u16, words: &[&str]) -> Vec<String> {
    let mut command = vec![
        format!("{}/bin/etcdctl", paths::release(release)),
        format!("--endpoints={endpoints}"),
        format!("--cacert={}", paths::ETCD_CA),
        format!("--cert={}", paths::certificate(SERVER)),
        format!("--key={}", paths::key(SERVER)),
        format!("--command-timeout={timeout_s}s"),
        "--write-out=json".to_owned(),
    ];
    command.extend(words.iter().map(|word| (*word).to_owned()));
    command
}

#[derive(Deserialize)]
struct Status {
    #[serde(rename = "Status")]
    status: StatusInner,
}

#[derive(Deserialize)]
struct StatusInner {
    #[serde(default)]
    leader: u64,
}

#[derive(Deserialize)]
struct MemberList {
    members: Vec<Member>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    #[serde(rename = "ID")]
    id: u64,
    #[serde(default)]
    name: String,
    #[serde(default, rename = "peerURLs")]
    peer_urls: Vec<String>,
    #[serde(default)]
    is_learner: bool,
}

/// What the outputs of [`etcd_commands`] mean.
///
/// # Errors
/// A sentence when an output is not what etcd's client prints.
pub fn etcd_answer(call: &EtcdCall, outputs: &[String]) -> Result<EtcdAnswer, String> {
    if *call != EtcdCall::Look {
        return Ok(EtcdAnswer::Done);
    }
    let [status, list] = outputs else { return Err("etcdctl printed too little".to_owned()) };
    let malformed = |error: serde_json::Error| format!("etcdctl printed something else: {error}");
    let status: Vec<Status> = serde_json::from_str(status).map_err(malformed)?;
    let list: MemberList = serde_json::from_str(list).map_err(malformed)?;
    let leader = status.first().map(|status| status.status.leader).filter(|leader| *leader != 0);
    let members = list.members.into_iter().map(|member| EtcdMember {
        id: MemberId(member.id),
        name: member.name,
        address: member.peer_urls.iter().find_map(|url| address_of(url)),
        learner: member.is_learner,
    });
    Ok(EtcdAnswer::Members { members: members.collect(), leader: leader.map(MemberId) })
}

/// The address in a peer URL of ours.
fn address_of(url: &str) -> Option<Ipv4Addr> {
    url.strip_prefix("https://")?.strip_suffix(&format!(":{}", paths::ETCD_PEER_PORT))?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
mod tests {
    use super::*;

    /// As etcdctl 3.7.3 prints it.
    #[test]
    fn members_are_read_with_their_leader() {
        let status = r#"[{"Endpoint":"https://127.0.0.1:2379","Status":{"header":{"member_id":15985099378392235387,
            "revision":1,"raft_term":2},"version":"3.7.3","dbSize":20480,"leader":15985099378392235387,"raftIndex":4}}]"#;
        let list = r#"{"header":{"raft_term":2},"members":[
            {"ID":8291319528778253352,"peerURLs":["https://10.210.1.4:2380"],"isLearner":true},
            {"ID":15985099378392235387,"name":"demo-etcd-1","peerURLs":["https://10.210.1.0:2380"],
             "clientURLs":["https://10.210.1.0:2379"]}]}"#;
        let outputs = [status.to_owned(), list.to_owned()];
        let EtcdAnswer::Members { members, leader } = etcd_answer(&EtcdCall::Look, &outputs).unwrap() else {
            panic!("members were asked for");
        };
        assert_eq!(leader.unwrap().to_string(), "ddd67b312462fd7b");
        let read: Vec<(String, &str, Option<Ipv4Addr>, bool)> = members
            .iter()
            .map(|member| (member.id.to_string(), member.name.as_str(), member.address, member.learner))
            .collect();
        assert_eq!(
            read,
            [
                ("7310af2ea0164428".to_owned(), "", Some([10, 210, 1, 4].into()), true),
                ("ddd67b312462fd7b".to_owned(), "demo-etcd-1", Some([10, 210, 1, 0].into()), false),
            ]
        );
    }

    #[test]
    fn other_output_is_told() {
        let why = etcd_answer(&EtcdCall::Look, &["{}".to_owned(), String::new()]).unwrap_err();
        assert!(why.starts_with("etcdctl printed something else"), "{why}");
        assert!(etcd_answer(&EtcdCall::Look, &[]).is_err());
    }
}
