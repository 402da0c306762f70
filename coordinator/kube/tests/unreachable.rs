//! A cluster that cannot be reached: every call fails within its deadline and says why.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use keelson_kube::{Access, AccessError, KubeClient};
use keelson_model::kubernetes::{KubeCall, KubeFailure};
use keelson_protocol::SecretBytes;
use rcgen::{CertificateParams, KeyPair};

/// Access with a certificate that nobody has reason to accept.
fn access(endpoint: &str) -> Access {
    let key = KeyPair::generate().expect("there is entropy");
    let certificate = CertificateParams::default().self_signed(&key).expect("the key is sound").pem();
    let key = SecretBytes::new(key.serialize_pem().into_bytes());
    Access { endpoint: endpoint.to_owned(), authority: certificate.clone(), certificate, key }
}

fn client(socket: &TcpListener) -> KubeClient {
    let address = socket.local_addr().expect("it is bound");
    KubeClient::new(&access(&format!("https://{address}"))).expect("the access is sound")
}

#[tokio::test]
async fn nobody_listens() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = client(&socket);
    drop(socket);
    let failure = client.perform(&KubeCall::Nodes, Duration::from_secs(60)).await.unwrap_err();
    assert!(matches!(failure, KubeFailure::Unreachable { .. }), "{failure}");
    assert!(failure.to_string().contains("refused"), "{failure}");
    assert!(!failure.needs_person());
}

#[tokio::test]
async fn somebody_listens_and_never_answers() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = client(&socket);
    let began = Instant::now();
    let failure = client.perform(&KubeCall::Nodes, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(failure.to_string(), "the API server cannot be reached: it was not done within 50 ms");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_is_no_access_is_refused() {
    let check = |access: &Access, expected: fn(&AccessError) -> bool| {
        let error = KubeClient::new(access).unwrap_err();
        assert!(expected(&error), "{error}");
    };
    let good = access("https://127.0.0.1:6443");
    check(&Access { endpoint: "no url".to_owned(), ..good.clone() }, |error| {
        matches!(error, AccessError::Endpoint { .. })
    });
    check(&Access { authority: "no PEM".to_owned(), ..good.clone() }, |error| {
        matches!(error, AccessError::Authority { .. })
    });
    check(&Access { key: SecretBytes::new(b"no key".to_vec()), ..good }, |error| {
        matches!(error, AccessError::Certificate { .. })
    });
}
