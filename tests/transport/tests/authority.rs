//! The link CA: what it signs, what it refuses, and what it keeps.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::time::Duration;

use keelson_protocol::{Incarnation, MachineId, SecretBytes, WallTime};
use keelson_transport::ca::{CLOCK_SKEW, SIGNING_REQUEST_BYTES_MAX};
use keelson_transport::{CaError, LEAF_LIFE, LinkCa, PeerIdentity, SERVER_NAME, make_key_request};
use rcgen::{CertificateParams, CustomExtension, DnType, IsCa, KeyPair, SanType};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

const NOW: WallTime = WallTime(1_767_225_600_000);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

fn ca() -> LinkCa {
    LinkCa::generate("test", NOW, YEAR).unwrap()
}

fn machine() -> MachineId {
    MachineId::new("demo-worker-1").unwrap()
}

fn sign(ca: &LinkCa, request: &[u8]) -> Result<Vec<Vec<u8>>, CaError> {
    ca.sign_machine(request, &machine(), Incarnation(3), NOW, LEAF_LIFE)
}

#[test]
fn a_ca_survives_the_store() {
    let first = ca();
    let (certificate, key) = first.to_pem();
    let second = LinkCa::from_pem(&certificate, &key).unwrap();
    assert_eq!(second.to_pem(), (certificate, key));
    assert_eq!(second.certificate_der(), first.certificate_der());
    assert_eq!(second.fingerprint(), first.fingerprint());
    assert_eq!(second.not_after(), first.not_after());
    assert_eq!(second.reset_key(), first.reset_key());
    assert_ne!(ca().reset_key(), first.reset_key());
    // What the one signs, the other's certificate vouches for.
    let leaf = sign(&second, &make_key_request().unwrap().signing_request).unwrap().remove(0);
    let (_, issuer) = parse_x509_certificate(first.certificate_der()).unwrap();
    let (_, leaf) = parse_x509_certificate(&leaf).unwrap();
    leaf.verify_signature(Some(issuer.public_key())).unwrap();
}

#[test]
fn a_stored_ca_that_is_damaged_is_refused() {
    let (certificate, key) = ca().to_pem();
    let (other_certificate, other_key) = ca().to_pem();
    let leaf = {
        let leaf = ca().issue_server(NOW, LEAF_LIFE).unwrap();
        let key = KeyPair::try_from(leaf.key.expose_secret()).unwrap();
        let params = CertificateParams::new(vec!["x".into()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), SecretBytes::new(key.serialize_pem().into_bytes()))
    };
    let check = |certificate: &str, key: &SecretBytes, expected: &str| {
        let error = LinkCa::from_pem(certificate, key).unwrap_err().to_string();
        assert_eq!(error, format!("the stored link CA cannot be used: {expected}"));
    };
    check(&certificate, &other_key, "the key does not belong to the certificate");
    check(&other_certificate, &key, "the key does not belong to the certificate");
    check(&certificate, &SecretBytes::new(vec![0xff]), "the key is no PEM text");
    check(&certificate, &SecretBytes::new(b"rubbish".to_vec()), "the key is no PKCS#8 PEM block");
    check("rubbish", &key, "the certificate is no PEM block");
    check(&leaf.0, &leaf.1, "the certificate is not one of a CA");
}

#[test]
fn a_machines_certificate_says_what_the_ca_was_told_and_nothing_else() {
    let ca = ca();
    let key = KeyPair::generate().unwrap();
    let mut wish = CertificateParams::new(vec![SERVER_NAME.into(), "10.0.0.1".into()]).unwrap();
    wish.distinguished_name.push(DnType::CommonName, "coordinator");
    wish.subject_alt_names.push(SanType::URI("keelson://machine/demo-master-1/9".try_into().unwrap()));
    wish.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    wish.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    wish.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    wish.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0])];
    let request = wish.serialize_request(&key).unwrap();

    let chain = sign(&ca, request.der()).unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], ca.certificate_der());
    let peer = PeerIdentity::from_certificate(&chain[0]).unwrap();
    assert_eq!((peer.machine, peer.incarnation), (machine(), Incarnation(3)));
    assert_eq!(peer.not_after, NOW.plus(LEAF_LIFE));
    assert_eq!(peer.not_before.plus(CLOCK_SKEW), NOW);

    let (_, leaf) = parse_x509_certificate(&chain[0]).unwrap();
    assert_eq!(leaf.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI("keelson://machine/demo-worker-1/3")]);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && !extended.server_auth);
    assert!(!leaf.extensions().iter().any(|extension| extension.oid.to_id_string() == "1.2.3"));
    assert!(leaf.raw_serial().len() == 16 && leaf.raw_serial()[0] < 0x80);
}

#[test]
fn the_coordinators_certificate_is_for_its_name_only() {
    let identity = ca().issue_server(NOW, LEAF_LIFE).unwrap();
    let (_, leaf) = parse_x509_certificate(&identity.chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::DNSName(SERVER_NAME)]);
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && !extended.client_auth);
    let error = PeerIdentity::from_certificate(&identity.chain[0]).unwrap_err().to_string();
    assert!(error.contains("exactly one name"), "{error}");
}

#[test]
fn signing_requests_that_are_not_ours_are_refused() {
    let check = |request: &[u8], expected: &str| {
        let error = sign(&ca(), request).unwrap_err().to_string();
        assert!(error.contains(expected), "`{error}` says nothing of `{expected}`");
    };
    let good = make_key_request().unwrap().signing_request;
    assert!(sign(&ca(), &good).is_ok());

    let other = make_key_request().unwrap().signing_request;
    let key_at = good.windows(2).position(|pair| pair == [0x00, 0x04]).unwrap();
    let mut other_key = good.clone();
    other_key[key_at..key_at + 66].copy_from_slice(&other[key_at..key_at + 66]);
    check(&other_key, "not signed with the key that it holds");
    let mut other_signature = good.clone();
    *other_signature.last_mut().unwrap() ^= 1;
    check(&other_signature, "not signed with the key that it holds");
    check(&[&good[..], &[0]].concat(), "bytes follow it");
    check(&good[..good.len() - 1], "no PKCS#10 request");
    check(&[], "no PKCS#10 request");
    check(&vec![0x30; SIGNING_REQUEST_BYTES_MAX + 1], "4097 bytes, at most 4096");
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        check(request.der(), "not an ECDSA P-256 key");
    }
}

#[test]
fn no_certificate_outlives_its_ca() {
    let ca = LinkCa::generate("short", NOW, Duration::from_secs(3_600)).unwrap();
    let leaf = ca.issue_server(NOW, LEAF_LIFE).unwrap().chain.remove(0);
    let (_, leaf) = parse_x509_certificate(&leaf).unwrap();
    assert_eq!(WallTime(leaf.validity().not_after.timestamp() * 1_000), ca.not_after());
    let later = NOW.plus(Duration::from_secs(3_600));
    assert!(matches!(ca.issue_server(later, LEAF_LIFE), Err(CaError::Life { .. })));
    assert!(matches!(LinkCa::generate("x", NOW, Duration::ZERO), Err(CaError::Life { .. })));
    assert!(matches!(LinkCa::generate("x", WallTime(i64::MAX), YEAR), Err(CaError::Life { .. })));
    assert!(matches!(LinkCa::generate("x", WallTime(i64::MIN), YEAR), Err(CaError::Life { .. })));
}

#[test]
fn nothing_shows_a_key() {
    let ca = ca();
    let (_, key) = ca.to_pem();
    let pem = String::from_utf8(key.expose_secret().to_vec()).unwrap();
    let secret_line = pem.lines().nth(1).unwrap();
    assert!(!format!("{ca:?} {key:?}").contains(secret_line));
}
